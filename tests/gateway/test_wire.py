"""Errors of upstreams: every one is told, none in another's words."""

import json

import pytest

from gateway.errors import DeadlineExceeded, UpstreamError, UpstreamFailure, UpstreamTimeout
from gateway.http import errors as transport
from gateway.protocols.openai_error import error_body, error_event
from gateway.upstreams.http import KINDS, LATE, WORDS, translate
from gateway.upstreams.wire import error_of_status, peek_at
from tests.rig.in_process import InProcess, call_to

OPENAI = b'{\n  "error": {"message": "too fast", "type": "requests", "param": null, "code": "rate_limit_exceeded"}\n}'


def errors_below(root: type[Exception]) -> set[type[Exception]]:
    return {root}.union(*(errors_below(child) for child in root.__subclasses__()))


def test_every_error_of_the_client_has_its_translation() -> None:
    assert set(KINDS) == errors_below(transport.TransportError) - {transport.TransportError}
    assert set(KINDS.values()) <= set(WORDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_translated_error_keeps_whether_anything_was_sent_and_shows_no_address(kind: type[Exception]) -> None:
    met = kind("10.0.0.1:80 is gone") if KINDS[kind] in UNSENT else kind("10.0.0.1:80 is gone", sent=True)  # type: ignore[arg-type,call-arg]
    assert isinstance(met, transport.TransportError)

    error = translate(met, None)

    assert isinstance(error, UpstreamError)
    assert error.sent is met.sent
    assert "10.0.0.1" not in error.message
    assert isinstance(error, UpstreamTimeout) is (error.kind in LATE)
    assert error.status == (504 if error.kind in LATE else 502)


UNSENT = {UpstreamFailure.CONNECT, UpstreamFailure.CONNECT_TIMEOUT}


def test_the_callers_own_deadline_is_told_as_such() -> None:
    error = translate(transport.DeadlinePassed("x", sent=True), call_to(InProcess()))

    assert isinstance(error, DeadlineExceeded)


def test_an_error_in_openais_shape_goes_through_byte_for_byte() -> None:
    error = error_of_status(429, OPENAI, retry_after_s=7.0)

    assert (error.status, error.answered, error.body, error.headers) == (
        429,
        429,
        OPENAI,
        {"retry-after": "7", "retry-after-ms": "7000"},
    )
    assert error_body(error) == OPENAI


def test_an_error_of_several_lines_becomes_one_event() -> None:
    event = error_event(error_of_status(429, OPENAI))

    assert event.count(b"\n") == 2
    assert json.loads(event.removeprefix(b"data: ")) == json.loads(OPENAI)


@pytest.mark.parametrize(
    ("status", "body", "shown", "message"),
    [
        (400, b'{"object":"error","message":"too long","code":400}', 400, "too long"),
        (404, b'{"detail":"Not Found"}', 404, "Not Found"),
        (422, b'{"detail":[{"loc":["body"]}]}', 422, "The upstream answered with status 422."),
        (500, b'{"error":"boom"}', 500, "boom"),
        (500, b'{"error":{"code":1}}', 500, "The upstream answered with status 500."),
        (503, b"<html>nginx</html>", 502, "The upstream answered with status 503."),
        (500, b"", 502, "The upstream answered with status 500."),
        (500, b"[]", 502, "The upstream answered with status 500."),
        (500, b"\xff", 502, "The upstream answered with status 500."),
        (500, b"[" * 100_000, 502, "The upstream answered with status 500."),
    ],
)
def test_other_shapes_are_told_in_openais(status: int, body: bytes, shown: int, message: str) -> None:
    error = error_of_status(status, body)
    told = json.loads(error_body(error))["error"]

    assert (error.status, error.answered, told["message"]) == (shown, status, message)
    assert set(told) == {"message", "type", "param", "code"}
    assert (told["type"], told["code"]) == ("upstream_error", "upstream_status")


@pytest.mark.parametrize("status", [401, 403, 407])
def test_our_own_key_being_refused_is_not_the_callers_fault(status: int) -> None:
    error = error_of_status(status, b'{"error":{"message":"Incorrect API key provided: sk-our-own"}}')

    assert error.status == 502
    assert b"sk-our-own" not in error_body(error)


def test_a_whole_answer_that_is_an_error_is_noticed() -> None:
    with pytest.raises(UpstreamError) as caught:
        peek_at(b'{"error":{"message":"x","code":503}}')

    assert (caught.value.kind, caught.value.status) == (UpstreamFailure.IN_BAND, 503)
