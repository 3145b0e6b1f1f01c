"""What is read of OpenAI's bodies, and how a wrong parameter is told."""

import json
from typing import Any

import pytest

from gateway.call import ChatPrompt, Operation, Sampling, TextPrompt
from gateway.errors import BadRequest, UnsupportedMedia
from gateway.protocols.chat_request import decode_chat
from gateway.protocols.completion_request import decode_completion
from gateway.protocols.fields import require_json
from gateway.protocols.tokens import decode_detokenize, decode_tokenize

MESSAGES = [{"role": "user", "content": "hi"}]


def chat(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": MESSAGES, **fields}).encode()


def completion(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "prompt": "hi", **fields}).encode()


def test_a_chat_says_what_it_says_and_no_more() -> None:
    request = decode_chat(chat())

    assert request.operation is Operation.CHAT
    assert request.model == "m"
    assert request.prompt == ChatPrompt(MESSAGES)  # type: ignore[arg-type]
    assert (request.stream, request.include_usage, request.n, request.max_tokens) == (False, False, 1, None)
    assert request.sampling == Sampling()


def test_every_sampling_field_of_a_chat_is_read() -> None:
    request = decode_chat(
        chat(
            temperature=0.5, top_p=0.9, top_k=5, min_p=0.1, presence_penalty=1, frequency_penalty=-1,
            repetition_penalty=1.1, logit_bias={"7": -100, "8": 3.5}, seed=-3, logprobs=True, top_logprobs=4,
            stop=["a", "b"], stop_token_ids=[1, 2], min_tokens=3, ignore_eos=True,
        )
    )  # fmt: skip

    assert request.sampling == Sampling(
        0.5, 0.9, 5, 0.1, 1.0, -1.0, 1.1, {7: -100.0, 8: 3.5}, -3, 4, ("a", "b"), (1, 2), 3, True
    )


def test_null_is_as_good_as_absent() -> None:
    names = [
        "stream", "stream_options", "n", "temperature", "top_p", "max_tokens", "max_completion_tokens", "seed", "stop",
        "logprobs", "top_logprobs", "logit_bias", "tools", "tool_choice", "response_format", "user",
    ]  # fmt: skip

    assert decode_chat(chat(**dict.fromkeys(names))) == decode_chat(chat())


def test_fields_that_we_do_not_know_are_nobodys_business() -> None:
    assert decode_chat(chat(unheard_of={"a": [1, {"b": None}]}, metadata=3)) == decode_chat(chat())


def test_max_completion_tokens_goes_before_max_tokens() -> None:
    assert decode_chat(chat(max_tokens=5)).max_tokens == 5
    assert decode_chat(chat(max_tokens=5, max_completion_tokens=7)).max_tokens == 7


def test_logprobs_of_a_chat_are_asked_for_by_two_fields() -> None:
    assert decode_chat(chat(logprobs=True)).sampling.logprobs == 0
    assert decode_chat(chat(logprobs=True, top_logprobs=5)).sampling.logprobs == 5
    assert decode_chat(chat(logprobs=False)).sampling.logprobs is None


def test_plain_text_is_no_response_format() -> None:
    assert decode_chat(chat(response_format={"type": "text"})).response_format is None
    assert decode_chat(chat(response_format={"type": "json_object"})).response_format == {"type": "json_object"}


def test_to_go_on_in_the_last_message_is_not_to_answer_it() -> None:
    prompt = decode_chat(chat(continue_final_message=True)).prompt

    assert isinstance(prompt, ChatPrompt)
    assert (prompt.continue_final_message, prompt.add_generation_prompt) == (True, False)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"model": ""}, "model"),
        ({"model": 5}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [*MESSAGES, {"role": 5}]}, "messages[1].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": -2.5}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": 1.5}, "n"),
        ({"n": 10**30}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 0.5}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": 5}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": ["a", None]}, "stop[1]"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"logprobs": 5}, "logprobs"),
        ({"top_logprobs": 5}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": {str(token): 1 for token in range(1025)}}, "logit_bias"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"tools": [5]}, "tools[0]"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": 5}, "tool_choice"),
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": "json"}, "response_format"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
    ],
)
def test_a_wrong_parameter_of_a_chat_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        decode_chat(chat(**fields))

    assert caught.value.param == param
    assert param.partition("[")[0].partition(".")[0] in caught.value.message
    assert "$" not in caught.value.message


@pytest.mark.parametrize("name", ["model", "messages"])
def test_a_missing_parameter_is_named(name: str) -> None:
    body = json.loads(chat())
    del body[name]

    with pytest.raises(BadRequest, match="Missing required parameter") as caught:
        decode_chat(json.dumps(body).encode())

    assert (caught.value.param, caught.value.code) == (name, "missing_required_parameter")


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("hi", ("hi",)),
        ("", ("",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1], [2, 3]], ((1,), (2, 3))),
    ],
)
def test_a_prompt_has_four_shapes(prompt: object, prompts: tuple[object, ...]) -> None:
    request = decode_completion(completion(prompt=prompt))

    assert isinstance(request.prompt, TextPrompt)
    assert request.prompt.prompts == prompts


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [1, True]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [2**31]}, "prompt"),
        ({"prompt": ["a"] * 257}, "prompt"),
        ({"prompt": {"text": "a"}}, "prompt"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": 21}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1, "echo": True}, "max_tokens"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"best_of": 3, "n": 2, "stream": True}, "best_of"),
        ({"echo": "yes"}, "echo"),
        ({"suffix": 5}, "suffix"),
    ],
)
def test_a_wrong_parameter_of_a_completion_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        decode_completion(completion(**fields))

    assert caught.value.param == param


def test_a_completion_may_ask_for_its_prompt_alone() -> None:
    assert decode_completion(completion(max_tokens=0, echo=True)).max_tokens == 0


@pytest.mark.parametrize(
    "declared", [None, b"application/json", b"application/json; charset=utf-8", b'Application/JSON;charset="UTF-8"']
)
def test_json_may_be_declared_in_several_ways(declared: bytes | None) -> None:
    require_json(declared)


@pytest.mark.parametrize(
    "declared", [b"text/plain", b"application/x-www-form-urlencoded", b"application/json; charset=latin-1", b""]
)
def test_what_is_declared_as_something_else_is_refused(declared: bytes) -> None:
    with pytest.raises(UnsupportedMedia):
        require_json(declared)


def test_text_or_a_chat_can_be_tokenised_but_not_both() -> None:
    assert decode_tokenize(b'{"model":"m","prompt":"x"}').prompt == "x"
    assert decode_tokenize(b'{"model":"m","messages":[{"role":"user"}]}').chat().add_generation_prompt
    for body in (b'{"model":"m"}', b'{"model":"m","prompt":"x","messages":[{"role":"user"}]}'):
        with pytest.raises(BadRequest, match="either"):
            decode_tokenize(body)


def test_only_ids_can_be_detokenised() -> None:
    assert decode_detokenize(b'{"model":"m","tokens":[1,2]}').tokens == [1, 2]
    with pytest.raises(BadRequest):
        decode_detokenize(b'{"model":"m","tokens":[-1]}')
