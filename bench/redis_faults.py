"""What callers wait while the Redis of their limits fails, beside callers of the same moment who have no limits.

    python -m bench.redis_faults [--seconds 3] [--rate 40] [--json FILE]

Two gateways share a Redis behind a network of ours, with the default deadlines (45 ms for an answer, 100 ms for a
connection). Calls of each mode come at a steady rate, whatever became of those before: `strict` callers are refused
while Redis is down, `loose` ones are held to a replica's share, `bare` ones have no limits and are the control. Times
are from when a call was due to its last byte, in ms; `p99 once noticed` leaves the first half second of a fault out.
`back` is from the end of the fault to when every mode is served at both gateways as if nothing had been; `files` are
the gateways' open descriptors before and after.
"""

import argparse
import asyncio
import json
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from platform import python_version
from statistics import quantiles

from tests.rig.chat_client import ChatClient, Told
from tests.rig.redis_faults import FAULTS, MODES, Fault, Rig, rig

PATIENCE_S = 30.0
WARM_UP_S = 1.0
NOTICED_S = 0.5  # by then every gateway knows


@dataclass(slots=True)
class Heard:
    """One call: when it was due, how long it took from then, and what it was told."""

    mode: str
    gateway: int
    due: float
    ms: float
    told: Told

    @property
    def well(self) -> bool:
        """Whether it was served as if nothing had been."""
        return self.told.status == 200 and "x-penstock-degraded" not in self.told.headers


@dataclass
class Traffic:
    """Calls at a steady rate, on a thread of its own; `heard` is everything that ended."""

    rig: Rig
    rate: float
    heard: list[Heard] = field(default_factory=list)
    unanswered: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def flowing(self) -> Iterator[None]:
        """Call until the block ends, and wait for the last answer."""
        thread = threading.Thread(target=lambda: asyncio.run(self._flow()), name="traffic")
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    async def _flow(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for mode in MODES:
                for number in range(len(self.rig.gateways)):
                    tasks.create_task(self._stream(mode, number, tasks))

    async def _stream(self, mode: str, number: int, tasks: asyncio.TaskGroup) -> None:
        idle: list[ChatClient] = []
        begin, count = time.monotonic(), 0
        while not self._stop.is_set():
            due = begin + count / self.rate
            await asyncio.sleep(due - time.monotonic())
            tasks.create_task(self._call(mode, number, due, f"{mode}-{number}-{count}-{begin}", idle))
            count += 1
        await asyncio.sleep(1.0)
        for client in idle:
            client.hang_up()

    async def _call(self, mode: str, number: int, due: float, name: str, idle: list[ChatClient]) -> None:
        client = idle.pop() if idle else ChatClient(self.rig.gateways[number].port)
        try:
            async with asyncio.timeout(PATIENCE_S):
                told = await client.ask(self.rig.ask(mode, name))
        except TimeoutError:
            self.unanswered += 1
            client.hang_up()
            return
        self.heard.append(Heard(mode, number, due, (time.monotonic() - due) * 1000, told))
        idle.append(client)


def measure(running: Rig, fault: Fault, seconds: float, rate: float) -> dict[str, object]:
    """Let a fault last for so long under traffic; give what was seen."""
    files = [gateway.descriptors() for gateway in running.gateways]
    traffic = Traffic(running, rate)
    with traffic.flowing():
        time.sleep(WARM_UP_S)
        begin = time.monotonic()
        fault.begin(running)
        time.sleep(seconds)
        end = time.monotonic()
        fault.end(running)
        back_s = recovered(traffic, end)
    time.sleep(0.5)
    figures: dict[str, object] = {"back_s": back_s, "unanswered": traffic.unanswered}
    for mode in MODES:
        during = [heard for heard in traffic.heard if heard.mode == mode and begin <= heard.due < end]
        figures[mode] = summary(during) | {"p99 once noticed": percentiles(during, begin + NOTICED_S)[1]}
    figures["files"] = [files, [gateway.descriptors() for gateway in running.gateways]]
    return figures


def recovered(traffic: Traffic, since: float) -> float | None:
    """Wait until the last calls of every mode at both gateways were served well; give how long it took, in seconds."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        time.sleep(0.25)
        after = [heard for heard in tuple(traffic.heard) if heard.due >= since]
        unwell = max((heard.due for heard in after if not heard.well), default=since)
        well = Counter((heard.mode, heard.gateway) for heard in after if heard.well and heard.due > unwell)
        if len(well) == len(MODES) * len(traffic.rig.gateways) and min(well.values()) >= 10:
            return round(unwell - since, 2)
    return None


def percentiles(during: list[Heard], since: float) -> tuple[float, float]:
    """Give p50 and p99 of the calls that were due since then."""
    cuts = quantiles([heard.ms for heard in during if heard.due >= since], n=100)
    return round(cuts[49], 1), round(cuts[98], 1)


def summary(during: list[Heard]) -> dict[str, object]:
    """Give times and outcomes of one mode's calls."""
    p50, p99 = percentiles(during, 0.0)
    outcomes = Counter(
        f"{heard.told.status}{' by shares' if 'x-penstock-degraded' in heard.told.headers else ''}" for heard in during
    )
    return {
        "calls": len(during),
        "p50": p50,
        "p99": p99,
        "max": round(max(heard.ms for heard in during), 1),
        "outcomes": dict(outcomes),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each fault lasts")
    parser.add_argument("--rate", type=float, default=40.0, help="calls a second, of each mode at each gateway")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder, rig(Path(folder)) as running:
        measure(running, Fault("nothing", lambda _: None, lambda _: None, breaks=False), 1.0, options.rate)
        calm = Fault("no fault", lambda _: None, lambda _: None, breaks=False)
        for fault in (calm, *FAULTS):
            figures[fault.name] = told = measure(running, fault, options.seconds, options.rate)
            print(
                f"{fault.name}: back after {told['back_s']} s, unanswered {told['unanswered']}, files {told['files']}"
            )
            for mode in MODES:
                print(f"  {mode:7}", told[mode], flush=True)
    if options.json is not None:
        command = f"python -m bench.redis_faults --seconds {options.seconds:g} --rate {options.rate:g}"
        about = {"command": command, "python": python_version(), "cores": os.cpu_count()}
        options.json.write_text(json.dumps(about | {"figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
