"""Dispatch: the last handler, which sends attempts until one answers.

What an attempt holds (`gateway/attempts/attempt.py`) stands on the generation's scope and is given back there on every
path. The first goes to the first upstream of the route that has room and whose breaker is closed. Where it fails, the
model's `Recovery` says whether another one follows, where and when, and its budget whether it is paid for: one budget
for retries and hedges, at most three attempts a call over all upstreams. Where it is late with its first event, a
second one may be sent beside it (`gateway/attempts/hedging.py`).

Between the look at room and breaker, the budget, the breaker's pass and the slot there is no await: what was seen is
what is taken. Nothing is sent again once the caller has seen a first event; a continuation from there would take its
place in `Running.__anext__`.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from gateway.attempts.attempt import Failed, Running
from gateway.attempts.hedging import Race
from gateway.attempts.recovery import unavailable
from gateway.call import AttemptKind, Call, ChatPrompt, Reply
from gateway.errors import GatewayError
from gateway.stages.admit import refusal
from gateway.upstreams.base import Upstream
from gateway.vacancy import Vacancy
from policies.hedge import HedgePolicy
from policies.retry import advice

RETRY_COUNT = b"x-stainless-retry-count"
MOST_RETRIES = 100  # that a client is believed
AGAIN = frozenset((408, 409, 429))  # beside those from 500 on: what clients send again by themselves
NO_RETRY = {"x-should-retry": "false"}


class Dispatch:
    """Sends a call to the upstreams of its route. Refuses with 503 when none has room, with 502 and 504 when they fail.

    Enters each attempt on the generation's scope.
    """

    def __init__(
        self,
        vacancy: Vacancy,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._vacancy = vacancy
        self._clock = clock
        self._sleep = sleep

    async def __call__(self, call: Call) -> Reply:
        now = self._clock()
        recovery = call.model.recovery
        upstream = call.route[0]
        if not upstream.fits(call) or not recovery.well:
            upstream = self._first_choice(call, now)
        running = Running(call, upstream, AttemptKind.FIRST, self._vacancy, self._clock, now)
        hedges = recovery.hedges
        if hedges and (wait_s := self._hedge_after(call, upstream, hedges[upstream], now)) is not None:
            return await self._race(call, running, hedges[upstream], wait_s)
        call.generation.scope.push(running)
        try:
            await running.begin()
        except GatewayError:
            failed = await running.failed()
        else:
            return running.take()
        return await self._again(call, [failed])

    def _start(self, call: Call, upstream: Upstream, kind: AttemptKind, now: float) -> Running:
        return Running(call, upstream, kind, self._vacancy, self._clock, now)

    def _first_choice(self, call: Call, now: float) -> Upstream:
        """Raises `Overloaded`: there is no room, or every breaker is open."""
        recovery = call.model.recovery
        wait_s = float("inf")
        for upstream in call.route:
            waits_s = recovery.wait_s(upstream, now)
            if not waits_s and upstream.fits(call):
                return upstream
            wait_s = min(wait_s, waits_s)
        if wait_s:
            raise unavailable(wait_s)
        raise refusal("The gateway is overloaded: no upstream has room.", code="no_room")

    async def _again(self, call: Call, failed: list[Failed]) -> Reply:
        """Send more attempts for those that failed, as long as it is allowed and paid for; else raise what was met."""
        recovery = call.model.recovery
        by_client = client_retries(call)
        while True:
            last, now = failed[-1], self._clock()
            made = len(call.attempts)
            upstream = self._next(call, failed, now)
            elsewhere = upstream is not None and upstream is not last.upstream
            pause_s = recovery.retry.delay(
                last.failure, made, call.deadline - now, elsewhere=elsewhere, client_retries=by_client
            )
            if upstream is not None and pause_s:
                await self._sleep(pause_s)
                now = self._clock()
                upstream = self._next(call, failed, now)
                if elsewhere and upstream is last.upstream:  # for which the pause may have been too short
                    upstream = None
            left = recovery.retry.attempts_left(made, by_client)
            if upstream is None or pause_s is None:
                raise told(last, left, budget_spent=False)
            if not recovery.budget.withdraw(now):
                raise told(last, left, budget_spent=True)
            running = self._start(call, upstream, AttemptKind.RETRY, now)
            call.generation.scope.push(running)
            try:
                await running.begin()
            except GatewayError:
                failed.append(await running.failed())
            else:
                return running.take()

    def _next(self, call: Call, failed: Sequence[Failed], now: float) -> Upstream | None:
        """Where to try next: at one that was not tried yet, else at one that failed before, the last one last."""
        recovery, last = call.model.recovery, failed[-1].upstream
        again: Upstream | None = None
        for upstream in call.route:
            if recovery.wait_s(upstream, now) or not upstream.fits(call):
                continue
            failures = [each for each in failed if each.upstream is upstream]
            if not failures:
                return upstream
            if upstream is last:
                again = again or upstream
            elif all(each.repeatable(now) for each in failures) and again in (None, last):
                again = upstream
        return again

    def _hedge_after(self, call: Call, upstream: Upstream, hedge: HedgePolicy, now: float) -> float | None:
        """How long to wait for the first event before another attempt is sent beside the first; None: for ever.

        Nobody sees when an answer begins that an HTTP upstream sends whole, so that one is never late.
        """
        if not (call.request.stream or upstream.takes_ids) or len(call.route) < 2:
            return None
        rival = self._rival(call, upstream, now)
        return hedge.delay(
            now,
            call.tokens.input,
            call.deadline - now,
            acts=call.model.recovery.tools_act and may_call_tools(call),
            predicted_s=upstream.room().predicted_first_token_s,
            rival_s=None if rival is None else rival.room().predicted_first_token_s,
        )

    def _rival(self, call: Call, first: Upstream, now: float) -> Upstream | None:
        """Where a hedge would go: to one that is well and has room."""
        for upstream in call.route:
            if upstream is not first and not call.model.recovery.wait_s(upstream, now) and upstream.fits(call):
                return upstream
        return None

    async def _race(self, call: Call, first: Running, hedge: HedgePolicy, wait_s: float) -> Reply:
        """Wait for the first event, and from `wait_s` on for that of a second attempt too, if it may be sent."""
        recovery = call.model.recovery
        race = Race()
        call.generation.scope.push(race)
        race.enter(first)
        winner = await race.winner(wait_s)
        if winner is None and race.under_way and recovery.retry.attempts_left(1, client_retries(call)):
            now = self._clock()
            rival = self._rival(call, first.upstream, now)
            if rival is not None and hedge.take() and recovery.budget.withdraw(now):
                race.enter(self._start(call, rival, AttemptKind.HEDGE, now))
        if winner is None:
            winner = await race.winner()
        if winner is not None:
            return winner.take()
        return await self._again(call, race.failed)


def may_call_tools(call: Call) -> bool:
    """Whether an answer may call tools."""
    prompt = call.request.prompt
    return isinstance(prompt, ChatPrompt) and bool(prompt.tools) and prompt.tool_choice != "none"


def client_retries(call: Call) -> int:
    """How often the client says to have sent this before."""
    count = call.headers.get(RETRY_COUNT, b"")
    return min(int(count), MOST_RETRIES) if count.isdigit() and len(count) < 5 else 0


def told(failed: Failed, attempts_left: int, *, budget_spent: bool) -> GatewayError:
    """Give the error; tell a client that would send it again not to, where we have done what could be done."""
    error, failure = failed.error, failed.failure
    final = failure.should_retry is False or advice(failure, attempts_left, budget_spent=budget_spent) is False
    if final and (error.status >= 500 or error.status in AGAIN):
        error.headers = {**error.headers, **NO_RETRY}
    return error
