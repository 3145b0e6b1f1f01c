"""Callers who leave, in the middle of an answer and while they wait: who notices, what is freed, and what it costs.

The defence is one: the server cancels the task of a request whose connection is gone. It is taken out, once each.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest

from cache.embedded import EmbeddedStore
from cache.ledger import Ledger
from gateway.configuration.config import EngineModel
from gateway.http.connection import Connection
from gateway.telemetry.record import Ending
from gateway.upstreams.base import Upstream as GatewayUpstream
from gateway.upstreams.engine import EngineUpstream
from tests.gateway.conftest import Gateway, http_upstream, model, running
from tests.gateway.test_leaving import Caller
from tests.rig.limited import limited, tokens_a_minute
from tests.rig.upstream import eventually, scripted_upstream
from tests.tiny_model import tiny_model_dir

PLENTY = 10_000_000
SOON_S, LONG_S = 30.0, 0.5  # within which something comes to hold; after which it never will
CALLERS = 1_000


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_dir(tmp_path_factory.mktemp("model") / "tiny", hidden_size=32, num_layers=1, max_positions=4096)


def nobody_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the defence out: a request whose caller is gone goes on, into the void."""

    def stay(self: Connection) -> None:
        if self._exchange is not None:
            self._exchange.done = True

    monkeypatch.setattr(Connection, "_leave", stay)


class Site:
    """A gateway whose one tenant is charged for every token."""

    def __init__(self, gateway: Gateway, ledger: Ledger) -> None:
        self.gateway = gateway
        self._ledger = ledger

    async def charged(self) -> int:
        [standing] = await self._ledger.look(TENANT.terms("m").account)
        return PLENTY - standing.free

    @property
    def used(self) -> int:
        """Tokens of all calls that have ended, as they were reported."""
        return sum(record.usage.prompt + record.usage.completion for record in self.gateway.records)


TENANT = limited(tokens_a_minute(PLENTY))


@asynccontextmanager
async def site(upstream: GatewayUpstream, **settings: object) -> AsyncIterator[Site]:
    store = EmbeddedStore(clock=lambda: 1_790_000_000_000_000)  # at which nothing flows back
    async with (
        Ledger(store) as ledger,
        running(model("m", upstream, **settings), tenants={"k": TENANT}, ledger=ledger) as gateway,
    ):
        yield Site(gateway, ledger)


@pytest.mark.fault_row(24)
async def test_whoever_leaves_in_the_middle_closes_its_upstream_and_pays_for_what_came(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rng = Random(24)
    async with scripted_upstream() as server, site(http_upstream(server.url)) as it:
        places = asyncio.Semaphore(50)

        async def come(number: int) -> None:
            script = {"words": ["w"] * 60, "chunk_delay_s": 0.005, "hang_at": 50}
            async with places:
                caller = await Caller.ask(it.gateway, key="k", stream=True, script=script)
                for _ in range(rng.randint(1, 8)):
                    await caller.read_until(b'"w"')
                caller.leave(rudely=number % 2 == 0)

        await asyncio.gather(*(come(number) for number in range(CALLERS)))
        await eventually(lambda: len(it.gateway.records) == CALLERS, SOON_S)
        await eventually(lambda: all(seen.ending == "left" for seen in server.seen), SOON_S)

        assert len(server.seen) == CALLERS
        assert {record.ending for record in it.gateway.records} == {Ending.LEFT}
        assert all(0 < record.usage.completion <= 50 for record in it.gateway.records)
        assert await it.charged() == it.used
    assert caplog.records == []


@pytest.mark.fault_row(24, removed=True)
async def test_where_nobody_notices_the_upstream_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    nobody_notices(monkeypatch)
    async with scripted_upstream() as server, site(http_upstream(server.url)) as it:
        caller = await Caller.ask(it.gateway, key="k", stream=True, script={"words": ["w"] * 5, "hang_at": 3})
        await caller.read_until(b'"w"')
        caller.leave(rudely=True)
        await asyncio.sleep(LONG_S)

        assert (server.active, len(it.gateway.records)) == (1, 0)


async def engine_of(directory: Path, **settings: int) -> EngineUpstream:
    config = EngineModel(path=str(directory), threads=1, num_blocks=600, kv_reserve=0.0, **settings)
    return await EngineUpstream.open("m", config, directory)


LONG = {"max_tokens": 3_500, "ignore_eos": True, "stream": True}


@pytest.mark.fault_row(24)
async def test_whoever_leaves_an_engine_frees_its_blocks_and_pays_for_what_was_produced(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rng = Random(25)
    engine = await engine_of(directory, max_sequences=16)
    async with site(engine, encoder=engine.prompts, max_context=engine.max_context) as it:
        places = asyncio.Semaphore(12)

        async def come(number: int) -> None:
            async with places:
                caller = await Caller.ask(it.gateway, key="k", **LONG)
                for _ in range(rng.randint(1, 8)):
                    await caller.read_until(b"data: ")
                caller.leave(rudely=number % 2 == 0)

        await asyncio.gather(*(come(number) for number in range(CALLERS)))
        await eventually(lambda: len(it.gateway.records) == CALLERS, SOON_S)
        await eventually(lambda: not engine._engine.has_work)
        stats = engine.stats()

        assert (stats["running"], stats["waiting"], stats["aborts"]) == (0, 0, CALLERS)
        assert stats["free_blocks"] + stats["cached_blocks"] == stats["total_blocks"]
        engine._engine.scheduler.pool.check_integrity()
        assert sum(record.usage.completion for record in it.gateway.records) == stats["generated_tokens"] > 0
        assert await it.charged() == it.used
    assert caplog.records == []


@pytest.mark.fault_row(24, removed=True)
async def test_where_nobody_notices_the_engine_goes_on(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody_notices(monkeypatch)
    engine = await engine_of(directory)
    async with site(engine, encoder=engine.prompts, max_context=engine.max_context) as it:
        caller = await Caller.ask(it.gateway, key="k", **LONG)
        await caller.read_until(b"data: ")
        caller.leave(rudely=True)
        heard = engine.stats()["generated_tokens"]
        await eventually(lambda: engine.stats()["generated_tokens"] > heard + 100, 30)

        assert engine.stats()["aborts"] == 0


@pytest.mark.fault_row(25)
@pytest.mark.parametrize("rudely", [False, True], ids=["FIN", "RST"])
@pytest.mark.parametrize("defended", [True, False])
async def test_whoever_leaves_the_queue_is_never_sent_and_pays_nothing(
    defended: bool, rudely: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not defended:
        nobody_notices(monkeypatch)
    async with scripted_upstream() as server, site(http_upstream(server.url, slots=1)) as it:
        served = await Caller.ask(it.gateway, key="k", script={"head_delay_s": 0.3})
        await eventually(lambda: server.active == 1)
        waiting = [await Caller.ask(it.gateway, key="k", script={"words": ["w"]}) for _ in range(5)]
        await eventually(lambda: b"penstock_requests_waiting 5.0" in it.gateway.metrics.exposition())
        for each in waiting:
            each.leave(rudely=rudely)
        await served.read_until(b"stream.")
        served.leave(rudely=False)
        await eventually(lambda: it.gateway.metrics.in_flight == 0)
        sent = len(server.seen)
        left = [record for record in it.gateway.records if record.ending is Ending.LEFT]
        charged = await it.charged()

    assert (sent == 1) is defended
    assert (charged == 7 + 5) is defended
    assert (len(left) == 5 and all((each.usage.prompt, each.usage.completion) == (0, 0) for each in left)) is defended
