"""Admit: is there room now, soon, or not in time?"""

import time
from collections.abc import Callable

from gateway.call import Call, Handler, Reply
from gateway.errors import DeadlineExceeded, GatewayError, Overloaded
from gateway.vacancy import Vacancy

RETRY_AFTER = {"retry-after": "1"}


class Admit:
    """Refuses with 503 and Retry-After when too many wait already, when no room came in time, and while draining.

    Waits in order of arrival until some candidate of the call's route has room: at most `max_wait_s` or the queue
    deadline of the call's terms, whichever is sooner, and never past the call's own deadline (504). Between the last
    look at the room and the lease that `Dispatch` takes there is no await, so the room that was seen is the room that
    is taken. Acquires nothing itself.
    """

    def __init__(
        self,
        vacancy: Vacancy,
        *,
        max_waiting: int = 256,
        max_wait_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._vacancy = vacancy
        self._max_waiting = max_waiting
        self._max_wait_s = max_wait_s
        self._clock = clock
        self.draining = False

    async def __call__(self, call: Call, inner: Handler) -> Reply:
        if self.must_wait(call):
            await self._wait(call)
        return await inner(call)

    def must_wait(self, call: Call) -> bool:
        """Whether there is no room for a call now, so that it waits. Raises what it would be refused with at once."""
        if self.draining:
            raise refusal("The gateway is shutting down.", code="draining")
        if self._vacancy.open_to(call.route):
            return False
        if self._vacancy.num_waiting >= self._max_waiting:
            raise refusal(f"The gateway is overloaded: {self._max_waiting} requests wait already.", code="queue_full")
        return True

    def patience_s(self, call: Call) -> float:
        """Tell how long a call waits for room at most, its own deadline apart."""
        deadline_s = call.terms.queue_deadline_s
        return self._max_wait_s if deadline_s is None else min(self._max_wait_s, deadline_s)

    def drain(self) -> None:
        """Refuse from now on, and send those away who wait."""
        self.draining = True
        self._vacancy.call_all()

    async def _wait(self, call: Call) -> None:
        patience_s = self.patience_s(call)
        latest = min(self._clock() + patience_s, call.deadline)
        turn = self._vacancy.join(call.route)
        try:
            while not self._vacancy.open_to(call.route, turn):
                remaining_s = latest - self._clock()
                if remaining_s <= 0:
                    raise _too_late(call, latest, patience_s)
                await turn.wait(remaining_s)
                if self.draining:
                    raise refusal("The gateway is shutting down.", code="draining")
        finally:
            self._vacancy.leave(turn)


def _too_late(call: Call, latest: float, patience_s: float) -> GatewayError:
    if latest == call.deadline:
        message = "The request's total deadline ran out while it waited for room."
        return DeadlineExceeded(message, code="deadline_exceeded")
    return refusal(f"The gateway is overloaded: no room within {patience_s:g} s.", code="no_room")


def refusal(message: str, *, code: str) -> Overloaded:
    """A 503 that says when to come again."""
    return Overloaded(message, code=code, headers=RETRY_AFTER)
