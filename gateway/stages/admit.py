"""Admit: is there room now, soon, or not in time?"""

import time
from collections.abc import Awaitable, Callable
from math import ceil
from types import TracebackType

from gateway.call import Call, Handler, Reply, Single
from gateway.deadline import out_of_time
from gateway.errors import GatewayError, Overloaded
from gateway.generation import Generation
from gateway.vacancy import Queue, Vacancy

EVENT_BYTES = 200  # of a stream, for each of its tokens, where nobody has counted them
# An answer takes its time too: who waits up to its deadline is served for nothing. So much of what is left to a call is
# kept for it: twice what answers take, which nineteen in twenty keep to where lengths are log-normal with a σ of 0.5,
# and three quarters of it at most.
ANSWER_HOLDS, ANSWER_SHARE = 2.0, 0.75
STEP_S = 1.0  # when to come again, where nothing else is known


class Admit:
    """Refuses with 503 and Retry-After who could not be let in in time, at once where that can be foreseen; when too
    many wait already; and while draining.

    Whoever finds no room waits until some candidate of its route has some, in the fair order of its tenants' weights
    and priorities: as long as `Vacancy` allows or the queue deadline of the call's terms, whichever is sooner, and
    never so long that its own deadline leaves no time for an answer, or is past (504). Between the last look at the
    room and the lease that `Dispatch` takes there is no await, so the room that was seen is the room that is taken.

    Charges each tenant's counter with what it gets: the input here, the output when the generation ends.
    """

    def __init__(self, vacancy: Vacancy, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._vacancy = vacancy
        self._clock = clock
        self.draining = False

    def __call__(self, call: Call, inner: Handler) -> Awaitable[Reply]:
        queue = self._vacancy.queue_of(call.route)
        must_wait = self.must_wait(call)
        if not must_wait and not queue.bounded:
            return inner(call)
        return self._admitted(call, inner, queue, must_wait)

    async def _admitted(self, call: Call, inner: Handler, queue: Queue, must_wait: bool) -> Reply:
        if must_wait:
            await self._wait(call, queue)
        else:
            queue.passes(call)
        later = call.request.stream or call.model.needs_ids  # else it comes whole, and its usage with it
        if later:
            call.generation.scope.push(Produced(call, queue))
        reply = await inner(call)
        if not later:
            if type(reply.events) is Single:
                queue.produced(call, tokens_of(call))
            else:
                call.generation.scope.push(Produced(call, queue))
        return reply

    def must_wait(self, call: Call) -> bool:
        """Whether there is no room for a call now, so that it waits. Raises what it would be refused with at once."""
        if self.draining:
            raise refusal("The gateway is shutting down.", code="draining")
        queue = self._vacancy.queue_of(call.route)
        if queue.open_to(call):
            return False
        now = self._clock()
        wait_s, drain_s = queue.predict(call, now)
        patience_s = self.patience_s(call)
        left_s = call.deadline - now - for_answer_s(call, queue, now, ANSWER_HOLDS)
        later_s = queue.shedder.shed(now, min(left_s, patience_s), wait_s, drain_s)
        if later_s is not None:
            message = f"The gateway is overloaded: there would be no room for about {wait_s:.3g} s."
            raise refusal(message, code="overloaded", later_s=later_s)
        if queue.full and queue.loser(call) is None:
            raise full(queue, drain_s)
        return True

    def patience_s(self, call: Call) -> float:
        """Tell how long a call waits for room at most, its own deadline apart."""
        deadline_s, max_wait_s = call.terms.queue_deadline_s, self._vacancy.max_wait_s
        return max_wait_s if deadline_s is None else min(max_wait_s, deadline_s)

    def drain(self) -> None:
        """Refuse from now on, and send those away who wait."""
        self.draining = True
        self._vacancy.call_all()

    async def _wait(self, call: Call, queue: Queue) -> None:
        patience_s, now = self.patience_s(call), self._clock()
        latest = min(now + patience_s, call.deadline - for_answer_s(call, queue, now, 1.0))
        if queue.full and (loser := queue.loser(call)) is not None:
            queue.crowd_out(loser, full(queue, queue.predict(call, now)[1]))
        turn = queue.join(call)
        try:
            while (remaining_s := latest - self._clock()) > 0:
                woken = await turn.wait(remaining_s)
                if self.draining:
                    raise refusal("The gateway is shutting down.", code="draining")
                if woken and queue.start(turn):
                    return
            raise self._too_late(call, queue, latest, patience_s)
        finally:
            if turn in queue:
                queue.leave(turn)

    def _too_late(self, call: Call, queue: Queue, latest: float, patience_s: float) -> GatewayError:
        if latest == call.deadline:
            return out_of_time(call, " while it waited for room")
        now = self._clock()
        later_s = queue.shedder.retry_after_s(queue.predict(call, now)[1])
        within = f"within {patience_s:g} s" if call.deadline - now > patience_s else "in time for an answer"
        return refusal(f"The gateway is overloaded: no room {within}.", code="no_room", later_s=later_s)


class Produced:
    """The exit half: charges what an answer brought. Stands above the attempts, which say it."""

    __slots__ = ("_call", "_queue")

    def __init__(self, call: Call, queue: Queue) -> None:
        self._call = call
        self._queue = queue

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._queue.produced(self._call, tokens_of(self._call))


def for_answer_s(call: Call, queue: Queue, now: float, holds: float) -> float:
    """Tell how much of the time that is left to a call is kept for its answer."""
    return min(holds * queue.shedder.hold_s, ANSWER_SHARE * max(call.deadline - now, 0.0))


def tokens_of(call: Call) -> int:
    """Tell how many tokens came of a call, as well as anybody knows: a tenant cannot hide them by not asking."""
    generation: Generation = call.generation
    if generation.usage is not None:
        return generation.usage.completion
    if generation.emitted:
        return sum(map(len, generation.emitted.values()))
    if generation.reservation is not None:
        return generation.reservation.holder.output
    return call.sent_bytes // EVENT_BYTES


def full(queue: Queue, drain_s: float | None) -> Overloaded:
    """The refusal of who finds no place to wait in, or loses it to somebody who has had less."""
    message = f"The gateway is overloaded: {queue.max_waiting} requests wait already."
    return refusal(message, code="queue_full", later_s=queue.shedder.retry_after_s(drain_s))


def refusal(message: str, *, code: str, later_s: float = STEP_S) -> Overloaded:
    """A 503 that says when to come again: in whole seconds, and for those who read it in milliseconds."""
    headers = {"retry-after": str(max(ceil(later_s), 1)), "retry-after-ms": str(ceil(later_s * 1000))}
    return Overloaded(message, code=code, headers=headers)
