"""One attempt: one sending to one upstream, from its slot to its outcome.

An answer is primed: the first event is awaited before the caller sees a status, so that an upstream which accepts and
then fails still becomes an error with a status of its own.

The outcome is decided once, when the attempt ends, and told to everybody who learns from it: to the breaker, whose pass
the attempt has, to the budget, to the lease and to the hedge's histogram. Nobody else looks at the error again.
"""

from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple

from gateway.call import Attempt, AttemptKind, Call, Event, Events, Reply, Single
from gateway.errors import BadRequest, DeadlineExceeded, GatewayError, Overloaded, UpstreamError, UpstreamFailure
from gateway.generation import Generation
from gateway.quotas.departure import departure_of
from gateway.upstreams.base import Upstream
from gateway.vacancy import Vacancy
from policies.breaker import State
from policies.outcome import Outcome
from policies.retry import Failure, Where, judge

# How an upstream refuses before it begins.
REFUSALS = frozenset((UpstreamFailure.STATUS, UpstreamFailure.IN_BAND))


class Failed(NamedTuple):
    """An attempt that failed, at `ended` loop seconds: what it met, and where the call may be tried again."""

    upstream: Upstream
    error: GatewayError
    failure: Failure
    where: Where
    ended: float

    def repeatable(self, now: float) -> bool:
        """Whether this upstream may be asked again: it may do better, and does not want to be left alone."""
        return self.where is Where.ANYWHERE and self.ended + (self.failure.retry_after_s or 0.0) <= now


class Running:
    """One attempt under way: its slot, its answer and how it ended.

    A context that ends the attempt, and the events of its answer, on which it notes what they say of the generation.
    Only an answer that came whole keeps its own events: there is nothing left to note or to close.
    """

    __slots__ = (
        "_breaker",
        "_call",
        "_clock",
        "_compared",
        "_error",
        "_events",
        "_failed",
        "_finished",
        "_first",
        "_lease",
        "_pass",
        "_reply",
        "_vacancy",
        "attempt",
        "upstream",
    )

    def __init__(
        self,
        call: Call,
        upstream: Upstream,
        kind: AttemptKind,
        vacancy: Vacancy,
        clock: Callable[[], float],
        now: float,
    ) -> None:
        """Take a slot and the breaker's pass. Whoever begins an attempt has looked for both with no await between."""
        self.attempt = Attempt(upstream.name, now, kind)
        self.upstream = upstream
        self._call = call
        self._vacancy = vacancy
        self._clock = clock
        self._reply: Reply | None = None
        self._events: Events | None = None
        self._first: Event | None = None
        self._error: GatewayError | None = None
        self._failed: Failed | None = None
        self._finished = False
        self._compared = call.tokens.exact and not upstream.takes_ids  # its usage is held against what we counted
        self._pass = 0
        self._breaker = breaker = call.model.recovery.breakers.get(upstream)
        if breaker is not None:
            passed = breaker.admit(now)
            assert passed is not None, "who sends has seen that the breaker lets something through"
            self._pass = passed
        self._lease = upstream.lease()
        self._lease.__enter__()
        call.attempts.append(self.attempt)

    async def begin(self) -> None:
        """Send, and wait for the first event. Raises what the upstream raised."""
        try:
            reply = await self.upstream.send(self._call)
            events = reply.events
            if type(events) is Single and events.event is not None:  # stays there, to be taken without waiting
                self._finished = True
            else:
                self._events = events
                self._first = await events.__anext__()
        except StopAsyncIteration:
            self._error = UpstreamError("The upstream's answer is empty.", kind=UpstreamFailure.UNFINISHED)
            raise self._error from None
        except GatewayError as error:
            self._error = error
            raise
        self._reply = reply
        attempt, call = self.attempt, self._call
        attempt.first_event = now = self._clock()
        # Nobody knows when an answer began that came whole.
        first_event_s = None if self._finished else now - attempt.started
        self._lease.sample(now, attempt.started, Outcome.SUCCESS, call.tokens.input, first_event_s)
        if self._breaker is not None and self._breaker.state is not State.CLOSED:  # it may be a probe
            self._breaker.record(now, self._pass, Outcome.SUCCESS, first_event_s)
        if first_event_s is not None and call.model.recovery.hedges:
            call.model.recovery.hedges[self.upstream].observe(now, call.tokens.input, first_event_s)

    def take(self) -> Reply:
        """Give the answer that has begun; from now on it is the generation's."""
        reply = self._reply
        assert reply is not None, "an answer is taken once it has begun"
        events = reply.events
        if self._first is not None:
            note(self._first, self._call.generation)
            reply.events = self
        elif type(events) is Single and events.event is not None:
            note(events.event, self._call.generation)
        return reply

    def __aiter__(self) -> "Running":
        return self

    async def __anext__(self) -> Event:
        event = self._first
        if event is not None:
            self._first = None
            return event
        events = self._events
        if events is None:
            raise StopAsyncIteration
        try:
            event = await events.__anext__()
        except StopAsyncIteration:
            self._finished = True
            raise
        except GatewayError as error:
            self._error = error
            raise
        if event.raw is None or event.usage is not None:
            note(event, self._call.generation)
        return event

    async def failed(self) -> "Failed":
        """Close an attempt that met an error, and tell what is known of it."""
        await self.aclose()
        assert self._failed is not None, "it met an error"
        return self._failed

    async def aclose(self) -> None:
        """Close the answer, free the slot, decide the outcome and tell it. The second time it does nothing."""
        attempt = self.attempt
        if attempt.ended is not None:
            return
        attempt.ended = now = self._clock()
        if self._finished:
            attempt.outcome = outcome = Outcome.SUCCESS
            self._call.model.recovery.budget.deposit(now)
        else:
            outcome = self._judge(now)
        events = self._events
        if self._breaker is not None:
            first = attempt.first_event if events is not None else None  # as above
            self._breaker.record(now, self._pass, outcome, None if first is None else first - attempt.started)
        if self._compared and self._error is None and not attempt.lost:
            attempt.departure = departure_of(self._call)
        self._events = None
        try:
            if events is not None:
                await events.aclose()
        finally:
            self._lease.__exit__(None, None, None)
            self._vacancy.freed(self.upstream, now, now - attempt.started)

    def _judge(self, now: float) -> Outcome:
        """Decide the outcome of an attempt that brought no whole answer, and tell what is told of those alone."""
        attempt, call = self.attempt, self._call
        error, hedges = self._error, call.model.recovery.hedges
        if error is not None:
            failure = failure_of(error, begun=attempt.first_event is not None)
            outcome, where = judge(failure)
            self._failed = Failed(self.upstream, error, failure, where, now)
            attempt.outcome = outcome
            attempt.error = error.kind if isinstance(error, UpstreamError) else error.label
            attempt.refused = refuses(error) and attempt.first_event is None
            if outcome is Outcome.DROPPED and attempt.first_event is None:
                self._lease.sample(now, attempt.started, outcome, call.tokens.input, None)
        else:
            attempt.outcome = outcome = Outcome.IGNORED
            if attempt.lost and attempt.first_event is not None:
                call.generation.lost += tokens_of(self._first)
            elif attempt.lost and hedges:
                hedges[self.upstream].observe(now, call.tokens.input, now - attempt.started)
        return outcome

    async def __aenter__(self) -> "Running":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


def failure_of(error: GatewayError, *, begun: bool) -> Failure:
    """Say what failed in the words that retries are decided by."""
    if isinstance(error, UpstreamError):
        return Failure(error.kind.value, begun, error.answered, error.retry_after_s, error.should_retry)
    if isinstance(error, Overloaded):
        return Failure("overloaded", begun)
    return Failure("deadline" if isinstance(error, DeadlineExceeded) else "request", begun)


def refuses(error: GatewayError) -> bool:
    """Whether an error shows that no work was begun: it never left us, or was turned away at the door."""
    if isinstance(error, UpstreamError):
        return not error.sent or error.kind in REFUSALS
    return isinstance(error, BadRequest | Overloaded)  # which is how an engine refuses


def tokens_of(event: Event | None) -> int:
    """Tell how many tokens the first event of an answer brought, of which nobody reads more."""
    return 1 if event is None else len(event.token_ids) or 1


def note(event: Event, generation: Generation) -> None:
    """Write down what an event says: usage, token ids and ends of choices."""
    if event.usage is not None:
        generation.usage = event.usage
    if event.token_ids:
        generation.emitted.setdefault(event.index, []).extend(event.token_ids)
    if event.finish is not None:
        generation.finishes[event.index] = event.finish
        if event.limit is not None:
            generation.limit = event.limit
