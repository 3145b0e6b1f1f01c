"""A real redis-server of our own: on a unix socket, in a folder of its own, ended by its process id."""

import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

import pytest

BINARY = shutil.which("redis-server")


class RedisServer:
    """Starts on entering; `stop`, `freeze` and `thaw` act on the process, `ask` on what it holds."""

    def __init__(self, folder: Path, *settings: str, port: int = 0, sentinel: str = "") -> None:
        if BINARY is None:
            pytest.skip("redis-server is not installed")
        self.folder = folder
        self.path = folder / "redis.sock"
        self.port = port
        self.settings = settings
        self._sentinel = sentinel  # its one line of configuration, if it is a sentinel
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and wait until it answers."""
        assert BINARY is not None
        self.path.unlink(missing_ok=True)
        place = ["--unixsocket", str(self.path), "--port", str(self.port), "--bind", "127.0.0.1"]
        where = ["--dir", str(self.folder), "--logfile", str(self.folder / "log")]
        command = [BINARY, *place, *where, "--save", "", "--maxmemory-policy", "noeviction", *self.settings]
        if self._sentinel:
            (self.folder / "conf").write_text(f"{self._sentinel}\n")
            command = [BINARY, str(self.folder / "conf"), *place, *where, "--sentinel"]
        if (leash := shutil.which("setpriv")) is not None:
            command = [leash, "--pdeathsig", "KILL", *command]  # it dies with the tests, however they end
        self._process = subprocess.Popen(command, start_new_session=True)
        deadline = time.monotonic() + 30
        while True:
            try:
                if self.ask("PING").startswith(b"+PONG"):
                    return
            except OSError:
                pass
            assert time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.01)

    def ask(self, *words: str) -> bytes:
        """Send one command over a connection of its own and give the first piece of the reply."""
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(10)
            peer.connect(str(self.path))
            command = b"".join(b"$%d\r\n%b\r\n" % (len(word.encode()), word.encode()) for word in words)
            peer.sendall(b"*%d\r\n%b" % (len(words), command))
            return peer.recv(1 << 16)

    def kill(self) -> None:
        """End it as the kernel would, at once."""
        self._signal(signal.SIGCONT)
        self._signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait(10)
        self._process = None

    def freeze(self) -> None:
        """Stop it from running; its sockets go on taking what fits."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it run again."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def __enter__(self) -> "RedisServer":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self.kill()
