"""Hedges: a second attempt beside one that is late, and what becomes of the one that loses. In virtual time."""

import asyncio
import gc
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import pytest

from gateway.attempts.recovery import Recovery
from gateway.call import AttemptKind, Call, ChatPrompt, Event, Usage
from gateway.errors import BadRequest, UpstreamError, UpstreamFailure
from gateway.upstreams.base import Room
from policies.breaker import BreakerTerms, Cause
from policies.hedge import HedgeTerms
from policies.outcome import Outcome
from policies.retry import RetryTerms
from policies.retry_budget import BudgetTerms
from tests.rig.in_process import InProcess, call_to
from tests.rig.simulated import Answered, Simulated, World, now
from tests.rig.virtual_time import run_virtually

TERMS = HedgeTerms(min_points=10, burst=100.0, share=1.0)
RESET = (UpstreamFailure.RESET, None)


def world(
    first: Simulated,
    second: Simulated,
    *,
    hedge: HedgeTerms | None = TERMS,
    budget: BudgetTerms | None = None,
    max_attempts: int = 3,
) -> World:
    pair = (first, second)
    recovery = Recovery(
        pair,
        hedge=hedge,
        budget=budget,
        retry=RetryTerms(max_attempts=max_attempts),
        breakers=dict.fromkeys(pair, BreakerTerms()),
        rng=Random(1),
    )
    return World(recovery, pair)


async def warmed(around: World) -> None:
    """Let the first upstream's histogram learn what is usual: 50 ms."""
    for _ in range(12):
        await around.ask()
    for upstream in around.upstreams:
        upstream.sent.clear()


def slow(seconds: float) -> Callable[[], float]:
    return lambda: seconds


def virtually(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """Make a test of what happens in virtual time."""

    def run() -> None:
        run_virtually(test())  # type: ignore[arg-type]

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@virtually
async def test_a_late_first_event_sends_a_second_attempt_and_the_quicker_one_answers() -> None:
    first, second = Simulated(name="first"), Simulated(name="second")
    around = world(first, second)
    await warmed(around)
    first.first_event_s = slow(5.0)

    answered = await around.ask()

    assert answered.error is None
    assert answered.first_event_s is not None
    assert 0.1 < answered.first_event_s < 0.2
    assert [(each.upstream, each.kind, each.outcome, each.lost) for each in answered.attempts] == [
        ("first", AttemptKind.FIRST, Outcome.IGNORED, True),
        ("second", AttemptKind.HEDGE, Outcome.SUCCESS, False),
    ]
    assert answered.usage == Usage(1, 1)
    assert (first.leased, first.running, second.leased, second.running) == (0, 0, 0, 0)


@virtually
async def test_the_loser_is_cancelled_in_the_moment_in_which_the_winner_begins() -> None:
    first, second = Simulated(), Simulated()
    around = world(first, second)
    await warmed(around)
    first.first_event_s = slow(5.0)

    answered = await around.ask()

    (left,) = first.left
    assert answered.first_event_s is not None
    assert left - (answered.arrived + answered.first_event_s) == 0.0


@virtually
async def test_the_first_may_still_win_and_the_hedge_is_cancelled() -> None:
    first, second = Simulated(), Simulated(first_event_s=slow(9.0))
    around = world(first, second)
    await warmed(around)
    first.first_event_s = slow(0.2)

    answered = await around.ask()

    assert answered.first_event_s == pytest.approx(0.2)
    assert [each.lost for each in answered.attempts] == [False, True]
    assert len(second.left) == 1


@virtually
async def test_what_is_not_late_costs_no_second_attempt() -> None:
    first, second = Simulated(), Simulated()
    around = world(first, second)
    await warmed(around)

    await around.ask()

    assert (len(first.sent), len(second.sent)) == (1, 0)


@pytest.mark.parametrize(
    ("why", "fields"),
    [
        ("tools act", {"prompt": ChatPrompt([{"role": "user", "content": "x"}], tools=[{"type": "function"}])}),
        ("nobody sees when a whole answer begins", {"stream": False}),
    ],
)
def test_some_calls_are_never_hedged(why: str, fields: dict[str, Any]) -> None:
    async def run() -> None:
        first, second = Simulated(), Simulated()
        around = world(first, second)
        await warmed(around)
        first.first_event_s = slow(5.0)

        await around.ask(**fields)

        assert (len(first.sent), len(second.sent)) == (1, 0), why

    run_virtually(run())


@virtually
async def test_tools_that_change_nothing_may_be_hedged_where_the_operator_says_so() -> None:
    first, second = Simulated(), Simulated()
    around = world(first, second)
    around.recovery.tools_act = False
    await warmed(around)
    first.first_event_s = slow(5.0)

    await around.ask(prompt=ChatPrompt([{"role": "user", "content": "x"}], tools=[{"type": "function"}]))

    assert len(second.sent) == 1


@pytest.mark.parametrize("why", ["budget", "share", "attempts", "breaker", "room", "client"])
def test_there_is_no_hedge_without(why: str) -> None:
    async def run() -> None:
        first, second = Simulated(), Simulated()
        around = world(
            first,
            second,
            budget=BudgetTerms(ratio=0.0, floor_per_s=0.0) if why == "budget" else None,
            hedge=HedgeTerms(min_points=10, share=0.0) if why == "share" else TERMS,
            max_attempts=1 if why == "attempts" else 3,
        )
        await warmed(around)
        if why == "share":
            assert around.recovery.hedges[first].take()  # the one that it begins with
        if why == "breaker":
            around.recovery.breakers[second].trip(now(), Cause.DEVICE_ERROR)
        second.slots = 0 if why == "room" else None
        first.first_event_s = slow(5.0)

        answered = await around.ask({b"x-stainless-retry-count": b"2"} if why == "client" else None)

        assert answered.first_event_s == pytest.approx(5.0)
        assert (len(first.sent), len(second.sent)) == (1, 0)

    run_virtually(run())


@virtually
async def test_a_first_that_fails_while_the_hedge_runs_leaves_the_race_to_the_hedge() -> None:
    first, second = Simulated(), Simulated(first_event_s=slow(0.5))
    around = world(first, second)
    await warmed(around)
    first.failing, first.fails_after_s, first.failure = lambda _: True, 0.3, RESET

    answered = await around.ask()

    assert answered.error is None
    assert [each.outcome for each in answered.attempts] == [Outcome.DROPPED, Outcome.SUCCESS]


@virtually
async def test_where_both_fail_a_retry_follows_and_three_is_still_the_most() -> None:
    first, second = Simulated(name="first"), Simulated(name="second")
    around = world(first, second)
    await warmed(around)
    for upstream in (first, second):
        upstream.failing, upstream.fails_after_s, upstream.failure = lambda _: True, 0.3, RESET

    answered = await around.ask()

    assert isinstance(answered.error, UpstreamError)
    kinds = [each.kind for each in answered.attempts]
    assert kinds == [AttemptKind.FIRST, AttemptKind.HEDGE, AttemptKind.RETRY]


@virtually
async def test_a_first_that_fails_before_it_is_late_is_retried_and_not_hedged() -> None:
    first, second = Simulated(), Simulated()
    around = world(first, second)
    await warmed(around)
    first.failing, first.fails_after_s = lambda _: True, 0.01

    answered = await around.ask()

    assert [each.kind for each in answered.attempts] == [AttemptKind.FIRST, AttemptKind.RETRY]


@virtually
async def test_a_request_at_fault_is_told_so_and_not_tried_elsewhere() -> None:
    at_fault = BadRequest("x")
    first, second = InProcess(at_send=at_fault, rounds=1), InProcess()
    recovery = Recovery((first, second), hedge=HedgeTerms(min_points=1))
    recovery.hedges[first].observe(now(), 1, 0.05)
    call = call_to(first, second, recovery=recovery, stream=True)
    around = World(recovery, ())

    with pytest.raises(BadRequest):
        async with call.scope:
            await around.handler(call)

    assert second.calls == []


@pytest.mark.fault_row(20)
@virtually
async def test_a_hedge_stands_beside_nothing_once_streaming_has_begun() -> None:
    first, second = Simulated(rest_s=60.0), Simulated()
    around = world(first, second)
    await warmed(around)

    answered = await around.ask()

    assert answered.error is None
    assert second.sent == []


class Predicting(Simulated):
    """An upstream that says when a first event would come."""

    predicted_s: float | None = None

    def room(self) -> Room:
        return Room(predicted_first_token_s=self.predicted_s)


@pytest.mark.parametrize(("theirs", "hedged"), [(None, True), (1.0, True), (9.0, False)])
def test_a_first_event_predicted_too_late_sends_the_second_attempt_at_once(theirs: float | None, hedged: bool) -> None:
    async def run() -> Answered:
        first, second = Predicting(first_event_s=slow(8.0)), Predicting()
        first.predicted_s, second.predicted_s = 8.0, theirs
        return await world(first, second, hedge=HedgeTerms(objective_s=2.0)).ask()

    answered = run_virtually(run())

    assert answered.first_event_s == pytest.approx(0.05 if hedged else 8.0)


@pytest.mark.parametrize("after_s", [0.01, 0.1, 0.17, 0.4])
@pytest.mark.parametrize("slower", [True, False])
def test_whoever_leaves_a_race_leaves_nothing_running(after_s: float, slower: bool) -> None:
    async def run() -> None:
        first, second = Simulated(), Simulated(first_event_s=slow(0.2), rest_s=9.0)
        around = world(first, second)
        await warmed(around)
        first.first_event_s = slow(5.0)
        first.rest_s = 9.0
        tasks = len(asyncio.all_tasks())
        asking = asyncio.ensure_future(around.ask())
        await asyncio.sleep(after_s)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

        assert (first.leased, first.running, second.leased, second.running) == (0, 0, 0, 0)
        assert len(asyncio.all_tasks()) == tasks

    run_virtually(run())


class Stubborn(Simulated):
    """Takes its time to let go."""

    async def _answer(self, first_event_s: float):  # type: ignore[no-untyped-def]
        try:
            await asyncio.sleep(first_event_s)
            yield Event(text="x")
        finally:
            await asyncio.sleep(1.0)


@virtually
async def test_nobody_waits_for_a_loser_to_let_go_before_the_answer_is_over() -> None:
    first, second = Stubborn(), Simulated(rest_s=0.3)
    around = world(first, second)
    around.recovery.hedges[first].observe(now(), 1, 0.05)
    for _ in range(10):
        around.recovery.hedges[first].observe(now(), 1, 0.05)
    first.first_event_s = slow(5.0)

    answered = await around.ask()

    assert answered.first_event_s is not None
    assert answered.first_event_s < 0.2
    assert first.leased == 0


@virtually
async def test_where_both_begin_in_the_same_moment_one_answers_and_what_the_other_brought_is_charged() -> None:
    first, second = Simulated(), Simulated()
    around = world(first, second)
    await warmed(around)
    wait_s = around.recovery.hedges[first].snapshot(now()).waits_s[0]
    assert wait_s is not None
    first.first_event_s, second.first_event_s = slow(wait_s + 0.5), slow(0.5)
    call: Call = call_to(first, second, recovery=around.recovery, stream=True)

    async with call.scope:
        events = [event async for event in (await around.handler(call)).events]

    assert len(events) == 2
    assert sorted(each.lost for each in call.attempts) == [False, True]
    assert call.generation.lost == sum(each.lost and each.first_event is not None for each in call.attempts)
    assert call.generation.emitted == {0: [1]}
    assert (first.running, second.running) == (0, 0)


@virtually
async def test_a_loser_that_fails_in_the_same_moment_is_known_to_have_failed() -> None:
    first, second = Simulated(name="first"), Simulated(name="second")
    around = world(first, second)
    await warmed(around)
    wait_s = around.recovery.hedges[first].snapshot(now()).waits_s[0]
    assert wait_s is not None
    first.first_event_s = slow(1.0)
    second.failing, second.fails_after_s, second.failure = lambda _: True, 1.0 - wait_s, RESET
    forgotten: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: forgotten.append(context))

    answered = await around.ask()
    gc.collect()

    assert answered.error is None
    assert answered.attempts[1].outcome is Outcome.DROPPED
    assert forgotten == []


@virtually
async def test_a_defect_in_an_attempt_is_raised_and_leaves_nothing_running() -> None:
    class Defective(Simulated):
        async def send(self, call: Call):  # type: ignore[no-untyped-def]
            await asyncio.sleep(0.2)
            raise ZeroDivisionError

    first, second = Defective(), Simulated(first_event_s=slow(9.0))
    around = world(first, second)
    for _ in range(10):
        around.recovery.hedges[first].observe(now(), 1, 0.05)

    with pytest.raises(ZeroDivisionError):
        await around.ask()

    assert (first.leased, second.leased, second.running) == (0, 0, 0)


def test_where_nobody_asked_for_hedges_nothing_is_kept_for_them() -> None:
    pair = (Simulated(), Simulated())

    assert Recovery(pair).hedges == {}
    assert Recovery(pair[:1], hedge=HedgeTerms()).hedges == {}
