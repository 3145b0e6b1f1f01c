"""An event loop whose time stands still while anything runs, and jumps to the next timer when nothing does.

A minute of outage takes a second of a test, and the same every time. For what has no socket: nobody waits for one here.
"""

import asyncio
from collections.abc import Coroutine
from heapq import heappop
from typing import Any, TypeVar

T = TypeVar("T")
START = 1000.0


class VirtualLoop(asyncio.SelectorEventLoop):
    """Begins at `START`. Raises `RuntimeError` where everything waits for what can never come."""

    def __init__(self) -> None:
        super().__init__()
        self._now = START
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        loop: Any = self  # what asyncio.base_events keeps for itself
        timers = loop._scheduled
        while timers and timers[0]._cancelled:
            loop._timer_cancelled_count -= 1
            heappop(timers)._scheduled = False
        if not loop._ready:
            if not timers:
                raise RuntimeError("everything waits, and no timer runs")
            self._now = max(self._now, timers[0]._when)
        super()._run_once()  # type: ignore[misc]


def run_virtually(main: Coroutine[Any, Any, T]) -> T:
    """Run to the end in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
