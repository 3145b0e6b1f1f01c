"""The official client against the gateway before an OpenAI-compatible server."""

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam

from tests.gateway.conftest import Gateway
from tests.rig.upstream import Upstream, eventually

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="unused", max_retries=0, timeout=10) as client:
        yield client


async def test_a_chat(client: AsyncOpenAI, upstream: Upstream) -> None:
    answer = await client.chat.completions.create(
        model="m", messages=MESSAGES, n=2, stop=["x"], seed=7, temperature=0.5, logprobs=True, top_logprobs=2
    )

    assert [choice.message.content for choice in answer.choices] == ["Hello from upstream."] * 2
    assert answer.usage is not None
    assert answer.usage.total_tokens == 17
    sent = upstream.seen[0].fields
    assert (sent["n"], sent["stop"], sent["seed"], sent["logprobs"], sent["top_logprobs"]) == (2, ["x"], 7, True, 2)


async def test_a_streamed_chat_of_several_choices(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="m", messages=MESSAGES, n=3, stream=True, stream_options={"include_usage": True}
    )
    texts, finishes, usage = {0: "", 1: "", 2: ""}, {}, None
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                finishes[choice.index] = choice.finish_reason
        usage = chunk.usage or usage

    assert set(texts.values()) == {"Hello from upstream."}
    assert finishes == dict.fromkeys(range(3), "stop")
    assert usage is not None
    assert usage.completion_tokens == 15


async def test_completions_whole_and_streamed(client: AsyncOpenAI) -> None:
    whole = await client.completions.create(model="m", prompt="hi", n=2, logprobs=1)
    stream = await client.completions.create(model="m", prompt="hi", stream=True)

    text = "".join([choice.text async for chunk in stream for choice in chunk.choices])
    assert [choice.text for choice in whole.choices] == ["Hello from upstream."] * 2
    assert text == "Hello from upstream."


async def test_models(client: AsyncOpenAI) -> None:
    listed = [each.id async for each in client.models.list()]
    one = await client.models.retrieve("m")

    assert listed == ["m"]
    assert (one.id, one.owned_by) == ("m", "tests")


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"temperature": 9}, openai.BadRequestError),
        ({"model": "unheard-of"}, openai.NotFoundError),
        ({"extra_body": {"script": {"status": 400}}}, openai.BadRequestError),
        ({"extra_body": {"script": {"status": 409}}}, openai.ConflictError),
        ({"extra_body": {"script": {"status": 422}}}, openai.UnprocessableEntityError),
        ({"extra_body": {"script": {"status": 429}}}, openai.RateLimitError),
        ({"extra_body": {"script": {"status": 500}}}, openai.InternalServerError),
        ({"extra_body": {"script": {"status": 401}}}, openai.InternalServerError),
        ({"extra_body": {"script": {"reset_at": "accept"}}}, openai.InternalServerError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_is_the_exception_that_the_client_has_for_it(
    client: AsyncOpenAI, fields: dict[str, Any], kind: type[openai.APIStatusError], stream: bool
) -> None:
    with pytest.raises(kind) as caught:
        await client.chat.completions.create(**{"model": "m", "messages": MESSAGES, "stream": stream} | fields)

    assert caught.type is kind
    assert caught.value.request_id
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["message"]


async def test_an_error_in_a_stream_is_an_exception_after_what_came_before(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="m", messages=MESSAGES, stream=True, extra_body={"script": {"reset_at": 3, "chunk_delay_s": 0.005}}
    )
    read: list[str | None] = []

    async def read_on() -> None:
        async for chunk in stream:
            read.append(chunk.choices[0].delta.content)  # noqa: PERF401 - what came before the error counts

    with pytest.raises(openai.APIError, match="closed the connection"):
        await read_on()

    assert read == ["", "Hello", " from"]


async def test_a_client_that_closes_its_stream_closes_the_upstream(client: AsyncOpenAI, upstream: Upstream) -> None:
    stream = await client.chat.completions.create(
        model="m", messages=MESSAGES, stream=True, extra_body={"script": {"hang_at": 2}}
    )
    async for _ in stream:
        break
    await stream.close()

    await eventually(lambda: upstream.seen[0].ending == "left")
