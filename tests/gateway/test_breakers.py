"""Breakers in the request's path: who is passed by, what counts, and that no pass is ever lost."""

import asyncio
from random import Random

import pytest

from gateway.attempts.dispatch import Dispatch
from gateway.attempts.recovery import Recovery
from gateway.call import Call, Reply
from gateway.errors import BadRequest, DeadlineExceeded, GatewayError, Overloaded, UpstreamError, UpstreamFailure
from gateway.stages.choose import Choose
from gateway.vacancy import Vacancy
from policies.breaker import BreakerTerms, Cause, CircuitBreaker, State
from policies.engine_report import EngineCounts
from policies.outcome import Outcome
from policies.retry import RetryTerms
from tests.rig.in_process import WORDS, InProcess, call_to
from tests.rig.upstream import eventually

RESET = UpstreamError("reset", kind=UpstreamFailure.RESET)
TERMS = BreakerTerms(consecutive=3, jitter=0.0)


class World:
    """Upstreams behind breakers, under a clock that is moved by hand."""

    def __init__(self, *upstreams: InProcess, terms: BreakerTerms = TERMS, max_attempts: int = 1) -> None:
        self.now = 1000.0
        self.upstreams = upstreams
        self.recovery = Recovery(
            upstreams,
            retry=RetryTerms(max_attempts=max_attempts, base_s=0.0),
            breakers=dict.fromkeys(upstreams, terms),
            rng=Random(1),
        )
        self.dispatch = Dispatch(Vacancy(), clock=lambda: self.now)
        self.choose = Choose(clock=lambda: self.now)

    def breaker(self, upstream: InProcess) -> CircuitBreaker:
        return self.recovery.breakers[upstream]

    def call(self) -> Call:
        return call_to(*self.upstreams, recovery=self.recovery)

    async def reply(self, call: Call) -> Reply:
        return await self.choose(call, self.dispatch)

    async def ask(self) -> GatewayError | None:
        """Answer one call; give its error."""
        call = self.call()
        try:
            async with call.scope:
                async for _ in (await self.reply(call)).events:
                    pass
        except GatewayError as error:
            return error
        return None

    async def open(self, upstream: InProcess) -> None:
        self.breaker(upstream).trip(self.now, Cause.DEVICE_ERROR)


async def test_failures_open_it_and_nothing_more_is_sent() -> None:
    upstream = InProcess(at_send=RESET)
    world = World(upstream)
    for _ in range(5):
        await world.ask()

    assert len(upstream.calls) == 3
    assert world.breaker(upstream).state is State.OPEN


async def test_where_all_are_open_callers_are_told_at_once_when_the_first_may_be_well() -> None:
    one, other = InProcess(), InProcess()
    world = World(one, other, terms=BreakerTerms(open_s=2.5, jitter=0.0))
    await world.open(one)
    world.now += 1.5
    await world.open(other)

    error = await world.ask()

    assert isinstance(error, Overloaded)
    assert (error.status, error.code) == (503, "upstreams_unavailable")
    assert error.headers == {"retry-after": "1", "retry-after-ms": "1000"}


async def test_an_open_one_is_passed_by() -> None:
    failing, well = InProcess(name="failing"), InProcess(name="well")
    world = World(failing, well)
    await world.open(failing)

    assert await world.ask() is None
    assert (len(failing.calls), len(well.calls)) == (0, 1)


async def test_nobody_waits_for_room_at_one_that_is_open() -> None:
    failing, full = InProcess(name="failing"), InProcess(name="full", slots=0)
    world = World(failing, full)
    await world.open(failing)
    call = world.call()

    with pytest.raises(Overloaded):
        await world.reply(call)

    assert call.route == (full,)


async def test_one_that_opens_while_a_call_waits_for_room_is_not_sent_to() -> None:
    upstream = InProcess()
    world = World(upstream)
    call = world.call()
    await world.open(upstream)

    with pytest.raises(Overloaded) as caught:  # its route was chosen before
        await world.dispatch(call)

    assert caught.value.code == "upstreams_unavailable"
    assert upstream.calls == []


async def test_a_retry_is_not_sent_to_what_its_own_failure_opened() -> None:
    upstream = InProcess(at_send=RESET)
    world = World(upstream, terms=BreakerTerms(consecutive=2), max_attempts=3)

    assert await world.ask() is RESET
    assert len(upstream.calls) == 2


async def test_when_its_time_is_over_one_probe_goes_through_and_its_first_event_closes_it() -> None:
    hold = asyncio.Event()
    upstream = InProcess(hold=hold)
    world = World(upstream)
    await world.open(upstream)
    world.now += 1.1

    probe = asyncio.ensure_future(world.ask())
    await eventually(lambda: upstream.running == 1)
    refused = await world.ask()

    assert isinstance(refused, Overloaded)
    assert world.breaker(upstream).state is State.HALF_OPEN
    hold.set()
    assert await probe is None
    assert world.breaker(upstream).state is State.CLOSED
    assert len(upstream.calls) == 1


async def test_a_probe_closes_it_with_its_first_event_and_not_with_its_last() -> None:
    upstream = InProcess()
    world = World(upstream)
    await world.open(upstream)
    world.now += 1.1
    call = world.call()

    async with call.scope:
        await world.reply(call)

        assert world.breaker(upstream).state is State.CLOSED


@pytest.mark.parametrize(
    ("met", "state"),
    [
        (RESET, State.OPEN),
        (UpstreamError("x", kind=UpstreamFailure.STATUS, answered=429), State.OPEN),
        (BadRequest("x"), State.HALF_OPEN),
        (UpstreamError("x", kind=UpstreamFailure.STATUS, answered=400), State.HALF_OPEN),
        (Overloaded("x"), State.HALF_OPEN),
        (DeadlineExceeded("x"), State.HALF_OPEN),
    ],
)
async def test_a_probe_that_fails_opens_it_again_and_one_that_says_nothing_frees_its_place(
    met: GatewayError, state: State
) -> None:
    upstream = InProcess(at_send=met)
    world = World(upstream)
    await world.open(upstream)
    world.now += 1.1

    assert await world.ask() is met
    assert world.breaker(upstream).state is state
    upstream.at_send = None
    world.now += 3.0
    assert await world.ask() is None
    assert world.breaker(upstream).state is State.CLOSED


@pytest.mark.parametrize("met", [BadRequest("x"), UpstreamError("x", kind=UpstreamFailure.STATUS, answered=422)])
async def test_what_the_caller_is_to_blame_for_never_opens_it(met: GatewayError) -> None:
    upstream = InProcess(at_send=met)
    world = World(upstream)
    for _ in range(100):
        assert await world.ask() is met

    assert world.breaker(upstream).snapshot(world.now).calls == 0


async def test_a_stream_that_breaks_off_counts_as_a_failure() -> None:
    upstream = InProcess([*WORDS, RESET])
    world = World(upstream)
    for _ in range(3):
        assert await world.ask() is RESET

    assert world.breaker(upstream).state is State.OPEN


@pytest.mark.parametrize("rounds", range(12))
async def test_wherever_a_probes_caller_leaves_its_place_is_free_again(rounds: int) -> None:
    """Cancelled after so many passes of the event loop, before the first event, between events, at the end."""
    upstream = InProcess(rounds=2)
    world = World(upstream)
    await world.open(upstream)
    world.now += 1.1

    probe = asyncio.ensure_future(world.ask())
    for _ in range(rounds):
        await asyncio.sleep(0)
    probe.cancel()
    await asyncio.wait([probe])

    world.now += 1.1
    assert world.recovery.wait_s(upstream, world.now) == 0.0
    assert (upstream.leased, upstream.running) == (0, 0)


async def test_callers_who_leave_never_open_it() -> None:
    upstream = InProcess(hold=asyncio.Event())
    world = World(upstream)
    for _ in range(20):
        asking = asyncio.ensure_future(world.ask())
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait([asking])

    told = world.breaker(upstream).snapshot(world.now)
    assert (told.state, told.calls) == (State.CLOSED, 0)


async def test_models_fail_on_their_own_at_an_upstream_that_they_share() -> None:
    upstream = InProcess(at_send=RESET)
    one, other = World(upstream), World(upstream)
    for _ in range(3):
        await one.ask()

    assert one.breaker(upstream).state is State.OPEN
    assert other.breaker(upstream).state is State.CLOSED


async def test_a_success_is_one_whose_answer_came_whole() -> None:
    upstream = InProcess()
    world = World(upstream)
    call = world.call()
    async with call.scope:
        async for _ in (await world.reply(call)).events:
            pass

    assert call.attempts[0].outcome is Outcome.SUCCESS
    assert world.breaker(upstream).snapshot(world.now).calls == 1


@pytest.mark.fault_row(39)
async def test_what_an_engine_reports_opens_its_breaker_once_and_a_probe_closes_it() -> None:
    upstream, other = InProcess(takes_ids=True), InProcess()
    world = World(upstream, other)
    counts = [EngineCounts()]
    world.recovery = Recovery(
        (upstream, other), breakers=dict.fromkeys((upstream, other), TERMS), reports={upstream: lambda: counts[0]}
    )
    assert await world.ask() is None

    counts[0] = EngineCounts(steps=9, stalls=1)
    assert await world.ask() is None
    assert (len(upstream.calls), len(other.calls)) == (1, 1)
    assert world.breaker(upstream).snapshot(world.now).cause is Cause.STALLED

    world.now += 1.1
    assert await world.ask() is None
    assert world.breaker(upstream).state is State.CLOSED
    assert world.breaker(upstream).snapshot(world.now).opened == 1
