"""What the engine says, in OpenAI's shapes: a stream says what the whole answer says."""

import json
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from engine.text.template import ChatTemplate
from engine.text.tokenizer import Tokenizer
from gateway.call import Event, FinishReason, TokenLogprob, Usage
from gateway.errors import GatewayError, UpstreamError, UpstreamFailure
from gateway.prompts import ModelPrompts
from tests.gateway.conftest import model, running
from tests.rig.in_process import InProcess
from tests.tiny_model import CHATML, byte_level_tokenizer

MESSAGES: list[Any] = [{"role": "user", "content": "hi"}]
TOOLS: list[Any] = [{"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}]
CORE = byte_level_tokenizer()
TOKENIZER = Tokenizer(CORE, named_tokens={"eos_token": "<|im_end|>"}, stop_ids=frozenset([2]))
PROMPTS = ModelPrompts(
    TOKENIZER, ChatTemplate({"default": CHATML}, TOKENIZER.named_tokens, TOKENIZER.shield), max_context=256
)
USAGE = Usage(5, 4, 2)


def say(*texts: str, index: int = 0, finish: FinishReason = FinishReason.STOP) -> list[Event]:
    return [*(Event(index=index, text=text, token_ids=(9,)) for text in texts), Event(index=index, finish=finish)]


def ending(events: list[Event]) -> list[Event]:
    events[-1].usage = USAGE
    return events


class Asked:
    """One chat asked twice, streamed and whole."""

    def __init__(self, chunks: list[dict[str, Any]], whole: dict[str, Any], raw: str) -> None:
        self.chunks = chunks
        self.whole = whole
        self.raw = raw

    def choices(self, index: int = 0) -> list[dict[str, Any]]:
        return [choice for chunk in self.chunks for choice in chunk["choices"] if choice["index"] == index]


async def ask(events: list[Event | GatewayError], path: str = "/v1/chat/completions", **fields: Any) -> Asked:
    served = model("m", InProcess(events, takes_ids=True), encoder=PROMPTS)
    asked = {"model": "m"} | ({"messages": MESSAGES} if "chat" in path else {"prompt": "hi"}) | fields
    async with running(served) as gateway, httpx.AsyncClient(base_url=gateway.url) as client:
        options = {"stream": True, "stream_options": {"include_usage": True}}
        streamed = (await client.post(path, json=asked | options)).text
        whole = (await client.post(path, json=asked)).json()
    blocks = streamed.split("\n\n")
    assert blocks.pop() == ""
    data = [block.removeprefix("data: ") for block in blocks]
    assert data.pop() == "[DONE]"
    return Asked([json.loads(each) for each in data], whole, streamed)


async def test_a_chat_has_openais_shape() -> None:
    asked = await ask(ending(say("Hel", "lo")))

    whole = asked.whole
    assert whole["id"].startswith("chatcmpl-")
    assert (whole["object"], whole["model"], whole["system_fingerprint"]) == ("chat.completion", "m", "fp_test")
    assert isinstance(whole["created"], int)
    assert whole["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert whole["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 4,
        "total_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 2},
    }


async def test_a_streamed_chat_has_openais_shape() -> None:
    asked = await ask(ending(say("Hel", "lo")))

    *chunks, last = asked.chunks
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": "", "refusal": None},
        {"content": "Hel"},
        {"content": "lo"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "stop"]
    assert all(chunk["usage"] is None and chunk["choices"][0]["logprobs"] is None for chunk in chunks)
    assert (last["choices"], last["usage"]) == ([], asked.whole["usage"])
    assert len({(chunk["id"], chunk["created"]) for chunk in asked.chunks}) == 1
    for chunk in asked.chunks:
        assert chunk["object"] == "chat.completion.chunk"
        assert set(chunk) == {"id", "object", "created", "model", "system_fingerprint", "choices", "usage"}


async def test_without_usage_asked_for_no_chunk_speaks_of_it() -> None:
    served = model("m", InProcess(say("a"), takes_ids=True), encoder=PROMPTS)
    async with running(served) as gateway, httpx.AsyncClient(base_url=gateway.url) as client:
        body = {"model": "m", "messages": MESSAGES, "stream": True}
        text = (await client.post("/v1/chat/completions", json=body)).text

    assert "usage" not in text


async def test_text_with_everything_that_json_escapes_arrives() -> None:
    text = 'quote " backslash \\ newline \n tab \t nul \x00 emoji 👩‍🚀 line separator \u2028 data: [DONE]\n\n'

    asked = await ask(ending(say(*text)))

    assert asked.whole["choices"][0]["message"]["content"] == text
    assert "".join(choice["delta"].get("content", "") for choice in asked.choices()) == text


async def test_several_choices_are_told_apart() -> None:
    events = [event for pair in zip(say("a", "b", "c"), say("x", "y", "z", index=1), strict=True) for event in pair]

    asked = await ask(ending(events), n=2)

    for index, text in enumerate(("abc", "xyz")):
        assert "".join(choice["delta"].get("content", "") for choice in asked.choices(index)) == text
        assert asked.choices(index)[0]["delta"]["role"] == "assistant"
        assert [choice["finish_reason"] for choice in asked.choices(index)].count("stop") == 1
        assert asked.whole["choices"][index]["message"]["content"] == text


@pytest.mark.parametrize("reason", [FinishReason.STOP, FinishReason.LENGTH])
async def test_the_reason_for_the_end_is_told(reason: FinishReason) -> None:
    asked = await ask(ending(say("a", finish=reason)))

    assert asked.whole["choices"][0]["finish_reason"] == reason
    assert asked.choices()[-1]["finish_reason"] == reason


CALL = '<tool_call>\n{"name": "find", "arguments": {"q": "a b"}}\n</tool_call>'


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
async def test_tool_calls_are_told_from_text_however_they_are_cut(size: int) -> None:
    text = f"Let me see. {CALL}\n{CALL}"

    asked = await ask(ending(say(*(text[at : at + size] for at in range(0, len(text), size)))), tools=TOOLS)

    choice = asked.whole["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Let me see."
    told = [call["function"] for call in choice["message"]["tool_calls"]]
    assert told == [{"name": "find", "arguments": '{"q": "a b"}'}] * 2
    deltas = [choice["delta"] for choice in asked.choices()]
    assert "".join(delta.get("content") or "" for delta in deltas) == "Let me see."
    calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
    assert [(call["index"], call["type"], call["function"]) for call in calls] == [
        (0, "function", told[0]),
        (1, "function", told[1]),
    ]
    assert len({call["id"] for call in calls}) == 2
    assert asked.choices()[-1]["finish_reason"] == "tool_calls"


async def test_a_chat_with_a_call_alone_has_no_content() -> None:
    asked = await ask(ending(say(CALL)), tools=TOOLS)

    assert asked.whole["choices"][0]["message"]["content"] is None


@pytest.mark.parametrize("fields", [{}, {"tools": TOOLS, "tool_choice": "none"}])
async def test_without_tools_offered_markup_is_text(fields: dict[str, Any]) -> None:
    asked = await ask(ending(say(CALL)), **fields)

    assert asked.whole["choices"][0]["message"]["content"] == CALL
    assert asked.whole["choices"][0]["finish_reason"] == "stop"


def spoken(text: str) -> list[Event]:
    """Events with log-probabilities, one token each; text that is half a character comes with a later token."""
    events, pending = [], b""
    for token in CORE.encode(text).ids:
        pending += TOKENIZER.token_bytes(token)
        try:
            piece, pending = pending.decode(), b""
        except UnicodeDecodeError:
            piece = ""
        entry = TokenLogprob(token, -0.5, ((token, -0.5), (0, float("-inf"))))
        events.append(Event(text=piece, token_ids=(token,), logprobs=(entry,)))
    return ending([*events, Event(finish=FinishReason.STOP)])


async def test_log_probabilities_of_a_chat() -> None:
    text = "fox 🦊!"

    asked = await ask(spoken(text), logprobs=True, top_logprobs=2)

    whole = asked.whole["choices"][0]["logprobs"]
    assert set(whole) == {"content", "refusal"}
    assert bytes(byte for entry in whole["content"] for byte in entry["bytes"]).decode() == text
    assert all(entry["logprob"] == -0.5 for entry in whole["content"])
    assert [top["logprob"] for top in whole["content"][0]["top_logprobs"]] == [-0.5, -9999.0]
    assert whole["content"][0]["top_logprobs"][1]["token"] == "<|endoftext|>"
    streamed = [choice["logprobs"]["content"] for choice in asked.choices() if choice["logprobs"]]
    assert [entry for entries in streamed for entry in entries] == whole["content"]


async def test_log_probabilities_are_not_lost_on_tool_calls() -> None:
    asked = await ask(spoken("a " + CALL), logprobs=True, tools=TOOLS)

    streamed = [choice["logprobs"]["content"] for choice in asked.choices() if choice["logprobs"]]
    assert [entry for entries in streamed for entry in entries] == asked.whole["choices"][0]["logprobs"]["content"]


async def test_a_completion_has_openais_shape() -> None:
    asked = await ask(ending(say("Hel", "lo")), "/v1/completions")

    whole = asked.whole
    assert whole["id"].startswith("cmpl-")
    assert whole["object"] == "text_completion"
    assert whole["choices"] == [{"text": "Hello", "index": 0, "logprobs": None, "finish_reason": "stop"}]
    assert whole["usage"]["total_tokens"] == 9
    assert "".join(choice["text"] for choice in asked.choices()) == "Hello"
    assert asked.choices()[-1]["finish_reason"] == "stop"
    assert asked.chunks[-1]["usage"] == whole["usage"]


async def test_an_echoed_prompt_stands_before_each_choice() -> None:
    events = [*say("a"), *say("b", index=1), *say("c", index=2), *say("d", index=3)]
    prompts = ["one ", CORE.encode("two ").ids]

    for prompt, texts in ((["one ", "two "], ["one a", "one b", "two c", "two d"]),):
        asked = await ask(ending(list(events)), "/v1/completions", prompt=prompt, n=2, echo=True)
        assert [choice["text"] for choice in asked.whole["choices"]] == texts
        assert ["".join(choice["text"] for choice in asked.choices(index)) for index in range(4)] == texts
    ids = [prompts[1], prompts[1]]
    asked = await ask(ending(list(events)), "/v1/completions", prompt=ids, n=2, echo=True)
    assert asked.whole["choices"][0]["text"] == "two a"


async def test_log_probabilities_of_a_completion() -> None:
    text = "fox 🦊!"

    asked = await ask(spoken(text), "/v1/completions", logprobs=2)

    whole = asked.whole["choices"][0]["logprobs"]
    tokens = CORE.encode(text).ids
    assert set(whole) == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
    assert {len(each) for each in whole.values()} == {len(tokens)}
    assert whole["token_logprobs"] == [-0.5] * len(tokens)
    assert whole["text_offset"][0] == 0
    assert whole["text_offset"] == sorted(whole["text_offset"])
    assert whole["text_offset"][-1] == text.index("!")
    streamed = [choice["logprobs"] for choice in asked.choices() if choice["logprobs"]]
    for name in whole:
        assert [entry for each in streamed for entry in each[name]] == whole[name]


async def test_an_error_of_the_engine_ends_a_stream_with_one_event() -> None:
    broken = UpstreamError("The engine could not finish: nan.", kind=UpstreamFailure.ENGINE)
    served = model("m", InProcess([Event(text="a"), broken], takes_ids=True), encoder=PROMPTS)
    async with running(served) as gateway, httpx.AsyncClient(base_url=gateway.url) as client:
        body = {"model": "m", "messages": MESSAGES}
        streamed = await client.post("/v1/chat/completions", json=body | {"stream": True})
        whole = await client.post("/v1/chat/completions", json=body)

    last = streamed.text.removesuffix("\n\n").rpartition("\n\n")[2]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "upstream_engine"
    assert "[DONE]" not in streamed.text
    assert (whole.status_code, whole.json()["error"]["code"]) == (502, "upstream_engine")


async def test_the_official_client_reads_it_all() -> None:
    served = model("m", InProcess(spoken("a " + CALL), takes_ids=True), encoder=PROMPTS)
    async with running(served) as gateway, AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="x") as client:
        whole = await client.chat.completions.create(model="m", messages=MESSAGES, tools=TOOLS, logprobs=True)
        async with client.chat.completions.stream(model="m", messages=MESSAGES, tools=TOOLS, logprobs=True) as stream:
            async for _ in stream:
                pass
            streamed = await stream.get_final_completion()

    for answer in (whole, streamed):
        message = answer.choices[0].message
        assert message.content == "a"
        assert message.tool_calls is not None
        assert message.tool_calls[0].type == "function"
        assert message.tool_calls[0].function.name == "find"
        assert answer.choices[0].finish_reason == "tool_calls"
    assert whole.choices[0].logprobs == streamed.choices[0].logprobs


async def test_tokens_there_and_back() -> None:
    served = model("m", InProcess(takes_ids=True), encoder=PROMPTS)
    async with running(served) as gateway, httpx.AsyncClient(base_url=gateway.url) as client:
        text = "The fox 🦊"
        there = (await client.post("/tokenize", json={"model": "m", "prompt": text, "return_token_strs": True})).json()
        back = (await client.post("/detokenize", json={"model": "m", "tokens": there["tokens"]})).json()
        chat = (await client.post("/tokenize", json={"model": "m", "messages": MESSAGES})).json()
        wrong = await client.post("/detokenize", json={"model": "m", "tokens": [10_000]})
        called = (await client.post("/v1/chat/completions", json={"model": "m", "messages": MESSAGES})).json()

    assert there["tokens"] == CORE.encode(text).ids
    assert (there["count"], there["max_model_len"]) == (len(there["tokens"]), 256)
    assert there["token_strs"][0] == "The"
    assert back == {"prompt": text}
    assert chat["token_strs"] is None
    assert CORE.decode(chat["tokens"], skip_special_tokens=False).startswith("<|im_start|>user\nhi<|im_end|>")
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "tokens")
    assert called["object"] == "chat.completion"


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"messages": [{"role": "user", "content": "x " * 300}]}, "messages", "context_length_exceeded"),
        ({"max_tokens": 256}, "messages", "context_length_exceeded"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages", None),
    ],
)
async def test_what_the_model_cannot_take_is_a_400(fields: dict[str, Any], param: str, code: str | None) -> None:
    served = model("m", InProcess(takes_ids=True), encoder=PROMPTS)
    async with running(served) as gateway, httpx.AsyncClient(base_url=gateway.url) as client:
        response = await client.post("/v1/chat/completions", json={"model": "m", "messages": MESSAGES} | fields)

    assert response.status_code == 400
    assert (response.json()["error"]["param"], response.json()["error"]["code"]) == (param, code)


def limited(*indices: int) -> list[Event]:
    """Each choice says a word and is ended by a quota; the last event of all has the usage."""
    words = [Event(index=index, text="word", token_ids=(9,)) for index in indices]
    ends = [Event(index=index, finish=FinishReason.LENGTH, limit="acme tokens/min") for index in indices]
    return ending([*words, *ends])


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_the_limit_that_ended_an_answer_is_named_beside_the_reason(path: str) -> None:
    asked = await ask(limited(0, 1), path, n=2)

    *chunks, last = asked.chunks
    named = [chunk for chunk in chunks if "penstock" in chunk]
    assert [chunk["penstock"] for chunk in named] == [{"limit": "acme tokens/min"}] * 2
    assert [chunk["choices"][0]["finish_reason"] for chunk in named] == ["length"] * 2
    assert [chunk["usage"] for chunk in chunks] == [None] * len(chunks)
    assert (last["choices"], last["usage"]) == ([], asked.whole["usage"])
    assert asked.whole["penstock"] == {"limit": "acme tokens/min"}
    assert [choice["finish_reason"] for choice in asked.whole["choices"]] == ["length"] * 2


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_a_stream_that_a_quota_ended_tells_its_usage_to_who_did_not_ask(path: str) -> None:
    served = model("m", InProcess(limited(0, 1), takes_ids=True), encoder=PROMPTS)
    asked = {"model": "m", "stream": True, "n": 2} | ({"messages": MESSAGES} if "chat" in path else {"prompt": "hi"})
    async with running(served) as gateway, httpx.AsyncClient(base_url=gateway.url) as client:
        text = (await client.post(path, json=asked)).text
    chunks = [json.loads(block.removeprefix("data: ")) for block in text.split("\n\n")[:-2]]

    assert all(chunk["choices"] for chunk in chunks), "a chunk without choices breaks clients that did not ask for it"
    assert ["usage" in chunk for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1]["usage"]["completion_tokens"] == USAGE.completion


async def test_an_answer_that_no_limit_ended_names_none() -> None:
    asked = await ask(ending(say("a", finish=FinishReason.LENGTH)))

    assert "penstock" not in asked.raw
    assert "penstock" not in asked.whole
