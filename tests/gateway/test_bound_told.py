"""What policy says of an answer's length is told to the HTTP upstream that brings it."""

import json

import pytest

from gateway.call import Call, Operation, Request, TextPrompt, TokenCount
from gateway.scope import Scope
from gateway.upstreams.splice import put_output_limit
from tests.gateway.conftest import http_upstream, model


@pytest.mark.parametrize(
    ("body", "chat", "expected"),
    [
        (b"{}", True, b'{"max_completion_tokens":7}'),
        (b"{}", False, b'{"max_tokens":7}'),
        (b'{"a": 1}', True, b'{"max_completion_tokens":7,"a": 1}'),
        (b'{"max_tokens" : 99, "a": 1}', True, b'{"max_tokens" : 7, "a": 1}'),
        (b'{"max_tokens":null}', False, b'{"max_tokens":7}'),
        (b'{"max_completion_tokens":99,"max_tokens":98}', True, b'{"max_completion_tokens":7,"max_tokens":7}'),
        (b'{"a":{"max_tokens":9}}', False, b'{"max_tokens":7,"a":{"max_tokens":9}}'),
    ],
)
def test_a_limit_is_told_by_the_names_that_are_there(body: bytes, chat: bool, expected: bytes) -> None:
    assert put_output_limit(body, 7, chat=chat) == expected


@pytest.mark.parametrize("imposed", [True, False])
async def test_only_what_policy_imposes_is_written_into_a_body(imposed: bool) -> None:
    upstream = http_upstream("http://127.0.0.1:1/v1")
    body = b'{"model": "m", "prompt": "x",  "max_tokens": 99}'
    request = Request(Operation.COMPLETION, "m", TextPrompt(("x",)), max_tokens=99)
    call = Call("id", "/v1/completions", 0.0, body, {}, request, 1e9, Scope())
    call.model = model("m", upstream)
    call.tokens = TokenCount(1, False, 30 if imposed else 99, imposed=imposed)

    assert upstream._body(call) == (body.replace(b"99", b"30") if imposed else body)
    assert json.loads(upstream._body(call))["prompt"] == "x"
    await upstream.aclose()
