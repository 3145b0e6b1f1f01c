"""Further attempts: when one is sent, where, after how long, and what the client is told when none is."""

import asyncio
from collections.abc import Sequence
from random import Random

import pytest

from gateway.attempts.dispatch import Dispatch
from gateway.attempts.recovery import Recovery
from gateway.call import AttemptKind, Call
from gateway.errors import BadRequest, GatewayError, UpstreamError, UpstreamFailure, UpstreamTimeout
from gateway.vacancy import Vacancy
from policies.outcome import Outcome
from policies.retry import RetryTerms
from policies.retry_budget import BudgetTerms
from tests.rig.in_process import WORDS, InProcess, call_to

RESET = UpstreamError("reset", kind=UpstreamFailure.RESET)
NO_BUDGET = BudgetTerms(ratio=0.0, floor_per_s=0.0)


class Clock:
    """Time that passes only in pauses, which it keeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def failure(status: int, retry_after_s: float | None = None, should_retry: bool | None = None) -> UpstreamError:
    return UpstreamError(
        "scripted",
        kind=UpstreamFailure.STATUS,
        status=status,
        answered=status,
        retry_after_s=retry_after_s,
        should_retry=should_retry,
    )


def recovery(**terms: float) -> Recovery:
    return Recovery(retry=RetryTerms(**terms), rng=Random(1))  # type: ignore[arg-type]


async def run(call: Call, clock: Clock) -> GatewayError | None:
    """Dispatch a call and read its answer; give what it ended with."""
    try:
        async with call.scope:
            reply = await Dispatch(Vacancy(), clock=clock, sleep=clock.sleep)(call)
            async for _ in reply.events:
                pass
    except GatewayError as error:
        return error
    return None


class Faltering(InProcess):
    """Fails as long as there are errors left, then answers."""

    def __init__(self, *errors: GatewayError, name: str = "faltering") -> None:
        super().__init__(name=name)
        self.errors = list(errors)

    async def send(self, call: Call):  # type: ignore[no-untyped-def]
        self.at_send = self.errors.pop(0) if self.errors else None
        return await super().send(call)


async def test_a_failed_attempt_is_repeated_after_a_pause(clock: Clock) -> None:
    upstream = Faltering(RESET)
    call = call_to(upstream, recovery=recovery(base_s=4.0))

    assert await run(call, clock) is None
    assert [(each.kind, each.outcome) for each in call.attempts] == [
        (AttemptKind.FIRST, Outcome.DROPPED),
        (AttemptKind.RETRY, Outcome.SUCCESS),
    ]
    (pause,) = clock.pauses
    assert 0 < pause < 4.0
    assert upstream.leased == 0


async def test_the_slot_is_free_during_the_pause(clock: Clock) -> None:
    upstream = Faltering(RESET)
    leased: list[int] = []

    async def sleep(_: float) -> None:
        leased.append(upstream.leased)

    clock.sleep = sleep  # type: ignore[method-assign]
    await run(call_to(upstream, recovery=recovery()), clock)

    assert leased == [0]


@pytest.mark.parametrize("upstreams", [1, 2, 3, 5])
async def test_there_are_three_attempts_over_all_upstreams_and_then_the_client_is_told_to_stop(
    clock: Clock, upstreams: int
) -> None:
    route = [InProcess(at_send=failure(503), name=str(number)) for number in range(upstreams)]
    call = call_to(*route, recovery=recovery())

    error = await run(call, clock)

    assert len(call.attempts) == 3
    assert len({each.upstream for each in call.attempts}) == min(upstreams, 3)
    assert error is not None
    assert (error.status, error.headers["x-should-retry"]) == (503, "false")


@pytest.mark.parametrize(("count", "attempts"), [(b"0", 3), (b"1", 2), (b"2", 1), (b"7", 1), (b"-1", 3), (b"x", 3)])
async def test_what_the_client_has_sent_before_counts(clock: Clock, count: bytes, attempts: int) -> None:
    call = call_to(InProcess(at_send=RESET), recovery=recovery())
    call.headers = {b"x-stainless-retry-count": count}

    error = await run(call, clock)

    assert len(call.attempts) == attempts
    assert error is not None
    assert error.headers["x-should-retry"] == "false"


async def test_a_retry_is_not_sent_when_the_budget_is_empty_and_the_client_is_told(clock: Clock) -> None:
    call = call_to(InProcess(at_send=failure(500)), InProcess(), recovery=Recovery(budget=NO_BUDGET))

    error = await run(call, clock)

    assert len(call.attempts) == 1
    assert error is not None
    assert error.headers["x-should-retry"] == "false"


async def test_a_success_pays_for_a_fifth_of_a_retry(clock: Clock) -> None:
    terms = Recovery(retry=RetryTerms(base_s=0.0), budget=BudgetTerms(floor_per_s=0.0))
    for _ in range(5):
        assert await run(call_to(InProcess(), recovery=terms), clock) is None

    assert await run(call_to(Faltering(RESET), recovery=terms), clock) is None
    assert await run(call_to(Faltering(RESET), recovery=terms), clock) is not None


async def test_what_waits_at_one_upstream_goes_to_another_at_once(clock: Clock) -> None:
    asks = InProcess(at_send=failure(429, retry_after_s=20.0), name="asks")
    call = call_to(asks, InProcess(name="well"), recovery=recovery())

    assert await run(call, clock) is None
    assert clock.pauses == []
    assert [each.upstream for each in call.attempts] == ["asks", "well"]


async def test_an_upstreams_retry_after_is_waited_for(clock: Clock) -> None:
    call = call_to(Faltering(failure(429, retry_after_s=7.0)), recovery=recovery())

    assert await run(call, clock) is None
    (pause,) = clock.pauses
    assert 7.0 <= pause < 7.2


@pytest.mark.parametrize(("told_s", "left_s"), [(31.0, 600.0), (7.0, 6.0)])
async def test_a_retry_after_beyond_patience_or_deadline_is_the_clients(
    clock: Clock, told_s: float, left_s: float
) -> None:
    call = call_to(InProcess(at_send=failure(429, retry_after_s=told_s)), recovery=recovery())
    call.deadline = clock.now + left_s

    error = await run(call, clock)

    assert (len(call.attempts), clock.pauses) == (1, [])
    assert error is not None
    assert "x-should-retry" not in error.headers  # the client may wait longer than we


async def test_an_upstream_that_asked_for_time_is_left_alone_while_another_one_is_tried(clock: Clock) -> None:
    asks = InProcess(at_send=failure(429, retry_after_s=20.0), name="asks")
    call = call_to(asks, InProcess(at_send=RESET, name="resets"), recovery=recovery(max_attempts=5))

    await run(call, clock)

    assert [each.upstream for each in call.attempts] == ["asks", *["resets"] * 4]


@pytest.mark.parametrize(
    "error",
    [
        failure(401),
        UpstreamError("x", kind=UpstreamFailure.PROTOCOL),
        UpstreamTimeout("x", kind=UpstreamFailure.FIRST_CHUNK_TIMEOUT),
        UpstreamError("x", kind=UpstreamFailure.ENGINE),
        failure(503, should_retry=False),
    ],
)
async def test_who_would_fail_again_is_not_asked_again(clock: Clock, error: UpstreamError) -> None:
    sure, other = InProcess(at_send=error, name="sure"), InProcess(at_send=RESET, name="other")
    call = call_to(sure, other, recovery=recovery(max_attempts=4))

    await run(call, clock)

    assert [each.upstream for each in call.attempts] == ["sure", "other", "other", "other"]


async def test_an_upstream_that_says_not_to_come_again_says_so_to_the_client_too(clock: Clock) -> None:
    call = call_to(InProcess(at_send=failure(503, should_retry=False)), recovery=recovery())

    error = await run(call, clock)

    assert len(call.attempts) == 1
    assert error is not None
    assert error.headers["x-should-retry"] == "false"


async def test_what_no_client_would_send_again_needs_no_word(clock: Clock) -> None:
    for refused in (BadRequest("x"), failure(400), failure(422)):
        error = await run(call_to(InProcess(at_send=refused), recovery=recovery()), clock)

        assert error is not None
        assert dict(error.headers) == {}


async def test_nothing_is_sent_again_once_the_caller_has_seen_the_first_event(clock: Clock) -> None:
    breaks, other = InProcess([*WORDS, RESET]), InProcess()
    call = call_to(breaks, other, recovery=recovery())

    error = await run(call, clock)

    assert error is RESET
    assert (len(call.attempts), other.calls) == (1, [])


async def test_what_fills_up_during_the_pause_is_not_sent_to(clock: Clock) -> None:
    upstream = Faltering(RESET)
    upstream.slots = 1

    async def sleep(_: float) -> None:
        upstream.lease().__enter__()

    clock.sleep = sleep  # type: ignore[method-assign]
    call = call_to(upstream, recovery=recovery())

    assert await run(call, clock) is RESET
    assert len(call.attempts) == 1


async def test_who_leaves_during_the_pause_leaves_nothing_behind() -> None:
    upstream = InProcess(at_send=RESET)
    call = call_to(upstream, recovery=recovery(base_s=1000.0, max_backoff_s=600.0))

    async def ask() -> None:
        async with call.scope:
            await Dispatch(Vacancy())(call)

    asking = asyncio.ensure_future(ask())
    for _ in range(5):
        await asyncio.sleep(0)
    assert [each.outcome for each in call.attempts] == [Outcome.DROPPED]
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking

    assert upstream.leased == 0


async def test_a_pause_that_the_deadline_does_not_leave_is_not_made(clock: Clock) -> None:
    call = call_to(InProcess(at_send=RESET), recovery=recovery())
    call.deadline = clock.now + 0.01

    assert await run(call, clock) is RESET
    assert (len(call.attempts), clock.pauses) == (1, [])


@pytest.mark.parametrize(
    ("errors", "refused"),
    [
        ([UpstreamError("x", kind=UpstreamFailure.CONNECT, sent=False)], [True]),
        ([failure(429), failure(503)], [True, True]),
        ([RESET, failure(503)], [False, True]),
    ],
)
async def test_an_attempt_knows_whether_work_may_have_begun(
    clock: Clock, errors: Sequence[GatewayError], refused: Sequence[bool]
) -> None:
    call = call_to(Faltering(*errors), recovery=recovery())
    await run(call, clock)

    assert [each.refused for each in call.attempts[:-1]] == list(refused)
