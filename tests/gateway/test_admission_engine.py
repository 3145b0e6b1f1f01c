"""An engine at its limits: who waits for its blocks, that everybody ends, and who leaves a queue and pays nothing."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from gateway.app import Bounds
from gateway.configuration.config import EngineModel
from gateway.upstreams.engine import EngineUpstream
from policies.tenant import UNLIMITED, Priority, Tenant, Terms
from tests.gateway.conftest import Gateway, model, running
from tests.gateway.test_meter import CHAT, LIMIT, metered
from tests.rig.in_process import InProcess
from tests.rig.limited import tokens_a_minute
from tests.rig.upstream import eventually
from tests.tiny_model import tiny_model_dir

BLOCKS = 16  # of 16 tokens


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_dir(tmp_path_factory.mktemp("model") / "tiny", hidden_size=32, num_layers=1, max_positions=4096)


async def opened(directory: Path, **settings: Any) -> EngineUpstream:
    return await EngineUpstream.open("m", EngineModel(path=str(directory), threads=1, **settings), directory)


@asynccontextmanager
async def serving(engine: EngineUpstream, **settings: Any) -> AsyncIterator[tuple[Gateway, httpx.AsyncClient]]:
    served = model("m", engine, encoder=engine.prompts, max_context=engine.max_context)
    limits = httpx.Limits(max_connections=None)
    async with (
        running(served, **settings) as gateway,
        httpx.AsyncClient(base_url=gateway.url, timeout=60, limits=limits) as client,
    ):
        yield gateway, client


async def baseline(engine: EngineUpstream) -> None:
    """Nothing is left: no place taken, no block held, and the pool is sound."""
    await eventually(lambda: not engine._engine.has_work and engine.room().in_flight == 0)
    stats = engine._engine.stats
    assert stats.free_blocks + stats.cached_blocks == stats.total_blocks
    engine._engine.scheduler.pool.check_integrity()


def wish(rng: Random) -> dict[str, Any]:
    """A prompt of any length up to the whole pool, an answer of any, streamed or not, one choice or two."""
    prompt = [rng.randrange(3, 500) for _ in range(rng.choice((3, 20, 60, 120, 230)))]
    answer = {"prompt": prompt, "max_tokens": rng.choice((1, 8, 20, 25)), "temperature": 0, "ignore_eos": True}
    return {"model": "m", "stream": rng.random() < 0.3, "n": rng.choice((1, 1, 1, 2)), **answer}


@pytest.mark.fault_row(40)
@pytest.mark.parametrize("reserve", [0.0, 0.05, 0.5])
async def test_two_hundred_mixed_requests_over_sixteen_blocks_all_end(directory: Path, reserve: float) -> None:
    rng = Random(4)
    wishes = [wish(rng) for _ in range(200)]
    names = {
        f"k{i}": Tenant(f"t{i}", decide=_terms(Terms(UNLIMITED.account, priority=p))) for i, p in enumerate(Priority)
    }
    engine = await opened(directory, num_blocks=BLOCKS, max_sequences=8, kv_reserve=reserve)
    bounds = Bounds(max_waiting=200, max_wait_s=60)
    async with serving(engine, tenants=names, bounds=bounds) as (gateway, client):

        async def ask(body: dict[str, Any]) -> httpx.Response:
            headers = {"authorization": f"Bearer {rng.choice(sorted(names))}"}
            await asyncio.sleep(rng.random())
            return await client.post("/v1/completions", json=body, headers=headers)

        answers = await asyncio.gather(*map(ask, wishes))
        await baseline(engine)

        assert {answer.status_code for answer in answers} == {200}
        whole = [(body, answer) for body, answer in zip(wishes, answers, strict=True) if not body["stream"]]
        assert all(len(answer.json()["choices"]) == body["n"] for body, answer in whole)
        streams = [answer.text for body, answer in zip(wishes, answers, strict=True) if body["stream"]]
        assert all(text.endswith("data: [DONE]\n\n") and '"error"' not in text for text in streams)
        assert len(gateway.records) == 200
        for body, answer in whole[:20]:  # as if nobody else had been there
            headers = {"authorization": "Bearer k0"}
            alone = await client.post("/v1/completions", json=body, headers=headers)
            assert alone.json()["choices"] == answer.json()["choices"]


def _terms(terms: Terms) -> Any:
    return lambda model: terms


@pytest.mark.fault_row(40)
async def test_a_flood_that_is_more_than_may_wait_is_answered_too(directory: Path) -> None:
    rng = Random(5)
    engine = await opened(directory, num_blocks=BLOCKS, max_sequences=4)
    async with serving(engine, bounds=Bounds(max_waiting=10, max_wait_s=1.0)) as (gateway, client):
        bodies = [wish(rng) for _ in range(200)]
        answers = await asyncio.gather(*[client.post("/v1/completions", json=body) for body in bodies])
        await baseline(engine)

    refused = [answer for answer in answers if answer.status_code == 503]
    assert {answer.status_code for answer in answers} == {200, 503}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert len(gateway.records) == 200


async def test_a_prompt_waits_until_its_blocks_are_free(directory: Path) -> None:
    engine = await opened(directory, num_blocks=BLOCKS, max_sequences=4)
    async with serving(engine) as (gateway, client):
        long = {"model": "m", "prompt": [7] * 150, "max_tokens": 60, "ignore_eos": True, "stream": True}
        async with client.stream("POST", "/v1/completions", json=long) as first:
            lines = first.aiter_lines()
            await anext(lines)
            second = asyncio.ensure_future(client.post("/v1/completions", json=long | {"prompt": [8] * 150}))
            await eventually(lambda: b"penstock_requests_waiting 1.0" in gateway.metrics.exposition() or second.done())
            assert engine._engine.stats.preemptions == 0
            async for _ in lines:
                pass
        assert (await second).status_code == 200
        await baseline(engine)


# Who leaves.


@pytest.mark.fault_row(25)
async def test_who_leaves_the_gateways_queue_is_removed_and_pays_nothing() -> None:
    async with metered(InProcess(slots=0), tokens_a_minute(LIMIT)) as limits:
        with pytest.raises(httpx.ReadTimeout):
            await limits.client.post("/v1/chat/completions", json=CHAT, timeout=0.1)
        await limits.over()

        assert limits.gateway.records[0].status == 499
        assert b"penstock_requests_waiting 0.0" in limits.gateway.metrics.exposition()
        assert await limits.spent() == [0]


@pytest.mark.fault_row(25)
async def test_who_leaves_the_engines_queue_is_removed_and_pays_nothing(directory: Path) -> None:
    engine = await opened(directory, num_blocks=256, max_sequences=1, kv_reserve=0)
    settings = {"encoder": engine.prompts, "max_context": engine.max_context}
    long = {"model": "m", "prompt": [7] * 50, "max_tokens": 3500, "ignore_eos": True, "stream": True}
    async with metered(engine, tokens_a_minute(10_000), step=2000, **settings) as limits:
        async with limits.client.stream("POST", "/v1/completions", json=long) as first:
            lines = first.aiter_lines()
            await anext(lines)
            second = asyncio.ensure_future(limits.client.post("/v1/completions", json=long | {"prompt": [8] * 50}))
            await eventually(lambda: engine._engine.stats.waiting == 1)
            second.cancel()
            await asyncio.gather(second, return_exceptions=True)
            await limits.over()
            left = limits.gateway.records[0]
            assert first.status_code == 200
            assert (left.status, left.usage.prompt, left.usage.completion) == (499, 0, 0)
        await limits.over(2)
        await baseline(engine)
        charged = sum(record.usage.prompt + record.usage.completion for record in limits.gateway.records)

        assert await limits.spent() == [charged]


async def test_tenants_weights_reach_the_engine(directory: Path) -> None:
    terms = Terms(UNLIMITED.account, weight=3.0, priority=Priority.HIGH)
    engine = await opened(directory, num_blocks=64)
    seen: list[tuple[str, float, int]] = []
    submit = engine._engine.submit

    def watched(request: Any) -> None:
        seen.append((request.order_key, request.weight, request.priority))
        submit(request)

    engine._engine.submit = watched  # type: ignore[method-assign]
    async with serving(engine, tenants={"k": Tenant("acme/web", decide=_terms(terms))}) as (_, client):
        body = {"model": "m", "prompt": "hello", "max_tokens": 2}
        answer = await client.post("/v1/completions", json=body, headers={"authorization": "Bearer k"})

    assert answer.status_code == 200
    assert seen == [("acme/web", 3.0, 1)]
