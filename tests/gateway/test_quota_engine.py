"""An engine's model under limits, over HTTP: to the token, streamed or whole, however it ends."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from cache.embedded import EmbeddedStore
from cache.ledger import Ledger
from gateway.configuration.config import EngineModel
from gateway.upstreams.engine import EngineUpstream
from policies.bucket import Kind, Limit
from policies.holder import Measure, Rule
from tests.gateway.conftest import model, running
from tests.gateway.test_meter import Metered, chunks
from tests.rig.limited import Clock, limited
from tests.rig.upstream import eventually
from tests.tiny_model import tiny_model_dir

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "The quick brown fox"}], "ignore_eos": True}


def output_a_month(amount: int) -> Rule:
    return Rule(Limit.budget("acme output_tokens/month", Kind.MONTH, amount), output=1, measure=Measure.OUTPUT)


def tokens_a_month(amount: int) -> Rule:
    return Rule(Limit.budget("acme tokens/month", Kind.MONTH, amount), input=1, cached=1, output=1)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_dir(tmp_path_factory.mktemp("model") / "tiny", hidden_size=32, num_layers=1, max_positions=4096)


@pytest.fixture
async def engine(directory: Path) -> EngineUpstream:
    settings = EngineModel(path=str(directory), device="cpu", threads=1, num_blocks=512, max_waiting=64)
    return await EngineUpstream.open("m", settings, directory)


@asynccontextmanager
async def metered(engine: EngineUpstream, *rules: Rule, step: int = 16) -> AsyncIterator[Metered]:
    tenant = limited(*rules, step=step)
    served = model("m", engine, encoder=engine.prompts, max_context=engine.max_context)
    async with (
        Ledger(EmbeddedStore()) as ledger,
        running(served, tenants={"k": tenant}, ledger=ledger) as gateway,
        httpx.AsyncClient(base_url=gateway.url, headers={"authorization": "Bearer k"}, timeout=60) as client,
    ):
        yield Metered(gateway, client, ledger, tenant.terms("m").account, Clock())


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_stops_at_the_edge_and_not_a_token_past_it(engine: EngineUpstream, stream: bool) -> None:
    async with metered(engine, output_a_month(100)) as limits:
        answer = await limits.ask(**CHAT, max_tokens=300, stream=stream)
        await limits.over()

        last = chunks(answer.text)[-1] if stream else answer.json()
        assert last["choices"][0]["finish_reason"] == "length"
        assert last["penstock"] == {"limit": "acme output_tokens/month"}
        assert last["usage"]["completion_tokens"] == 100
        assert await limits.spent() == [100]
        assert limits.quota().ended.key == "acme output_tokens/month"
        assert limits.quota().overshoot == 0
        assert limits.quota().exact
        assert not answer.headers["x-penstock-input-tokens"].endswith(";estimate")

        refused = await limits.ask(**CHAT)
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "insufficient_quota"


async def test_concurrent_answers_never_bring_more_than_there_is(engine: EngineUpstream) -> None:
    async with metered(engine, output_a_month(500), tokens_a_month(2000)) as limits:
        answers = await asyncio.gather(
            *[limits.ask(**CHAT, max_tokens=40 + 7 * index, stream=index % 2 == 0) for index in range(24)]
        )
        await limits.over(24)
        brought = sum(record.usage.completion for record in limits.gateway.records)
        prompts = sum(record.usage.prompt for record in limits.gateway.records)

        assert {answer.status_code for answer in answers} <= {200, 429}
        assert 0 < brought <= 500
        assert await limits.spent() == [brought, brought + prompts]


async def test_who_leaves_an_engine_pays_for_what_it_produced(engine: EngineUpstream) -> None:
    async with metered(engine, output_a_month(5000)) as limits:
        body = {"model": "m", **CHAT, "max_tokens": 3000, "stream": True}
        async with limits.client.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = answer.aiter_lines()
            heard = 0
            while heard < 20:
                line = await anext(lines)
                heard += line.startswith("data: ") and bool(json.loads(line[6:])["choices"][0]["delta"].get("content"))
        await limits.over()
        [spent] = await limits.spent()

        assert 20 <= spent < 3000
        assert limits.gateway.records[0].usage.completion == spent


async def test_what_cannot_begin_costs_nothing(engine: EngineUpstream) -> None:
    async with metered(engine, tokens_a_month(5000)) as limits:
        refused = await limits.ask(**CHAT, logit_bias={"999999": 1})
        await limits.over()

        assert refused.status_code == 400
        assert await limits.spent() == [0]
        await eventually(lambda: engine._occupied == 0)
