"""Gateways as an operator runs them: processes of `penstock serve`, each in a folder of its own, started together.

What they say is read back from where an operator reads it: standard error, `/metrics`, the access log, `/proc`.
"""

import json
import os
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.process.children import Process, end

PATIENCE_S = 60.0


class Gateway:
    """One of them. Its configuration has to say `listen: {port: 0}` and `telemetry: {access_log: ./access.log}`."""

    def __init__(self, folder: Path, config: str, environ: Mapping[str, str]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "penstock.yaml").write_text(config)
        arguments = ["-m", "gateway.cli", "serve", "--config", "penstock.yaml"]
        self.process = Process(arguments, dict(environ), folder)
        self.port = 0

    def wait(self) -> None:
        """Wait until it serves; after its worker was killed, until the next one does."""
        said = self.process.expect("serving ")
        self.port = int(said.partition(" on ")[2].split()[0].rpartition(":")[2])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def worker(self) -> int:
        """The process that serves."""
        [pid] = self.process.children()
        return pid

    @property
    def said(self) -> list[str]:
        """What it has written to standard error so far."""
        return [line.rstrip() for line in self.process.said]

    def kill(self) -> int:
        """Kill the worker where it stands; the supervisor starts another. Gives who died."""
        pid = self.worker
        os.kill(pid, signal.SIGKILL)
        return pid

    def crash(self) -> None:
        """Kill supervisor and worker at once, as the kernel or a power cut would: nobody comes after them."""
        orphans = self.process.children()
        self.process.send(signal.SIGKILL)
        for pid in orphans:
            end(pid)
        self.process.wait()

    def stop(self) -> int:
        """Let it drain and end; gives its status."""
        self.process.send(signal.SIGTERM)
        return self.process.wait()

    def metrics(self) -> dict[str, float]:
        """Every sample of `/metrics`, by its name with labels as they are written there."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=PATIENCE_S) as answer:
            text = answer.read().decode()
        lines = [line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#")]
        return {name: float(value) for name, _, value in lines}

    def total(self, name: str, **labels: str) -> float:
        """Sum the samples of a metric that bear these labels."""
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return sum(
            value
            for sample, value in self.metrics().items()
            if sample.partition("{")[0] == name and all(label in sample for label in wanted)
        )

    def access_log(self) -> list[dict[str, Any]]:
        """Every line that has reached the file; all of them once it has stopped, within a second if not."""
        path = self.folder / "access.log"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_bytes().splitlines() if line.endswith(b"}")]

    def quiet(self) -> None:
        """Wait until no request is under way."""
        eventually(lambda: self.metrics()["penstock_requests_in_flight"] == 0)

    def descriptors(self) -> int:
        """How many file descriptors the worker has open."""
        return len(os.listdir(f"/proc/{self.worker}/fd"))

    def cpu_s(self) -> float:
        """CPU time of the worker so far, all threads."""
        fields = Path(f"/proc/{self.worker}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def gateways(folder: Path, configs: Sequence[str], environ: Mapping[str, str] | None = None) -> Iterator[list[Gateway]]:
    """Run one for each configuration, in folders `0`, `1` … of `folder`; ended whatever happens."""
    with ExitStack() as ending:
        running: list[Gateway] = []
        for number, config in enumerate(configs):
            gateway = Gateway(folder / str(number), config, environ or {})
            ending.callback(gateway.process.end)
            running.append(gateway)
        for gateway in running:
            gateway.wait()
        yield running


def eventually(holds: Callable[[], bool], within_s: float = PATIENCE_S) -> None:
    """Wait until something holds; fail when it never does."""
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, "it never came to hold"
        time.sleep(0.02)
