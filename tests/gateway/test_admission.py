"""Admission: who waits, who goes first, who is sent away at once, and what it is told."""

import asyncio
from collections.abc import AsyncGenerator
from random import Random

import pytest

from gateway.call import Call, ChatPrompt, Event, FinishReason, Operation, Reply, Request, Single, TokenCount, Usage
from gateway.errors import DeadlineExceeded, Overloaded
from gateway.generation import Generation
from gateway.scope import Scope
from gateway.stages.admit import EVENT_BYTES, Admit
from gateway.telemetry.admission_metrics import AdmissionNumbers
from gateway.vacancy import Queue, Vacancy, groups_of
from policies.tenant import UNLIMITED, Priority, Tenant, Terms
from tests.gateway.conftest import model
from tests.rig.in_process import InProcess

HELLO = ChatPrompt([{"role": "user", "content": "hi"}])


def routed(
    *upstreams: InProcess,
    tenant: str = "acme/web",
    deadline: float = 1e9,
    stream: bool = False,
    tokens: int = 10,
    **terms: object,
) -> Call:
    call = Call(
        "id", "/v1/chat/completions", 0.0, b"{}", {}, Request(Operation.CHAT, "m", HELLO, stream), deadline, Scope()
    )
    call.tenant, call.model = Tenant(tenant), model("m", *upstreams)
    call.terms = Terms(UNLIMITED.account, **terms)  # type: ignore[arg-type]
    call.tokens = TokenCount(tokens, True)
    call.generation = Generation(deadline)
    call.scope.push(call.generation.scope)
    call.route = upstreams
    return call


async def nothing() -> AsyncGenerator[Event, None]:
    return
    yield


async def answer(call: Call) -> Reply:
    return Reply(200, {}, nothing())


async def taking(call: Call) -> Reply:
    """A last handler that takes a slot and keeps it."""
    upstream = next(each for each in call.route if each.fits(call))
    upstream.lease().__enter__()
    return await answer(call)


async def refused(admit: Admit, call: Call) -> Overloaded:
    with pytest.raises(Overloaded) as caught:
        await admit(call, answer)
    return caught.value


# Room.


async def test_nobody_waits_where_there_is_room() -> None:
    upstream = InProcess(slots=1)

    await Admit(Vacancy(max_waiting=0))(routed(upstream), taking)

    assert upstream.leased == 1


async def test_room_is_passed_on_in_order_of_arrival() -> None:
    vacancy, upstream, served = Vacancy(), InProcess(slots=0), list[int]()
    admit = Admit(vacancy)

    async def serve(number: int) -> None:
        await admit(routed(upstream), taking)
        served.append(number)

    async with asyncio.TaskGroup() as group:
        for number in range(5):
            group.create_task(serve(number))
            await asyncio.sleep(0)
        assert vacancy.num_waiting == 5
        upstream.slots = 5
        vacancy.announce()

    assert served == [0, 1, 2, 3, 4]
    assert vacancy.num_waiting == 0


async def test_one_slot_wakes_one_caller() -> None:
    vacancy, upstream, woken = Vacancy(), InProcess(slots=0), 0
    admit = Admit(vacancy)
    start = Queue.start

    def counting(queue: Queue, turn: object) -> bool:
        nonlocal woken
        woken += 1
        return start(queue, turn)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Queue, "start", counting)
        tasks = [asyncio.ensure_future(admit(routed(upstream), taking)) for _ in range(20)]
        await asyncio.sleep(0)
        for slots in range(1, 6):
            upstream.slots = slots
            vacancy.freed(upstream, 0.0, 0.1)
            for _ in range(3):
                await asyncio.sleep(0)
            assert (upstream.leased, woken) == (slots, slots)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert vacancy.num_waiting == 0


async def test_a_newcomer_does_not_overtake_those_who_wait_for_the_same_room() -> None:
    vacancy, upstream, other = Vacancy(), InProcess(slots=0), InProcess(slots=1)
    admit, served = Admit(vacancy), list[str]()

    async def serve(name: str, *route: InProcess) -> None:
        await admit(routed(*route), taking)
        served.append(name)

    async with asyncio.TaskGroup() as group:
        group.create_task(serve("early", upstream))
        await asyncio.sleep(0)
        upstream.slots = 1
        group.create_task(serve("late", upstream))
        group.create_task(serve("elsewhere", other))
        await asyncio.sleep(0)
        assert served == ["elsewhere"]
        vacancy.announce()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert served == ["elsewhere", "early"]
        upstream.slots = 2
        vacancy.announce()

    assert served == ["elsewhere", "early", "late"]


class Choosy(InProcess):
    """Has room for so many tokens."""

    tokens = 0

    def fits(self, call: Call) -> bool:
        return call.tokens.input <= self.tokens


async def test_a_large_prompt_is_not_overtaken_by_those_that_fit_where_it_does_not() -> None:
    vacancy, upstream, served = Vacancy(), Choosy(slots=9), list[str]()
    admit = Admit(vacancy)

    async def serve(name: str, tokens: int) -> None:
        await admit(routed(upstream, tokens=tokens), answer)
        served.append(name)

    async with asyncio.TaskGroup() as group:
        group.create_task(serve("large", 100))
        await asyncio.sleep(0)
        group.create_task(serve("small", 1))
        await asyncio.sleep(0)
        upstream.tokens = 50
        vacancy.announce()
        await asyncio.sleep(0.001)
        assert served == []
        upstream.tokens = 100
        vacancy.announce()

    assert served == ["large", "small"]


async def test_room_that_nobody_announces_is_found_all_the_same() -> None:
    upstream = InProcess(slots=0)
    waiting = asyncio.ensure_future(Admit(Vacancy())(routed(upstream), taking))
    await asyncio.sleep(0)
    upstream.slots = 1

    await waiting

    assert upstream.leased == 1


async def test_room_that_is_gone_again_is_waited_for_once_more() -> None:
    vacancy, upstream = Vacancy(), InProcess(slots=0)
    waiting = asyncio.ensure_future(Admit(vacancy)(routed(upstream), taking))
    await asyncio.sleep(0)
    upstream.slots = 1
    vacancy.announce()
    upstream.slots = 0
    await asyncio.sleep(0.001)
    assert not waiting.done()
    upstream.slots = 1
    vacancy.announce()

    await waiting


async def test_upstreams_that_never_stand_in_for_each_other_have_queues_of_their_own() -> None:
    a, b, c, d = (InProcess(slots=0) for _ in range(4))
    vacancy = Vacancy([(a, b), (c,), (b, d)], max_waiting=1)
    admit = Admit(vacancy)
    waiting = [asyncio.ensure_future(admit(routed(each), answer)) for each in (a, c)]
    await asyncio.sleep(0)

    assert sorted(map(len, groups_of([(a, b), (c,), (b, d)]))) == [1, 3]
    assert vacancy.num_waiting == 2
    assert (await refused(admit, routed(d))).code == "queue_full"
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_an_upstream_without_a_limit_is_never_waited_for() -> None:
    upstream = InProcess()
    vacancy = Vacancy([(upstream,)])

    assert not vacancy.queue_of((upstream,)).bounded
    await Admit(vacancy)(routed(upstream), taking)
    vacancy.freed(upstream, 1.0, 1.0)


# Order.


async def order(vacancy: Vacancy, upstream: InProcess, *calls: tuple[str, Call]) -> list[str]:
    """Tell in which order waiting calls get the slots that become free one by one."""
    admit, served = Admit(vacancy), list[str]()

    async def serve(name: str, call: Call) -> None:
        await admit(call, taking)
        served.append(name)

    async with asyncio.TaskGroup() as group:
        for name, call in calls:
            group.create_task(serve(name, call))
            await asyncio.sleep(0)
        for _ in calls:
            upstream.slots = (upstream.slots or 0) + 1
            vacancy.announce()
            for _ in range(3):
                await asyncio.sleep(0)
    return served


async def test_a_tenant_that_asks_for_more_does_not_keep_another_waiting() -> None:
    upstream = InProcess(slots=0)
    flood = [(f"flood {i}", routed(upstream, tenant="flood")) for i in range(6)]

    served = await order(Vacancy(), upstream, *flood, ("quiet", routed(upstream, tenant="quiet")))

    assert served.index("quiet") == 0 + (served[0] != "quiet")


async def test_twice_the_weight_is_twice_the_places() -> None:
    upstream = InProcess(slots=0)
    calls = [(name, routed(upstream, tenant=name, weight=w)) for _ in range(9) for name, w in (("a", 2.0), ("b", 1.0))]

    served = await order(Vacancy(), upstream, *calls)

    assert served[:9].count("a") == 6


async def test_a_higher_priority_goes_first() -> None:
    upstream = InProcess(slots=0)
    calls = [(each.value, routed(upstream, priority=each)) for each in (Priority.LOW, Priority.NORMAL, Priority.HIGH)]

    assert await order(Vacancy(), upstream, *calls) == ["high", "normal", "low"]


async def test_what_a_tenant_had_while_there_was_room_for_all_is_no_debt() -> None:
    upstream = InProcess(slots=1)
    vacancy = Vacancy()
    admit = Admit(vacancy)
    for _ in range(100):
        await admit(routed(upstream, tenant="early", tokens=1000), answer)
    await admit(routed(upstream, tenant="late"), taking)
    names = [name for _ in range(3) for name in ("early", "late")]

    served = await order(vacancy, upstream, *[(name, routed(upstream, tenant=name)) for name in names])

    assert sorted(served[:2]) == sorted(served[2:4]) == ["early", "late"]


@pytest.mark.parametrize("stream", [True, False])
async def test_what_an_answer_brought_counts_for_who_goes_next(stream: bool) -> None:
    upstream, vacancy, served = InProcess(slots=0), Vacancy(), list[str]()
    admit = Admit(vacancy)

    async def bring(call: Call) -> Reply:
        call.generation.usage = Usage(10, 100 if call.tenant.id == "much" else 1)
        served.append(call.tenant.id)
        upstream.slots = 0
        return Reply(200, {}, nothing() if stream else Single(Event(finish=FinishReason.STOP)))

    async def serve(call: Call) -> None:
        async with call.scope:
            await admit(call, bring)

    async with asyncio.TaskGroup() as group:
        for _ in range(5):
            for name in ("much", "little"):
                group.create_task(serve(routed(upstream, tenant=name, stream=stream)))
        await asyncio.sleep(0)
        for _ in range(10):
            upstream.slots = 1
            vacancy.announce()
            for _ in range(4):
                await asyncio.sleep(0)

    assert served[:6] == ["much", *["little"] * 5]


async def test_an_answer_that_nobody_counted_is_charged_by_its_bytes() -> None:
    upstream, vacancy = InProcess(slots=1), Vacancy()
    call = routed(upstream, stream=True)
    charged: list[int] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Queue, "produced", lambda queue, call, tokens: charged.append(tokens))
        async with call.scope:
            await Admit(vacancy)(call, answer)
            call.sent_bytes = 7 * EVENT_BYTES

    assert charged == [7]


# Refusals.


async def test_one_too_many_is_refused_at_once() -> None:
    vacancy, upstream = Vacancy(max_waiting=1), InProcess(slots=0)
    admit = Admit(vacancy)
    waiting = asyncio.ensure_future(admit(routed(upstream), answer))
    await asyncio.sleep(0)

    error = await refused(admit, routed(upstream))

    assert (error.status, error.code) == (503, "queue_full")
    assert int(error.headers["retry-after"]) * 1000 >= int(error.headers["retry-after-ms"]) > 0
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert vacancy.num_waiting == 0


async def test_in_a_full_room_the_last_of_who_fills_it_makes_place_for_another() -> None:
    vacancy, upstream = Vacancy(max_waiting=3), InProcess(slots=0)
    admit = Admit(vacancy)
    flood = [asyncio.ensure_future(admit(routed(upstream, tenant="flood"), answer)) for _ in range(3)]
    await asyncio.sleep(0)
    quiet = asyncio.ensure_future(admit(routed(upstream, tenant="quiet"), taking))
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    assert [task.done() for task in flood] == [False, False, True]
    error = flood[2].exception()
    assert isinstance(error, Overloaded)
    assert error.code == "queue_full"
    assert not quiet.done()
    upstream.slots = 1
    vacancy.announce()
    await asyncio.wait_for(asyncio.wait({quiet, *flood}, return_when=asyncio.FIRST_COMPLETED), 1)
    upstream.slots = None
    vacancy.announce()
    await asyncio.gather(*flood, quiet, return_exceptions=True)
    assert vacancy.num_waiting == 0


async def test_waiting_ends_with_its_own_bound() -> None:
    error = await refused(Admit(Vacancy(max_wait_s=0.01)), routed(InProcess(slots=0)))

    assert "no room within 0.01 s" in error.message
    assert (error.code, error.headers["retry-after"]) == ("no_room", "1")


async def test_a_policy_may_let_its_callers_wait_for_less_than_others() -> None:
    error = await refused(Admit(Vacancy()), routed(InProcess(slots=0), queue_deadline_s=0.01))

    assert "no room within 0.01 s" in error.message


async def test_waiting_ends_with_the_deadline() -> None:
    now = asyncio.get_running_loop().time()

    with pytest.raises(DeadlineExceeded, match="deadline"):
        await Admit(Vacancy())(routed(InProcess(slots=0), deadline=now + 0.01), answer)


class Hours:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 5000.0

    def __call__(self) -> float:
        return self.now


def busy(vacancy: Vacancy, upstream: InProcess, hold_s: float, now: float) -> None:
    """All slots taken, and each known to be held for so long."""
    upstream.leased = upstream.slots or 0
    for _ in range(50):
        vacancy.freed(upstream, now, hold_s)


async def test_who_would_wait_too_long_is_told_at_once_when_to_come_back() -> None:
    clock, upstream = Hours(), InProcess(slots=10)
    vacancy = Vacancy(max_wait_s=10.0, rng=Random(1))
    admit = Admit(vacancy, clock=clock)
    busy(vacancy, upstream, 20.0, clock.now)  # one slot every two seconds
    waiting = [asyncio.ensure_future(admit(routed(upstream), answer)) for _ in range(5)]
    await asyncio.sleep(0)

    error = await refused(admit, routed(upstream))

    # Its wait would be 12 s, and 10 is the most that anybody waits; a quarter more by chance at the most.
    assert error.code == "overloaded"
    assert "no room for about 12 s" in error.message
    assert 12_000 <= int(error.headers["retry-after-ms"]) <= 15_000
    assert int(error.headers["retry-after"]) == -(-int(error.headers["retry-after-ms"]) // 1000)
    assert vacancy.num_shed == 1
    assert vacancy.num_waiting == 5
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


@pytest.mark.parametrize(("deadline_s", "queue_deadline_s"), [(1.0, None), (600.0, 1.0)])
async def test_a_call_that_has_less_time_than_it_would_wait_is_shed(
    deadline_s: float, queue_deadline_s: float | None
) -> None:
    clock, upstream = Hours(), InProcess(slots=10)
    vacancy = Vacancy()
    busy(vacancy, upstream, 20.0, clock.now)
    call = routed(upstream, deadline=clock.now + deadline_s, queue_deadline_s=queue_deadline_s)

    error = await refused(Admit(vacancy, clock=clock), call)

    assert error.code == "overloaded"


async def test_a_burst_after_a_long_silence_is_not_shed() -> None:
    clock, upstream = Hours(), InProcess(slots=1)
    vacancy = Vacancy()
    admit = Admit(vacancy, clock=clock)
    vacancy.freed(upstream, clock.now, 0.1)
    clock.now += 3600.0
    first = routed(upstream)
    first.received = clock.now
    await admit(first, taking)
    second = asyncio.ensure_future(admit(routed(upstream), taking))
    await asyncio.sleep(0)

    assert vacancy.num_waiting == 1
    upstream.slots = 2
    vacancy.announce()
    await second


async def test_the_wait_of_one_queue_is_not_predicted_from_another() -> None:
    clock, slow, quick = Hours(), InProcess(slots=1), InProcess(slots=1)
    vacancy = Vacancy([(slow,), (quick,)])
    busy(vacancy, slow, 100.0, clock.now)
    busy(vacancy, quick, 0.1, clock.now)
    admit = Admit(vacancy, clock=clock)

    assert admit.must_wait(routed(quick))
    assert (await refused(admit, routed(slow))).code == "overloaded"


# Leaving.


async def test_draining_refuses_newcomers_and_those_who_wait() -> None:
    admit = Admit(Vacancy())
    waiting = asyncio.ensure_future(admit(routed(InProcess(slots=0)), answer))
    await asyncio.sleep(0)
    admit.drain()

    with pytest.raises(Overloaded) as caught:
        await waiting
    assert caught.value.code == "draining"
    assert (await refused(admit, routed(InProcess()))).code == "draining"


async def test_a_waiting_caller_who_leaves_hands_the_call_on() -> None:
    vacancy, upstream = Vacancy(), InProcess(slots=0)
    admit = Admit(vacancy)
    first, second = (asyncio.ensure_future(admit(routed(upstream), taking)) for _ in range(2))
    await asyncio.sleep(0)
    upstream.slots = 1
    vacancy.announce()  # calls the first
    first.cancel()

    await second

    assert first.cancelled()
    assert upstream.leased == 1


async def test_a_caller_who_leaves_the_room_is_charged_nothing() -> None:
    vacancy, upstream = Vacancy(), InProcess(slots=0)
    admit = Admit(vacancy)
    leaving = [asyncio.ensure_future(admit(routed(upstream, tenant="gone", tokens=9999), taking)) for _ in range(3)]
    await asyncio.sleep(0)
    for task in leaving:
        task.cancel()
    await asyncio.gather(*leaving, return_exceptions=True)
    calls = [(name, routed(upstream, tenant=name)) for name in ("gone", "here")]

    assert await order(vacancy, upstream, *calls) == ["gone", "here"]


# Metrics.


async def test_what_waits_and_how_full_each_upstream_is_can_be_read() -> None:
    full, free = InProcess(slots=2, name="full"), InProcess(name="free")
    full.leased = 2
    vacancy, served = Vacancy([(full,), (free,)]), model("m", full, free)
    waiting = asyncio.ensure_future(Admit(vacancy)(routed(full), answer))
    await asyncio.sleep(0)

    told = {
        (sample.name, sample.labels.get("upstream")): sample.value
        for family in AdmissionNumbers(vacancy, {"m": served}).families()
        for sample in family.samples
    }

    assert told == {
        ("penstock_requests_waiting", None): 1,
        ("penstock_requests_shed_total", None): 0,
        ("penstock_upstream_in_flight", "full"): 2,
        ("penstock_upstream_in_flight", "free"): 0,
        ("penstock_upstream_limit", "full"): 2,
    }
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
