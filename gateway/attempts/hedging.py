"""A race of two attempts of one call: whose first event comes first answers, the other one is given up at once.

Each runs in a task of its own, which the race owns from `enter` until it has ended. The loser is cancelled in the same
moment in which the winner is known, and closed beside the answer: what its upstream takes to let go of it is nobody's
wait. It is written down as IGNORED, because to have been slower once says nothing about an upstream, and its time goes
to the hedge's histogram.

What it costs: a loser has no first event, and so has brought nothing that could be billed. Only where both brought
their first in the same pass of the event loop has it made something, which is charged (`Generation.lost`).
"""

import asyncio
from types import TracebackType

from gateway.attempts.attempt import Failed, Running
from gateway.errors import GatewayError


class Race:
    """The attempts of a race, on the generation's scope. `failed` are those that did, in their order."""

    __slots__ = ("_closing", "_lanes", "_winner", "failed")

    def __init__(self) -> None:
        self.failed: list[Failed] = []
        self._lanes: dict[asyncio.Task[None], Running] = {}
        self._closing: list[asyncio.Task[None]] = []
        self._winner: Running | None = None

    @property
    def under_way(self) -> bool:
        """Whether some attempt still waits for its first event."""
        return bool(self._lanes)

    def enter(self, running: Running) -> None:
        """Begin an attempt beside the others."""
        self._lanes[asyncio.get_running_loop().create_task(running.begin())] = running

    async def winner(self, within_s: float | None = None) -> Running | None:
        """Wait for the first who has a first event, and give up the others; None if all failed, or nobody in time."""
        deadline = None if within_s is None else asyncio.get_running_loop().time() + within_s
        while self._lanes:
            left_s = None if deadline is None else max(deadline - asyncio.get_running_loop().time(), 0.0)
            done, _ = await asyncio.wait(self._lanes, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                return None
            for lane in sorted(done, key=lambda lane: self._lanes[lane].attempt.started):
                running = self._lanes.pop(lane)
                error = lane.exception()
                if error is None:
                    self._decide(running)
                    return running
                if not isinstance(error, GatewayError):
                    self._lanes[lane] = running  # a defect of ours: closed with the race
                    raise error
                self.failed.append(await running.failed())
        return None

    def _decide(self, winner: Running) -> None:
        self._winner = winner
        loop = asyncio.get_running_loop()
        for lane, loser in self._lanes.items():
            loser.attempt.lost = True
            lane.cancel()
            self._closing.append(loop.create_task(give_up(lane, loser)))
        self._lanes.clear()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End what still runs, and wait until all of it has ended."""
        for lane, running in self._lanes.items():
            lane.cancel()
            self._closing.append(asyncio.get_running_loop().create_task(give_up(lane, running)))
        self._lanes.clear()
        try:
            if self._winner is not None:
                await self._winner.aclose()
        finally:
            while self._closing:
                await asyncio.wait(self._closing)
                for closed in self._closing:
                    closed.result()
                self._closing.clear()


async def give_up(lane: asyncio.Task[None], running: Running) -> None:
    """Close an attempt once its task has ended, which was cancelled, or met its first event or an error just now."""
    await asyncio.wait((lane,))
    if not lane.cancelled():
        lane.exception()  # the attempt knows it; else the event loop would call it forgotten
    await running.aclose()
