"""An engine's answer under a quota: it stops at the edge to the token, and the ledger knows what was produced."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import aclosing
from itertools import count
from pathlib import Path

import httpx
import pytest

from cache.embedded import EmbeddedStore
from cache.errors import StoreUnavailable
from cache.ledger import Ledger
from cache.reservation import Reservation
from cache.store import Store
from engine.config import EngineConfig
from engine.load import LoadedModel, LoadOptions, load
from engine.output import GenerateRequest
from gateway.call import Call, Event, FinishReason, Sampling
from gateway.errors import Overloaded
from gateway.upstreams import engine as door
from gateway.upstreams.engine import EngineUpstream
from policies.account import Account
from policies.bucket import Kind, Limit
from policies.holder import Rule
from policies.reservation import Answer, Step
from policies.tenant import Priority, Tenant, Terms
from tests.gateway.conftest import model, running
from tests.gateway.test_engine_upstream import Calls, settled
from tests.tiny_model import tiny_model_dir

PROMPT = "The engine reads a batch, writes the keys and values into their blocks."
CAPACITY = 1000


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    path: Path = tiny_model_dir(tmp_path_factory.mktemp("engine"), hidden_size=32, max_positions=256)
    return load(path, LoadOptions(num_blocks=128, threads=1))


@pytest.fixture
async def upstream(loaded: LoadedModel) -> AsyncIterator[EngineUpstream]:
    opened = EngineUpstream("local", loaded, EngineConfig(max_sequences=16, max_batch_tokens=128, max_waiting=32))
    yield opened
    await opened.aclose()
    opened._engine.scheduler.pool.check_integrity()


class Slow:
    """A store that is asked over a wire: every answer lets the loop go round. `down` fails everything."""

    def __init__(self) -> None:
        self.books = EmbeddedStore()
        self.down = False
        self.clock = self.books.clock
        self.probe = self.books.probe
        self.aclose = self.books.aclose

    async def apply(self, organisation: str, step: Step, now: int | None = None) -> Answer:
        await asyncio.sleep(0)
        if self.down:
            raise StoreUnavailable("gone", reason="closed")
        return await self.books.apply(organisation, step, now)


@pytest.fixture(params=[EmbeddedStore, Slow])
async def ledger(request: pytest.FixtureRequest) -> AsyncIterator[Ledger]:
    store: Store = request.param()
    async with Ledger(store) as opened:
        yield opened


names = count()


def quota(capacity: int = CAPACITY, *, slice_: int = 16, **weights: int) -> Account:
    """An account with one limit, that does not come back while a test runs."""
    weights = weights or {"output": 1}
    rule = Rule(
        Limit("tokens a month", Kind.MONTH, capacity),
        input=weights.get("input", 0),
        cached=weights.get("cached", 0),
        output=weights["output"],
    )
    return Account(f"org{next(names)}", tokens=(rule,), slice=slice_)


async def spent(ledger: Ledger, account: Account) -> int:
    """What is used or held of the account's limit."""
    (standing,) = await ledger.look(account)
    return standing.limit.capacity - standing.free


async def reserve(ledger: Ledger, account: Account, call: Call) -> Reservation:
    """What the meter does."""
    assert call.tokens.output is not None
    choices = call.request.n * len(call.tokens.prompts or ())
    reservation = ledger.reserve(
        account, call.id, input_tokens=call.tokens.input, max_output=call.tokens.output * choices
    )
    call.generation.reservation = await call.generation.scope.enter(reservation)
    return reservation


async def run(upstream: EngineUpstream, call: Call, *, leave_after: int | None = None) -> list[Event]:
    """What dispatch and the edge do: an answer, or the beginning of one, and then everything is given back."""
    events: list[Event] = []
    async with call.generation.scope:
        with upstream.lease():
            reply = await upstream.send(call)
            async with aclosing(reply.events):
                while leave_after is None or len(events) < leave_after:
                    try:
                        events.append(await reply.events.__anext__())
                    except StopAsyncIteration:
                        break
        usage = next((event.usage for event in events if event.usage), call.generation.usage)
        assert usage is not None
        reservation = call.generation.reservation
        assert reservation is not None
        reservation.usage(input_tokens=usage.prompt, cached_tokens=usage.cached, output_tokens=usage.completion)
    return events


def produced(upstream: EngineUpstream) -> int:
    return upstream._engine.stats.generated_tokens


async def drained(ledger: Ledger) -> None:
    """Wait until every settlement has reached the store."""
    while ledger.tasks:
        await asyncio.wait(set(ledger.tasks))


@pytest.fixture
def make_call() -> Calls:
    return Calls()


@pytest.mark.parametrize("edge", [1, 15, 16, 17, 40])
async def test_a_stream_stops_at_the_edge_of_its_quota_to_the_token(
    upstream: EngineUpstream, make_call: Calls, ledger: Ledger, edge: int
) -> None:
    account = quota(edge)
    free = make_call(upstream, max_tokens=60)
    whole = [t for event in await events_without_quota(upstream, free) for t in event.token_ids]
    call = make_call(upstream, max_tokens=60)
    before = produced(upstream)
    await reserve(ledger, account, call)
    events = await run(upstream, call)
    await drained(ledger)

    assert [t for event in events for t in event.token_ids] == whole[:edge]
    assert (events[-1].finish, events[-1].limit) == (FinishReason.LENGTH, "tokens a month")
    assert events[-1].usage is not None
    assert events[-1].usage.completion == edge
    assert [event.limit for event in events[:-1] if event.limit] == []
    assert produced(upstream) - before == edge
    assert await spent(ledger, account) == edge


async def events_without_quota(upstream: EngineUpstream, call: Call) -> list[Event]:
    with upstream.lease():
        reply = await upstream.send(call)
        async with aclosing(reply.events) as events:
            return [event async for event in events]


async def test_who_stays_within_the_quota_notices_nothing_of_it(
    upstream: EngineUpstream, make_call: Calls, ledger: Ledger
) -> None:
    account = quota()
    call = make_call(upstream, max_tokens=100)
    reservation = await reserve(ledger, account, call)
    asked = 0
    more = Reservation.more

    async def counted(self: Reservation, want: int = 1) -> int:
        nonlocal asked
        asked += 1
        return await more(self, want)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reservation, "more", counted)
        events = await run(upstream, call)
    await drained(ledger)

    assert (events[-1].finish, events[-1].limit) == (FinishReason.LENGTH, None)
    assert reservation.holder.output == 100
    assert await spent(ledger, account) == 100
    if ledger.home(account).instant is not None:
        assert asked == 0, "a slice came too late"


@pytest.mark.parametrize("edge", [20, 21, 22])
async def test_choices_and_prompts_share_what_there_is_evenly(
    upstream: EngineUpstream, make_call: Calls, ledger: Ledger, edge: int
) -> None:
    account = quota(edge, slice_=8)
    call = make_call(upstream, "one prompt", "and another", n=2, max_tokens=60)
    await reserve(ledger, account, call)
    events = await run(upstream, call)
    await drained(ledger)

    counts = [sum(len(event.token_ids) for event in events if event.index == index) for index in range(4)]
    ends = [(event.index, event.limit) for event in events if event.finish]
    assert sorted(ends) == [(index, "tokens a month") for index in range(4)]
    assert sum(counts) == edge
    assert max(counts) - min(counts) <= 3
    assert await spent(ledger, account) == edge


async def test_of_several_prompts_none_produces_anything_where_one_is_refused(
    upstream: EngineUpstream, make_call: Calls, ledger: Ledger
) -> None:
    account = quota()
    call = make_call(upstream, *["a prompt"] * 13, n=4, max_tokens=60)
    await reserve(ledger, account, call)
    with upstream.lease(), pytest.raises(Overloaded):
        await upstream.send(call)
    await settled(upstream)

    assert produced(upstream) == 0
    assert upstream.room().slots == 48
    await call.generation.scope.__aexit__(None, None, None)


async def test_a_reader_that_does_not_read_keeps_nobody_from_counting(
    upstream: EngineUpstream, make_call: Calls, ledger: Ledger
) -> None:
    account = quota()
    call = make_call(upstream, max_tokens=100)
    reservation = await reserve(ledger, account, call)
    async with call.generation.scope:
        with upstream.lease():
            reply = await upstream.send(call)
            await eventually(lambda: reservation.holder.output >= 64)
            await reply.events.aclose()
    await drained(ledger)

    assert await spent(ledger, account) == reservation.holder.output == produced(upstream)


async def eventually(holds: object) -> None:
    async with asyncio.timeout(30):
        while not holds():  # type: ignore[operator]
            await asyncio.sleep(0.002)


async def test_whoever_leaves_is_charged_what_was_produced_and_not_a_token_else(
    upstream: EngineUpstream, make_call: Calls, ledger: Ledger
) -> None:
    account = quota(100_000)
    chance = random.Random(7)
    charged = 0

    async def caller(leave_after: int | None, n: int) -> None:
        nonlocal charged
        call = make_call(upstream, max_tokens=40, n=n, sampling=Sampling(temperature=1.0, seed=leave_after))
        reservation = await reserve(ledger, account, call)
        await run(upstream, call, leave_after=leave_after)
        charged += reservation.holder.output

    await asyncio.gather(*(caller(chance.choice([None, 0, 1, 3, 9]), chance.choice([1, 1, 2])) for _ in range(20)))
    await settled(upstream)
    await drained(ledger)

    assert await spent(ledger, account) == charged == produced(upstream)
    assert upstream.room().slots == 48


async def test_a_cancelled_reader_settles_what_was_produced(
    upstream: EngineUpstream, make_call: Calls, ledger: Ledger
) -> None:
    account = quota()
    call = make_call(upstream, max_tokens=180)
    await reserve(ledger, account, call)
    started = asyncio.Event()

    async def read() -> None:
        async with call.generation.scope:
            with upstream.lease():
                reply = await upstream.send(call)
                async with aclosing(reply.events) as events:
                    async for _ in events:
                        started.set()

    task = asyncio.ensure_future(read())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await drained(ledger)

    assert call.generation.usage is not None
    assert call.generation.usage.completion == produced(upstream) == await spent(ledger, account)
    assert call.generation.usage.prompt == call.tokens.input


async def test_without_the_engines_last_word_everything_granted_counts(
    upstream: EngineUpstream, make_call: Calls, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "LAST_WORD_S", 0.0)
    account = quota(slice_=32)
    call = make_call(upstream, max_tokens=180)
    await reserve(ledger, account, call)
    async with call.generation.scope:
        with upstream.lease():
            reply = await upstream.send(call)
            await reply.events.__anext__()
            with upstream._engine._wake:  # the engine cannot even hear of it
                await reply.events.aclose()
    await drained(ledger)
    await settled(upstream)

    assert call.generation.usage is not None
    assert call.generation.usage.completion == await spent(ledger, account)
    assert await spent(ledger, account) % 16 == 0
    assert await spent(ledger, account) >= produced(upstream)


async def test_who_is_cancelled_while_waiting_for_the_last_word_is_charged_everything_granted(
    upstream: EngineUpstream, make_call: Calls, ledger: Ledger
) -> None:
    account = quota(slice_=32)
    call = make_call(upstream, max_tokens=180)
    reservation = await reserve(ledger, account, call)
    reply = await upstream.send(call)
    await reply.events.__anext__()
    with upstream._engine._wake:  # the engine cannot even hear of it
        closing = asyncio.ensure_future(reply.events.aclose())
        await asyncio.sleep(0)
        granted = reservation.granted
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
    await reply.events.aclose()
    await settled(upstream)

    assert reservation.holder.output == granted >= produced(upstream)
    assert upstream._answers == {}
    await call.generation.scope.__aexit__(None, None, None)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_caller_is_told_which_limit_ended_the_answer_and_what_it_used(
    upstream: EngineUpstream, ledger: Ledger, stream: bool
) -> None:
    account = quota(30)
    terms = Terms(account)
    tenant = Tenant("acme/web", key="key-1", decide=lambda name: terms)
    asked = {"model": "m", "prompt": PROMPT, "max_tokens": 60, "temperature": 0, "ignore_eos": True, "stream": stream}
    served = model("m", upstream, encoder=upstream.prompts, max_context=upstream.max_context)
    async with (
        running(served, tenants={"secret": tenant}, ledger=ledger) as gateway,
        httpx.AsyncClient(base_url=gateway.url, headers={"authorization": "Bearer secret"}) as client,
    ):
        answer = await client.post("/v1/completions", json=asked)
        again = await client.post("/v1/completions", json=asked)
        await drained(ledger)

        told = json.loads(answer.text.split("\n\n")[-3].removeprefix("data: ")) if stream else answer.json()
        assert told["choices"][0]["finish_reason"] == "length"
        assert told["penstock"] == {"limit": "tokens a month"}
        assert told["usage"]["completion_tokens"] == 30
        assert again.status_code == 429
        assert await spent(ledger, account) == 30


async def test_what_was_cached_is_known_before_it_is_charged(
    upstream: EngineUpstream, make_call: Calls, ledger: Ledger
) -> None:
    prices = {"input": 10, "cached": 1, "output": 3}
    prompt = PROMPT * 2
    account = quota(100_000, **prices)
    costs = []
    for n in (1, 2):
        call = make_call(upstream, prompt, n=n, max_tokens=60)
        before = await spent(ledger, account)
        await reserve(ledger, account, call)
        events = await run(upstream, call)
        await drained(ledger)
        costs.append(await spent(ledger, account) - before)
        usage = events[-1].usage
        assert usage is not None
        assert (usage.cached > 0) == (n == 2)

        assert costs[-1] == (usage.prompt - usage.cached) * 10 + usage.cached + usage.completion * 3


async def test_a_store_that_is_lost_ends_a_stream_where_its_grant_ends(
    upstream: EngineUpstream, make_call: Calls
) -> None:
    store = Slow()
    async with Ledger(store, close_s=0.0) as ledger:
        account = quota(slice_=16)
        call = make_call(upstream, max_tokens=100)
        await reserve(ledger, account, call)
        store.down = True
        events = await run(upstream, call)

        assert sum(len(event.token_ids) for event in events) == 16
        assert (events[-1].finish, events[-1].limit) == (FinishReason.LENGTH, "store")


async def test_a_lease_that_ran_out_parks_an_answer_until_it_is_renewed(
    upstream: EngineUpstream, make_call: Calls, ledger: Ledger
) -> None:
    account = quota()
    call = make_call(upstream, max_tokens=100)
    reservation = await reserve(ledger, account, call)
    reservation.holder.good_until = 0
    events = await run(upstream, call)
    await drained(ledger)

    assert sum(len(event.token_ids) for event in events) == 100
    assert events[-1].limit is None
    assert reservation.holder.output == 100


async def test_a_further_attempt_goes_on_where_the_first_one_was_counted(
    upstream: EngineUpstream, make_call: Calls, ledger: Ledger
) -> None:
    account = quota(30)
    call = make_call(upstream, max_tokens=60)
    reservation = await reserve(ledger, account, call)
    reservation.count(12)
    async with call.generation.scope:
        events = await events_without_quota(upstream, call)

        assert sum(len(event.token_ids) for event in events) == 30 - 12
        assert events[-1].limit == "tokens a month"
    await drained(ledger)

    assert await spent(ledger, account) == 30


async def test_priority_and_lane_reach_the_engine(upstream: EngineUpstream, make_call: Calls) -> None:
    asked: list[GenerateRequest] = []
    submit = upstream._engine.submit

    def noted(request: GenerateRequest) -> None:
        asked.append(request)
        submit(request)

    upstream._engine.submit = noted  # type: ignore[method-assign]
    for priority in Priority:
        terms = Terms(Account("anybody"), priority=priority)
        call = make_call(upstream, tenant=Tenant(f"acme/{priority}"))
        call.terms = terms
        await events_without_quota(upstream, call)

    assert [(each.priority, each.order_key) for each in asked] == [
        (1, "acme/high"),
        (0, "acme/normal"),
        (-1, "acme/low"),
    ]
    assert all(each.allowance is None for each in asked)


async def test_a_top_p_of_nothing_is_greedy(upstream: EngineUpstream, make_call: Calls) -> None:
    nothing = Sampling(temperature=1.0, top_p=0.0, ignore_eos=True)
    greedy = Sampling(temperature=0.0, ignore_eos=True)
    answers = []
    for sampling in (nothing, greedy):
        events = await events_without_quota(upstream, make_call(upstream, sampling=sampling))
        answers.append([token for event in events for token in event.token_ids])

    assert answers[0] == answers[1]
