"""The whole house: the official client and many callers at once, through the gateway, to the engine on the CPU."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from gateway.configuration.config import EngineModel
from gateway.telemetry.record import Ending
from gateway.upstreams.engine import EngineUpstream
from tests.gateway.conftest import Gateway, model, running
from tests.gateway.test_leaving import Baseline, Caller
from tests.rig.upstream import eventually
from tests.tiny_model import tiny_model_dir

MESSAGES: list[Any] = [{"role": "user", "content": "The quick brown fox"}]
GREEDY: dict[str, Any] = {"temperature": 0, "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_dir(tmp_path_factory.mktemp("model") / "tiny", hidden_size=32, num_layers=1, max_positions=4096)


@pytest.fixture
async def engine(directory: Path) -> EngineUpstream:
    settings = EngineModel(path=str(directory), device="cpu", threads=1, num_blocks=512, max_waiting=256)
    return await EngineUpstream.open("m", settings, directory)


@pytest.fixture
async def gateway(engine: EngineUpstream) -> AsyncIterator[Gateway]:
    async with running(model("m", engine, encoder=engine.prompts, max_context=engine.max_context)) as serving:
        yield serving


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="unused", max_retries=0, timeout=60) as client:
        yield client


async def idle(engine: EngineUpstream) -> None:
    """Wait until nothing runs, and see that every block is accounted for."""
    stats = engine._engine.stats
    total = stats.total_blocks
    await eventually(lambda: engine._engine.stats.running == 0 and engine._engine.stats.waiting == 0, 20)
    await eventually(lambda: engine._engine.stats.free_blocks + engine._engine.stats.cached_blocks == total, 20)
    assert engine.room().slots == 256 + 32 or engine._occupied == 0


async def test_a_chat_is_the_same_whole_streamed_and_again(client: AsyncOpenAI, engine: EngineUpstream) -> None:
    whole = await client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=24, **GREEDY)
    again = await client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=24, **GREEDY)
    stream = await client.chat.completions.create(
        model="m", messages=MESSAGES, max_tokens=24, stream=True, stream_options={"include_usage": True}, **GREEDY
    )
    text, usage, finish = "", None, None
    async for chunk in stream:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
        usage = chunk.usage or usage

    assert text == whole.choices[0].message.content == again.choices[0].message.content
    assert finish == whole.choices[0].finish_reason == "length"
    assert whole.usage is not None
    assert usage is not None
    assert whole.usage.completion_tokens == usage.completion_tokens == 24
    assert whole.usage.prompt_tokens == usage.prompt_tokens
    await idle(engine)


async def test_choices_differ_by_seed_and_repeat_by_seed(client: AsyncOpenAI) -> None:
    async def ask(seed: int) -> list[str | None]:
        answer = await client.chat.completions.create(
            model="m", messages=MESSAGES, max_tokens=16, n=3, seed=seed, temperature=1.5
        )
        return [choice.message.content for choice in answer.choices]

    first = await ask(1)

    assert len(set(first)) == 3
    assert await ask(1) == first
    assert await ask(2) != first


async def test_log_probabilities_belong_to_the_text(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="m", messages=MESSAGES, max_tokens=12, logprobs=True, top_logprobs=3, **GREEDY
    )

    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 12
    assert all(entry.logprob == entry.top_logprobs[0].logprob for entry in logprobs.content)
    assert all(len(entry.top_logprobs) == 3 for entry in logprobs.content)
    spoken = bytes(byte for entry in logprobs.content for byte in entry.bytes or ())
    assert (
        spoken.decode("utf-8", "replace")
        .rstrip("\ufffd")
        .startswith((answer.choices[0].message.content or "").rstrip("\ufffd")[:5])
    )


async def test_completions_take_several_prompts_and_echo_them(client: AsyncOpenAI) -> None:
    answer = await client.completions.create(
        model="m", prompt=["The fox", "The dog"], n=2, max_tokens=8, logprobs=None, echo=True, **GREEDY
    )

    texts = [choice.text for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [text[:7] for text in texts] == ["The fox"] * 2 + ["The dog"] * 2
    assert texts[0] == texts[1]


async def test_a_stop_string_ends_the_answer_and_is_not_in_it(client: AsyncOpenAI) -> None:
    whole = await client.completions.create(model="m", prompt="The fox", max_tokens=24, **GREEDY)
    text = whole.choices[0].text
    stop = text[len(text) // 2 : len(text) // 2 + 3]

    stopped = await client.completions.create(model="m", prompt="The fox", max_tokens=24, stop=[stop], **GREEDY)

    assert stopped.choices[0].text == text[: text.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 4096}, "messages"),
        ({"messages": [{"role": "user", "content": "fox " * 5000}]}, "messages"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logit_bias": {"100000": 1}}, "logit_bias"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required"}, "tool_choice"),
    ],
)
async def test_what_the_engine_cannot_do_is_a_bad_request(
    client: AsyncOpenAI, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(**{"model": "m", "messages": MESSAGES} | fields)

    assert caught.value.param == param


async def test_two_hundred_streams_end_exactly_once_each_and_the_aborted_free_their_blocks(
    gateway: Gateway, engine: EngineUpstream
) -> None:
    baseline = Baseline()

    async def read(number: int) -> bytes:
        asked = {"stream": True, "max_tokens": 4000 if number % 4 == 3 else 12, "ignore_eos": True, "temperature": 0}
        content = f"The fox number {number % 7}"
        caller = await Caller.ask(gateway, messages=[{"role": "user", "content": content}], **asked)
        if number % 4 == 3:
            read = await caller.read_until(b'"content":')
            caller.leave(rudely=number % 8 == 3)
            return read
        read = await caller.read_until(b"\r\n0\r\n\r\n")
        caller.leave(rudely=False)
        return read

    streams = await asyncio.gather(*(read(number) for number in range(200)))
    await eventually(lambda: len(gateway.records) == 200, 20)

    finished = [read for number, read in enumerate(streams) if number % 4 != 3]
    assert all(read.count(b"[DONE]") == 1 and b'"error"' not in read for read in finished)
    assert all(read.count(b'"finish_reason":"length"') == 1 for read in finished)
    endings = [record.ending for record in gateway.records]
    assert (endings.count(Ending.OK), endings.count(Ending.LEFT)) == (150, 50)
    assert all(record.usage.completion == 12 for record in gateway.records if record.ending is Ending.OK)
    assert all(0 < record.usage.completion < 4000 for record in gateway.records if record.ending is Ending.LEFT)
    await idle(engine)
    await baseline.returns()
    assert gateway.metrics.in_flight == 0


async def test_same_questions_have_the_same_answers_in_company_and_alone(gateway: Gateway) -> None:
    async with httpx.AsyncClient(base_url=gateway.url, timeout=60) as client:

        async def ask(number: int) -> str:
            body = {"model": "m", "prompt": f"number {number}", "max_tokens": 16, "temperature": 0, "ignore_eos": True}
            answer: str = (await client.post("/v1/completions", json=body)).json()["choices"][0]["text"]
            return answer

        together = await asyncio.gather(*(ask(number) for number in range(24)))
        alone = [await ask(number) for number in range(0, 24, 6)]

    assert [together[number] for number in range(0, 24, 6)] == alone


async def test_draining_lets_a_running_stream_finish(gateway: Gateway) -> None:
    caller = await Caller.ask(gateway, stream=True, max_tokens=40, ignore_eos=True)
    await caller.read_until(b'"content":')
    gateway.app.drain()

    rest = await caller.read_until(b"\r\n0\r\n\r\n")

    assert b"[DONE]" in rest
    caller.leave(rudely=False)


async def test_metrics_tell_of_the_engine(gateway: Gateway, engine: EngineUpstream, client: AsyncOpenAI) -> None:
    gateway.metrics.watch_engine("m", engine.stats)
    await client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=4, **GREEDY)
    await eventually(lambda: len(gateway.records) == 1)

    async with httpx.AsyncClient(base_url=gateway.url) as plain:
        told = (await plain.get("/metrics")).text

    assert 'penstock_tokens_total{kind="completion",model="m",operation="chat"} 4.0' in told
    assert "penstock_engine_steps_total" in told
