"""Who waits for room at the upstreams, and who is called next.

`Admit` lets calls wait here, `Dispatch` announces each slot that becomes free. An announcement calls one waiting call,
the first in order of arrival that has a candidate with room; when that one leaves, it announces again, so that room for
several is passed on from hand to hand and nobody is called for room that is already spoken for.

An engine's room also grows without a slot of ours becoming free: while anybody waits, a timer looks again.
"""

import asyncio
from collections.abc import Sequence

from gateway.upstreams.base import Upstream

LOOK_AGAIN_S = 0.05


def has_room(upstream: Upstream) -> bool:
    """Whether an attempt may be sent there now."""
    slots = upstream.room().slots
    return slots is None or slots > 0


class Turn:
    """One waiting call. Identity is the object's own."""

    __slots__ = ("_called", "route")

    def __init__(self, route: Sequence[Upstream]) -> None:
        self.route = route
        self._called: asyncio.Future[None] | None = None

    def call(self) -> bool:
        """Wake it up. False where it is awake already."""
        if self._called is None or self._called.done():
            return False
        self._called.set_result(None)
        return True

    async def wait(self, seconds: float) -> bool:
        """Sleep until called, at most for so long; whether it was called."""
        self._called = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(seconds):
                await self._called
        except TimeoutError:
            return False
        finally:
            self._called = None
        return True


class Vacancy:
    """The queue of those who wait for room."""

    def __init__(self) -> None:
        self._turns: dict[Turn, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    @property
    def num_waiting(self) -> int:
        """How many calls wait."""
        return len(self._turns)

    def open_to(self, route: Sequence[Upstream], turn: Turn | None = None) -> bool:
        """Whether some candidate has room that nobody ahead of `turn` (of a newcomer: nobody at all) waits for."""
        if not self._turns:
            return any(map(has_room, route))
        return any(has_room(upstream) and not self._awaited(upstream, turn) for upstream in route)

    def join(self, route: Sequence[Upstream]) -> Turn:
        """Queue up. Whoever joins must `leave`."""
        turn = Turn(route)
        self._turns[turn] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_AGAIN_S, self._look)
        return turn

    def leave(self, turn: Turn) -> None:
        """Leave the queue, served or not, and let the next one have a look."""
        del self._turns[turn]
        if self._turns:
            self.announce()
        elif self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def announce(self) -> None:
        """Call the first who can go."""
        for turn in self._turns:
            if any(map(has_room, turn.route)) and turn.call():
                return

    def call_all(self) -> None:
        """Call everybody, room or not."""
        for turn in self._turns:
            turn.call()

    def _look(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(LOOK_AGAIN_S, self._look)
        self.announce()

    def _awaited(self, upstream: Upstream, before: Turn | None) -> bool:
        for turn in self._turns:
            if turn is before:
                return False
            if upstream in turn.route:
                return True
        return False
