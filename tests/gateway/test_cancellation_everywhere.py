"""A call is ended at each of its awaits in turn, by its caller's leaving and by its tenant: nothing is left behind.

An instrumented coroutine counts the suspensions of the request's task, and has it cancelled at the k-th, for every k
until one run needs fewer. So no await of the path is left out, whoever adds one. What must hold afterwards is the same
for every kind of call, and is held against the books: slots, connections, blocks, tasks, reservations and records.
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from types import coroutine
from typing import Any

import pytest

from cache.embedded import EmbeddedStore
from cache.ledger import Ledger
from engine.load import LoadedModel, LoadOptions, load
from gateway.app import App, build
from gateway.attempts.recovery import Recovery
from gateway.call import Model
from gateway.errors import Cancelled
from gateway.http.message import HttpRequest
from gateway.identity.identity import Identity
from gateway.process.journal import Docket, Journal
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.record import Ending, RequestRecord
from gateway.upstreams.engine import EngineUpstream
from gateway.upstreams.http import HttpUpstream
from policies.bucket import Kind, Limit
from policies.hedge import HedgeTerms
from policies.holder import Measure, Rule
from policies.retry import RetryTerms
from policies.retry_budget import BudgetTerms
from tests.gateway.conftest import http_upstream, model
from tests.gateway.test_answers import PROMPTS
from tests.gateway.test_cancellation import Responder
from tests.gateway.test_engine_quota import Slow
from tests.rig.in_process import InProcess
from tests.rig.limited import KnownTenants, at_a_time, limited
from tests.rig.upstream import eventually, scripted_upstream
from tests.tiny_model import tiny_model_dir

CAPACITY = 1_000_000
MOST_SUSPENSIONS = 400  # no call has as many
LONG = 1000  # rounds of the loop: what a wire is told may be on its way
TENANT = limited(
    Rule(Limit("acme/month", Kind.MONTH, CAPACITY), input=1, cached=1, output=1, measure=Measure.TOKENS),
    at_a_time(5),
    step=2,
)


@dataclass
class Served:
    """An application over one model, and what it has to give back."""

    app: App
    metrics: Metrics
    ledger: Ledger
    records: list[RequestRecord]
    journal: Journal
    busy: Callable[[], int]  # slots, connections, sequences
    body: dict[str, Any]
    occupant: Callable[[], Coroutine[Any, Any, None]] | None = None  # lets a waiting call in
    lost: int = 0  # tokens that the loser of a race may have brought, which are charged and nobody's answer
    tasks: int = 0
    spent: int = 0

    async def held(self) -> int:
        """What is taken of the gauge of concurrency."""
        standings = await self.ledger.look(TENANT.terms("m").account)
        return sum(s.limit.capacity - s.free for s in standings if s.limit.key == "acme/concurrency")

    async def charged(self) -> int:
        """What the month's tokens have been charged or promised."""
        standings = await self.ledger.look(TENANT.terms("m").account)
        return sum(s.limit.capacity - s.free for s in standings if s.limit.key == "acme/month")


@dataclass
class Counter:
    """How often a task was suspended."""

    suspensions: int = 0
    cancelled: bool = False


@coroutine
def counted(
    path: Coroutine[Any, Any, None], counter: Counter, at: int, end: Callable[[], None]
) -> Generator[Any, Any, None]:
    """Run a coroutine, and end its task at its suspension number `at`."""
    steps = path.__await__()
    resume, value = steps.send, None
    while True:
        try:
            awaited = resume(value)  # type: ignore[arg-type]
        except StopIteration:
            return
        counter.suspensions += 1
        if counter.suspensions == at:
            end()
        try:
            value = yield awaited
            resume = steps.send
        except BaseException as error:  # noqa: BLE001 - goes on into the coroutine
            value, resume = error, steps.throw


def request(body: dict[str, Any]) -> HttpRequest:
    headers = {b"content-type": b"application/json", b"authorization": b"Bearer k"}
    path = "/v1/completions" if "prompt" in body else "/v1/chat/completions"
    return HttpRequest("POST", path, "", headers, json.dumps(body).encode(), "127.0.0.1", 0.0)


async def end_at(served: Served, at: int, way: str) -> tuple[Counter, Responder, asyncio.Task[None]]:
    """Run a call and end it at a suspension."""
    counter, responder = Counter(), Responder(congested=served.body["stream"])

    def end() -> None:
        task = asyncio.current_task()
        assert task is not None
        if way == "left":
            task.cancel()
        else:  # nobody's before its tenant is known, and nobody's when all is said
            counter.cancelled = served.app.calls.end("acme/web", "the-call", Cancelled("", code="request_cancelled"))

    async def run() -> None:
        asked = request(served.body)
        asked.headers[b"x-request-id"] = b"the-call"
        await counted(served.app(asked, responder), counter, at, end)

    task = asyncio.ensure_future(run())
    if served.occupant is not None:
        await served.occupant()
    await asyncio.gather(task, return_exceptions=True)
    return counter, responder, task


async def settled(served: Served, before: int) -> None:
    """Hold the books against what must be when nobody is there any more."""
    assert served.metrics.in_flight == 0
    assert served.app.calls.tenants == 0
    assert len(served.records) <= before + 1, "a call was recorded twice"
    await eventually(lambda: served.busy() == 0)
    await eventually(lambda: len(asyncio.all_tasks()) <= served.tasks)
    for _ in range(LONG):
        if not (held := await served.held()):
            break
        await asyncio.sleep(0)

    assert not held
    assert served.journal.in_flight() == set()
    used = sum(record.usage.prompt + record.usage.completion for record in served.records[before:])
    for _ in range(LONG):
        charged = await served.charged()
        if 0 <= charged - served.spent - used <= served.lost:
            break
        await asyncio.sleep(0)

    assert 0 <= charged - served.spent - used <= served.lost, "what was charged is not what was used"
    served.spent = charged


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load(
        tiny_model_dir(tmp_path_factory.mktemp("engine"), hidden_size=32), LoadOptions(num_blocks=64, threads=1)
    )


@asynccontextmanager
async def serving(kind: str, stream: bool, wire: bool, loaded: LoadedModel) -> AsyncIterator[Served]:
    async with AsyncExitStack() as stack:
        body: dict[str, Any] = {"model": "m", "stream": stream, "max_tokens": 6}
        occupant = None
        served_model: Model
        if kind == "engine":
            engine = EngineUpstream("local", loaded)
            body |= {"prompt": "The engine reads", "ignore_eos": True}
            served_model = model("m", engine, encoder=engine.prompts, max_context=engine.max_context)

            def busy() -> int:
                stats = engine._engine.stats
                return (
                    stats.running
                    + stats.waiting
                    + engine._occupied
                    + (stats.total_blocks - stats.free_blocks - stats.cached_blocks)
                )
        elif kind == "waiting":
            inner = InProcess(slots=1, rounds=2)
            body |= {"messages": [{"role": "user", "content": "hi"}]}
            served_model = model("m", inner, encoder=PROMPTS)

            async def let_in() -> None:
                with inner.lease():
                    for _ in range(12):
                        await asyncio.sleep(0)
                served.app._admit._vacancy.announce()

            occupant = let_in

            def busy() -> int:
                return inner.leased + inner.running
        else:
            upstream = await stack.enter_async_context(scripted_upstream())
            body |= {"messages": [{"role": "user", "content": "hi"}], "script": {"obey": True, "chunk_delay_s": 0.0005}}
            good = http_upstream(upstream.url)
            route: list[HttpUpstream] = [good]
            if kind == "fallback":
                with socket.create_server(("127.0.0.1", 0)) as closed:
                    port = closed.getsockname()[1]
                route.insert(0, http_upstream(f"http://127.0.0.1:{port}/v1", "refusing"))
            hedge = None
            if kind == "hedged":
                body["script"]["head_delay_s"] = 0.004
                route.append(http_upstream(upstream.url, "rival"))
                hedge = HedgeTerms(min_points=1, least_s=0.0005, stretch=0.01, share=1.0, burst=1000.0)
            recovery = Recovery(route, retry=RetryTerms(base_s=0.001), budget=BudgetTerms(ratio=1000), hedge=hedge)
            served_model = model("m", *route, encoder=PROMPTS, recovery=recovery)

            def busy() -> int:
                return upstream.active + sum(each.in_flight for each in route)

        ledger = await stack.enter_async_context(Ledger(Slow() if wire else EmbeddedStore()))
        metrics, records, journal = Metrics("test"), list[RequestRecord](), Journal()
        app = build(
            models={"m": served_model},
            identity=Identity(KnownTenants({"k": TENANT})),
            metrics=metrics,
            sinks=[records.append],
            ledger=ledger,
            journal=journal,
            docket=Docket(),
        )
        stack.push_async_callback(app.aclose)
        served = Served(app, metrics, ledger, records, journal, busy, body, occupant, int(kind == "hedged"))
        await end_at(served, 0, "left")  # connections are open from here on
        served.tasks, served.spent = len(asyncio.all_tasks()), await served.charged()
        yield served
        if kind == "engine":
            engine._engine.scheduler.pool.check_integrity()


async def test_what_is_not_given_back_is_noticed(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the test below would hold of anything."""
    async with serving("engine", True, False, loaded) as served:
        monkeypatch.setattr(Journal, "leave", lambda self, place: None)
        await end_at(served, 3, "left")
        with pytest.raises(AssertionError, match=r"== set\(\)"):
            await settled(served, len(served.records) - 1)


@pytest.mark.parametrize("way", ["left", "cancelled"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("wire", [False, True], ids=["memory", "wire"])  # where the limits are kept
@pytest.mark.parametrize("kind", ["http", "fallback", "hedged", "engine", "waiting"])
async def test_a_call_that_is_ended_at_any_await_leaves_nothing_behind(
    kind: str, wire: bool, stream: bool, way: str, loaded: LoadedModel
) -> None:
    endings: set[Ending] = set()
    async with serving(kind, stream, wire, loaded) as served:
        for at in range(1, MOST_SUSPENSIONS):
            before = len(served.records)
            counter, responder, task = await end_at(served, at, way)
            await settled(served, before)
            if counter.suspensions < at:
                assert served.records[-1].ending is Ending.OK
                break
            endings |= {record.ending for record in served.records[before:]}
            if way == "cancelled":
                assert (task.cancelled(), responder.finished) == (False, 1), "its caller was not told"
                assert served.records[-1].ending is (Ending.LEFT if counter.cancelled else Ending.OK)
        else:
            pytest.fail("the call never ran to its end")

    assert at > 1, "nothing was awaited"
    twice = kind == "fallback" or (kind == "hedged" and stream)  # what is sent whole is never late
    assert len(served.records[-1].attempts) == (2 if twice else 1)
    assert endings <= {Ending.LEFT, Ending.OK}
    assert Ending.LEFT in endings
