"""Processes of ours, started as an operator starts them, read line by line and always ended."""

import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 60.0


class Process:
    """A child whose standard error is read line by line. `expect` waits for a line and gives it."""

    def __init__(self, arguments: list[str], environ: dict[str, str], folder: Path) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        self.lines: list[str] = []  # that `expect` has taken
        self.said: list[str] = []  # all that have come
        self._queue: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def expect(self, part: str) -> str:
        """Wait for a line that contains `part`."""
        while True:
            try:
                line = self._queue.get(timeout=PATIENCE_S)
            except queue.Empty:
                line = ""
            self.lines.append(line)
            assert line, f"{part!r} did not come; what came: {self.lines}"
            if part in line:
                return line.strip()

    def send(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def wait(self) -> int:
        """Wait for the end; gives the status."""
        return self.popen.wait(PATIENCE_S)

    def children(self) -> list[int]:
        path = Path(f"/proc/{self.popen.pid}/task/{self.popen.pid}/children")
        return [int(pid) for pid in path.read_text().split()]

    def end(self) -> None:
        if self.popen.poll() is None:
            orphans = self.children()
            self.popen.kill()
            self.popen.wait()
            for pid in orphans:
                end(pid)
        self._reader.join(PATIENCE_S)
        assert self.popen.stdout is not None
        assert self.popen.stderr is not None
        self.popen.stdout.close()
        self.popen.stderr.close()

    def _read(self) -> None:
        assert self.popen.stderr is not None
        for line in self.popen.stderr:
            self.said.append(line)
            self._queue.put(line)
        self._queue.put("")


def end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
