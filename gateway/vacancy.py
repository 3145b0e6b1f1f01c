"""Who waits for room at the upstreams, and who is called next.

`Admit` lets calls wait here, `Dispatch` tells of each slot that becomes free. Upstreams that serve the same models
share a queue; those that never stand in for each other have queues of their own, so that a wait is predicted from what
is waited for.

When there is room, the first is called, in the order of `policies.waiting_room`, who has a candidate that takes it and
that nobody ahead waits for: a large prompt is not overtaken for ever by small ones. Whoever was called goes if there is
room still, and then the next has a look, so that room for several is passed on from hand to hand.

An engine's room also grows without a slot of ours becoming free: while anybody waits, a timer looks again.
"""

import asyncio
from collections.abc import Iterable, Sequence
from random import Random

from gateway.call import Call
from gateway.errors import GatewayError
from gateway.upstreams.base import Upstream
from policies.fairness import TokenCost
from policies.shedding import Shedder, SheddingTerms
from policies.tenant import STANDING
from policies.waiting_room import WaitingRoom

LOOK_AGAIN_S = 0.01


class Turn:
    """One waiting call. Identity is the object's own."""

    __slots__ = ("_called", "_refused", "call")

    def __init__(self, call: Call) -> None:
        self.call = call
        self._called: asyncio.Future[None] | None = None
        self._refused: GatewayError | None = None

    def wake(self, refused: GatewayError | None = None) -> bool:
        """Wake it up, with an error if it has to go. False where it is awake already."""
        self._refused = self._refused or refused
        if self._called is None or self._called.done():
            return False
        self._called.set_result(None)
        return True

    async def wait(self, seconds: float) -> bool:
        """Sleep until woken up, at most for so long; whether it was. Raises what it was refused with."""
        self._called = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(seconds):
                await self._called
        except TimeoutError:
            return False
        finally:
            self._called = None
        if self._refused is not None:
            raise self._refused
        return True

    @property
    def asleep(self) -> bool:
        """Whether it waits to be woken up."""
        return self._called is not None and not self._called.done()


class Queue:
    """Those who wait for one group of upstreams, what each tenant has had, and how long a wait will be."""

    def __init__(self, *, bounded: bool, max_waiting: int, shedder: Shedder, cost: TokenCost) -> None:
        self.bounded = bounded  # whether anybody ever has to wait here
        self.max_waiting = max_waiting
        self.shedder = shedder
        self._cost = cost
        self._room: WaitingRoom[Turn] = WaitingRoom(max(max_waiting, 1))
        self._awaited: dict[Upstream, int] = {}  # how many wait for each
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._room)

    def __contains__(self, turn: Turn) -> bool:
        return turn in self._room

    # Whoever need not wait.

    def open_to(self, call: Call) -> bool:
        """Whether some candidate of a newcomer has room that nobody waits for."""
        awaited = self._awaited
        for upstream in call.route:  # noqa: SIM110 (a generator costs 0.3 µs)
            if upstream.fits(call) and upstream not in awaited:
                return True
        return False

    def passes(self, call: Call) -> None:
        """A call is let in that never had to wait."""
        terms = call.terms
        cost = call.tokens.input * self._cost.input
        self._room.pass_by(call.tenant.id, cost, priority=STANDING[terms.priority], weight=terms.weight)
        self.shedder.had_room(call.received)

    def produced(self, call: Call, tokens: int) -> None:
        """A call that was let in brought so many tokens."""
        terms = call.terms
        cost = tokens * self._cost.output
        self._room.charge(call.tenant.id, cost, priority=STANDING[terms.priority], weight=terms.weight)

    def freed(self, now: float, hold_s: float) -> None:
        """A slot became free that was held for so long."""
        self.shedder.freed(now, hold_s)
        if self._awaited:
            self.announce()

    # Whoever has to.

    @property
    def full(self) -> bool:
        """Whether a newcomer has to take somebody's place."""
        return len(self._room) >= self.max_waiting

    def loser(self, call: Call) -> Turn | None:
        """Tell who has to leave the full room for a newcomer; None if the newcomer has to."""
        terms = call.terms
        return self._room.loser(call.tenant.id, STANDING[terms.priority], terms.weight)

    def predict(self, call: Call, now: float) -> tuple[float | None, float | None]:
        """How long a newcomer will wait, and how long everybody here will; None while nothing is known."""
        terms = call.terms
        slots = sum([upstream.room().in_flight for upstream in call.route])
        ahead = self._room.ahead(call.tenant.id, STANDING[terms.priority], terms.weight)
        return self.shedder.predict(now, ahead, slots), self.shedder.predict(now, len(self._room), slots)

    def join(self, call: Call) -> Turn:
        """Queue up. Whoever joins must `start` or `leave`; the room is not full."""
        turn, terms = Turn(call), call.terms
        self._room.join(turn, call.tenant.id, priority=STANDING[terms.priority], weight=terms.weight)
        for upstream in call.route:
            self._awaited[upstream] = self._awaited.get(upstream, 0) + 1
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_AGAIN_S, self._look)
        return turn

    def start(self, turn: Turn) -> bool:
        """Go, if there is room for who was called; the next has a look once the slot is taken."""
        call = turn.call
        if not any(upstream.fits(call) for upstream in call.route):
            return False
        self._room.start(turn, call.tokens.input * self._cost.input)
        self._gone(turn)
        if self._awaited:
            asyncio.get_running_loop().call_soon(self.announce)
        return True

    def leave(self, turn: Turn) -> None:
        """Leave the queue unserved, and let the next one have a look."""
        self._room.leave(turn)
        self._gone(turn)
        self.announce()

    def crowd_out(self, turn: Turn, error: GatewayError) -> None:
        """Send somebody away to make a place."""
        self._room.leave(turn)
        self._gone(turn)
        turn.wake(error)

    def announce(self) -> None:
        """Call the first who can go."""
        if all(upstream.room().slots == 0 for upstream in self._awaited):
            return
        claimed: set[Upstream] = set()
        for turn in self._room:
            if not turn.asleep:
                continue
            call = turn.call
            for upstream in call.route:
                if upstream not in claimed and upstream.fits(call):
                    turn.wake()
                    return
            claimed.update(call.route)
            if len(claimed) == len(self._awaited):
                return

    def call_all(self) -> None:
        """Wake everybody up, room or not."""
        for turn in self._room:
            turn.wake()

    def _gone(self, turn: Turn) -> None:
        awaited = self._awaited
        for upstream in turn.call.route:
            awaited[upstream] -= 1
            if not awaited[upstream]:
                del awaited[upstream]
        if not awaited and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(LOOK_AGAIN_S, self._look)
        self.announce()


class Vacancy:
    """The queues of all upstreams. `routes` are those of the served models; upstreams of none share a queue.

    At most `max_waiting` wait in each queue, and nobody longer than `max_wait_s`.
    """

    def __init__(
        self,
        routes: Iterable[Sequence[Upstream]] = (),
        *,
        max_waiting: int = 256,
        max_wait_s: float = 10.0,
        cost: TokenCost | None = None,
        rng: Random | None = None,
    ) -> None:
        self.max_wait_s = max_wait_s
        terms, rng, cost = SheddingTerms(max_wait_s=max_wait_s), rng or Random(), cost or TokenCost()

        def queue(*, bounded: bool) -> Queue:
            return Queue(bounded=bounded, max_waiting=max_waiting, shedder=Shedder(terms, rng=rng), cost=cost)

        self._others = queue(bounded=True)
        self._queues: dict[Upstream, Queue] = {}
        for group in groups_of(routes):
            shared = queue(bounded=any(upstream.room().slots is not None for upstream in group))
            self._queues.update(dict.fromkeys(group, shared))

    @property
    def num_waiting(self) -> int:
        """How many calls wait."""
        return sum(map(len, self._all()))

    @property
    def num_shed(self) -> int:
        """How many calls were told at once that they would wait too long."""
        return sum(queue.shedder.snapshot().shed for queue in self._all())

    def queue_of(self, route: Sequence[Upstream]) -> Queue:
        """Give the queue that calls with this route wait in."""
        return self._queues.get(route[0], self._others)

    def freed(self, upstream: Upstream, now: float, hold_s: float) -> None:
        """A slot of an upstream became free that was held for so long: call who waits for it."""
        queue = self._queues.get(upstream, self._others)
        if queue.bounded:
            queue.freed(now, hold_s)

    def announce(self) -> None:
        """Call the first of each queue who can go."""
        for queue in self._all():
            queue.announce()

    def call_all(self) -> None:
        """Wake everybody up, room or not."""
        for queue in self._all():
            queue.call_all()

    def _all(self) -> set[Queue]:
        return {self._others, *self._queues.values()}


def groups_of(routes: Iterable[Sequence[Upstream]]) -> list[set[Upstream]]:
    """Put upstreams together that some route names together, and those that share such a one."""
    groups: list[set[Upstream]] = []
    for route in routes:
        group, apart = set(route), []
        for other in groups:
            if other & group:
                group |= other
            else:
                apart.append(other)
        groups = [*apart, group]
    return groups
