"""Dispatch: the last handler, which sends attempts until one answers.

An attempt is one sending to one upstream. What it holds (the upstream's slot, the running answer) stands on the
generation's scope and is given back there on every path. Its outcome is decided once, in `classify`, when it ends;
breaker, retry budget, limits and telemetry read it and never look at the error again.

An answer is primed: the first event is awaited before the caller sees a status, so that an upstream which accepts and
then fails still becomes an error with a status of its own.

For now the route is tried in order, and the next upstream only where nothing can have been sent to the one before.
Retries and fallbacks with their one budget take their place in the loop of `__call__`; hedging starts a second
`Running` beside the first there and keeps the one that is primed first; a breaker's `allow` stands beside the look at
the room, and its `record` at `Running.aclose`; a continuation after the first event follows in
`Running.__anext__`.
"""

import time
from collections.abc import Callable
from types import TracebackType

from gateway.call import Attempt, Call, Event, Events, Reply, Single
from gateway.departure import departure_of
from gateway.errors import GatewayError, UpstreamError, UpstreamFailure
from gateway.generation import Generation
from gateway.stages.admit import refusal
from gateway.upstreams.base import Lease, Upstream
from gateway.vacancy import Vacancy, has_room
from policies.outcome import Outcome

# Statuses below 500 that speak of the upstream, or of our credentials there, and not of the request.
NOT_THE_REQUEST = frozenset((401, 403, 407, 408, 425, 429))


def classify(error: GatewayError) -> Outcome:
    """Tell what a failed attempt says about the upstream: nothing, where the request was at fault."""
    if not isinstance(error, UpstreamError):
        return Outcome.IGNORED
    answered = error.answered
    blameless = answered is not None and 400 <= answered < 500 and answered not in NOT_THE_REQUEST
    return Outcome.IGNORED if blameless else Outcome.DROPPED


class Dispatch:
    """Sends a call to the upstreams of its route. Refuses with 503 when none has room, with 502 and 504 when they fail.

    Enters each attempt on the generation's scope.
    """

    def __init__(self, vacancy: Vacancy, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._vacancy = vacancy
        self._clock = clock

    async def __call__(self, call: Call) -> Reply:
        failed: UpstreamError | None = None
        for upstream in call.route:
            if not has_room(upstream):
                continue
            attempt = Attempt(upstream.name, self._clock())
            call.attempts.append(attempt)
            running = Running(attempt, upstream.lease(), self._vacancy, call.generation, self._clock)
            call.generation.scope.push(running)
            try:
                return await running.begin(upstream, call)
            except UpstreamError as error:
                if error.sent:
                    raise
                await running.aclose()
                failed = error
        if failed is not None:
            raise failed
        raise refusal("The gateway is overloaded: no upstream has room.", code="no_room")


class Running:
    """One attempt under way: its slot, its answer and how it ended.

    A context that ends the attempt, and the events of its answer, on which it notes what they say of the generation.
    Only an answer that came whole keeps its own events: there is nothing left to note or to close.
    """

    __slots__ = (
        "_attempt",
        "_clock",
        "_compared",
        "_error",
        "_events",
        "_finished",
        "_first",
        "_generation",
        "_lease",
        "_vacancy",
    )

    def __init__(
        self,
        attempt: Attempt,
        lease: Lease,
        vacancy: Vacancy,
        generation: Generation,
        clock: Callable[[], float],
    ) -> None:
        self._attempt = attempt
        self._lease = lease
        self._vacancy = vacancy
        self._generation = generation
        self._clock = clock
        self._events: Events | None = None
        self._first: Event | None = None
        self._compared: Call | None = None  # whose usage, when it is there, is held against what we counted
        self._error: GatewayError | None = None
        self._finished = False
        lease.__enter__()

    async def begin(self, upstream: Upstream, call: Call) -> Reply:
        """Send, and wait for the first event. Raises what the upstream raised."""
        if not upstream.takes_ids and call.tokens.exact:
            self._compared = call
        try:
            reply = await upstream.send(call)
            events = reply.events
            if type(events) is Single and events.event is not None:  # stays there, to be taken without waiting
                self._attempt.first_event = self._clock()
                self._finished = True
                note(events.event, self._generation)
                return reply
            self._events = events
            self._first = await events.__anext__()
        except StopAsyncIteration:
            self._error = UpstreamError("The upstream's answer is empty.", kind=UpstreamFailure.UNFINISHED)
            raise self._error from None
        except GatewayError as error:
            self._error = error
            raise
        self._attempt.first_event = self._clock()
        note(self._first, self._generation)
        reply.events = self
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
            note(event, self._generation)
        return event

    async def aclose(self) -> None:
        """Close the answer, free the slot, decide the outcome. The second time it does nothing."""
        attempt = self._attempt
        if attempt.ended is not None:
            return
        attempt.ended = self._clock()
        if self._error is not None:
            attempt.outcome = classify(self._error)
            attempt.error = self._error.kind if isinstance(self._error, UpstreamError) else self._error.label
        else:
            attempt.outcome = Outcome.SUCCESS if self._finished else Outcome.IGNORED
            if self._compared is not None:
                attempt.departure = departure_of(self._compared)
        events, self._events = self._events, None
        try:
            if events is not None:
                await events.aclose()
        finally:
            self._lease.__exit__(None, None, None)
            self._vacancy.announce()

    async def __aenter__(self) -> "Running":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


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
