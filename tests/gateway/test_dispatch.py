"""Attempts: where they are sent, how they end, and that nothing of them stays behind."""

import asyncio
from contextlib import aclosing

import pytest

from gateway.attempts.attempt import failure_of
from gateway.attempts.dispatch import Dispatch
from gateway.call import AttemptKind, Event, FinishReason, Reply, Usage
from gateway.errors import (
    BadRequest,
    DeadlineExceeded,
    GatewayError,
    InternalError,
    Overloaded,
    UpstreamError,
    UpstreamFailure,
    UpstreamTimeout,
)
from gateway.vacancy import Vacancy
from policies.outcome import Outcome
from policies.retry import judge
from policies.tenant import UNLIMITED, Tenant
from tests.rig.in_process import END, WORDS, InProcess, call_to

REFUSED = UpstreamError("refused", kind=UpstreamFailure.CONNECT, sent=False)
RESET = UpstreamError("reset", kind=UpstreamFailure.RESET)


async def read(reply: Reply) -> list[Event]:
    async with aclosing(reply.events):
        return [event async for event in reply.events]


async def test_the_events_of_an_answer_pass_in_order_and_are_written_down() -> None:
    upstream = InProcess()
    call = call_to(upstream)

    async with call.scope:
        reply = await Dispatch(Vacancy())(call)
        assert upstream.leased == 1
        events = await read(reply)

    assert events == [*WORDS, END]
    assert call.generation.usage == Usage(3, 2)
    assert call.generation.emitted == {0: [1, 2]}
    assert call.generation.finishes == {0: FinishReason.STOP}
    (attempt,) = call.attempts
    assert (attempt.upstream, attempt.outcome, attempt.error) == ("in-process", Outcome.SUCCESS, None)
    assert attempt.started <= (attempt.first_event or 0.0) <= (attempt.ended or 0.0)
    assert (upstream.leased, upstream.running) == (0, 0)


async def test_an_error_before_the_first_event_is_raised_and_not_streamed() -> None:
    upstream = InProcess([RESET])
    call = call_to(upstream, retries=0)

    with pytest.raises(UpstreamError, match="reset"):
        async with call.scope:
            await Dispatch(Vacancy())(call)

    assert [attempt.outcome for attempt in call.attempts] == [Outcome.DROPPED]
    assert (upstream.leased, upstream.running) == (0, 0)


async def test_an_answer_without_any_event_is_an_error() -> None:
    call = call_to(InProcess([]), retries=0)

    with pytest.raises(UpstreamError) as caught:
        async with call.scope:
            await Dispatch(Vacancy())(call)

    assert caught.value.kind is UpstreamFailure.UNFINISHED


async def test_an_error_after_the_first_event_reaches_the_reader() -> None:
    upstream = InProcess([*WORDS, RESET])
    call = call_to(upstream)

    with pytest.raises(UpstreamError, match="reset"):
        async with call.scope:
            await read(await Dispatch(Vacancy())(call))

    (attempt,) = call.attempts
    assert (attempt.outcome, attempt.error) == (Outcome.DROPPED, "reset")
    assert call.generation.emitted == {0: [1, 2]}
    assert (upstream.leased, upstream.running) == (0, 0)


async def test_the_next_upstream_is_tried_where_nothing_was_sent() -> None:
    down, up = InProcess(at_send=REFUSED, name="down"), InProcess(name="up")
    call = call_to(down, up)

    async with call.scope:
        await read(await Dispatch(Vacancy())(call))
        assert down.leased == 0

    assert [(each.upstream, each.outcome) for each in call.attempts] == [
        ("down", Outcome.DROPPED),
        ("up", Outcome.SUCCESS),
    ]


@pytest.mark.parametrize("error", [BadRequest("x"), InternalError("x"), DeadlineExceeded("x")])
async def test_what_the_request_is_to_blame_for_is_not_sent_again(error: GatewayError) -> None:
    first, second = InProcess(at_send=error), InProcess()
    call = call_to(first, second)

    with pytest.raises(type(error)):
        async with call.scope:
            await Dispatch(Vacancy())(call)

    assert second.calls == []
    assert first.leased == 0


async def test_a_full_engine_is_no_reason_not_to_try_another_upstream() -> None:
    call = call_to(InProcess(at_send=Overloaded("full")), InProcess())

    async with call.scope:
        await read(await Dispatch(Vacancy())(call))

    assert [each.outcome for each in call.attempts] == [Outcome.IGNORED, Outcome.SUCCESS]


async def test_when_all_are_down_the_last_error_is_told() -> None:
    call = call_to(InProcess(at_send=RESET), InProcess(at_send=REFUSED), retries=1)

    with pytest.raises(UpstreamError, match="refused"):
        async with call.scope:
            await Dispatch(Vacancy())(call)

    assert [attempt.kind for attempt in call.attempts] == [AttemptKind.FIRST, AttemptKind.RETRY]


async def test_a_full_upstream_is_passed_by() -> None:
    full, free = InProcess(slots=0), InProcess()
    call = call_to(full, free)

    async with call.scope:
        await Dispatch(Vacancy())(call)

    assert (full.calls, len(free.calls)) == ([], 1)


async def test_where_all_are_full_nothing_is_sent() -> None:
    with pytest.raises(Overloaded):
        await Dispatch(Vacancy())(call_to(InProcess(slots=0)))


async def test_a_free_slot_is_announced() -> None:
    vacancy, upstream = Vacancy(), InProcess(slots=1)
    call = call_to(upstream)
    waits = call_to(upstream)
    waits.tenant, waits.terms = Tenant("t"), UNLIMITED
    turn = vacancy.queue_of([upstream]).join(waits)

    async with call.scope:
        await read(await Dispatch(vacancy)(call))
        waiting = asyncio.ensure_future(turn.wait(5.0))
        await asyncio.sleep(0)
        vacancy.announce()
        assert not waiting.done()

    assert await waiting


@pytest.mark.parametrize("events_read", [0, 1, 2])
async def test_whoever_leaves_takes_everything_along(events_read: int) -> None:
    """Cancelled before the first event, or between two: the slot is free, the upstream closed, nobody to blame."""
    hold = asyncio.Event()
    upstream = InProcess(hold=hold)
    call = call_to(upstream)

    async def run() -> None:
        async with call.scope:
            reply = await Dispatch(Vacancy())(call)
            async with aclosing(reply.events):
                async for _ in reply.events:
                    hold.clear()

    task = asyncio.ensure_future(run())
    for _ in range(events_read):
        hold.set()
        for _ in range(5):
            await asyncio.sleep(0)
        hold.clear()
    await asyncio.sleep(0)
    assert (upstream.leased, upstream.running) == (1, 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert (upstream.leased, upstream.running) == (0, 0)
    assert [attempt.outcome for attempt in call.attempts] == [Outcome.IGNORED]


async def test_a_reader_who_stops_early_leaves_nothing_behind() -> None:
    upstream = InProcess()
    call = call_to(upstream)

    async with call.scope:
        await Dispatch(Vacancy())(call)

    assert (upstream.leased, upstream.running) == (0, 0)
    assert [attempt.outcome for attempt in call.attempts] == [Outcome.IGNORED]


async def test_the_lease_learns_of_the_first_event_and_of_what_fails_before_it_and_of_nothing_else() -> None:
    fails, answers = InProcess(at_send=RESET), InProcess([*WORDS, RESET])
    call = call_to(fails, answers, InProcess(at_send=BadRequest("x")))

    with pytest.raises(UpstreamError):
        async with call.scope:
            await read(await Dispatch(Vacancy())(call))

    assert fails.samples == [(Outcome.DROPPED, None)]
    ((outcome, first_event_s),) = answers.samples
    assert (outcome, first_event_s is not None) == (Outcome.SUCCESS, True)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (BadRequest("x"), Outcome.IGNORED),
        (Overloaded("x"), Outcome.IGNORED),
        (DeadlineExceeded("x"), Outcome.IGNORED),
        (InternalError("x"), Outcome.IGNORED),
        (RESET, Outcome.DROPPED),
        (REFUSED, Outcome.DROPPED),
        (UpstreamTimeout("x", kind=UpstreamFailure.FIRST_CHUNK_TIMEOUT), Outcome.DROPPED),
        *(
            (UpstreamError("x", kind=UpstreamFailure.STATUS, answered=status), Outcome.DROPPED)
            for status in (302, 401, 403, 408, 429, 500, 502, 503, 504)
        ),
        *(
            (UpstreamError("x", kind=UpstreamFailure.STATUS, answered=status), Outcome.IGNORED)
            for status in (400, 404, 409, 413, 422)
        ),
        (UpstreamError("x", kind=UpstreamFailure.IN_BAND), Outcome.DROPPED),
        (UpstreamError("x", kind=UpstreamFailure.IN_BAND, answered=400), Outcome.IGNORED),
    ],
)
def test_an_error_says_something_about_the_upstream_or_nothing(error: GatewayError, outcome: Outcome) -> None:
    assert judge(failure_of(error, begun=False)).outcome is outcome
