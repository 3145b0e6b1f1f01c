"""What we read in the answers of OpenAI-compatible servers: usage, errors, the end. Everything else passes unread."""

from typing import Any

import msgspec

from gateway.attempts.recovery import retry_headers
from gateway.call import Usage
from gateway.errors import NO_HEADERS, UpstreamError, UpstreamFailure

# A key of ours that an upstream refuses is our operator's affair: the caller, whose own key is good, must not be told
# that it is not.
OUR_AFFAIR = frozenset((401, 403, 407))


class PromptDetails(msgspec.Struct):
    """What of a prompt came from a cache."""

    cached_tokens: int | None = None


class WireUsage(msgspec.Struct):
    """Usage as servers tell it."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None

    def to_usage(self) -> Usage:
        """Give it in our words."""
        details = self.prompt_tokens_details
        cached = details.cached_tokens if details is not None else None
        return Usage(self.prompt_tokens or 0, self.completion_tokens or 0, cached or 0)


class WireChoice(msgspec.Struct):
    """One choice, as far as its end."""

    finish_reason: str | None = None


class Peek(msgspec.Struct):
    """One answer, or one chunk of a streamed one."""

    usage: WireUsage | None = None
    error: Any = None
    object: str | None = None
    message: Any = None
    choices: list[WireChoice] | None = None

    @property
    def ends(self) -> bool:
        """Whether a stream may end after this chunk: it ends a choice, or tells the usage of all."""
        return self.usage is not None or any(choice.finish_reason is not None for choice in self.choices or ())


_peek = msgspec.json.Decoder(Peek).decode


def peek_at(data: bytes) -> Peek:
    """Look into an answer or a chunk, about 1 µs. Raises `UpstreamError`: malformed, or an error in place of it."""
    try:
        peek = _peek(data)
        if not data.isascii():
            data.decode()  # the strings that are skipped over were not looked into
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise malformed("it is not the JSON of an answer") from error
    if peek.error is not None:
        raise error_in_band(peek.error, data)
    if peek.object == "error":
        raise error_in_band({"message": peek.message}, None)
    return peek


def error_in_band(error: Any, body: bytes | None) -> UpstreamError:
    """Make the error of an answer that began with a 200; its own code may be the status that it should have had."""
    code = error.get("code") if isinstance(error, dict) else None
    answered = code if type(code) is int and 400 <= code <= 599 and code not in OUR_AFFAIR else None
    message = message_in(error) or "The upstream reported an error inside its answer."
    return UpstreamError(
        message,
        kind=UpstreamFailure.IN_BAND,
        status=answered,
        answered=answered,
        body=body if isinstance(error, dict) and isinstance(error.get("message"), str) else None,
    )


class WireFailure(msgspec.Struct):
    """The body of an error status: OpenAI's, or what others call it."""

    error: Any = None
    message: Any = None
    detail: Any = None


def error_of_status(
    status: int, body: bytes, *, retry_after_s: float | None = None, should_retry: bool | None = None
) -> UpstreamError:
    """Make the error of an answer whose status is one.

    OpenAI's shape goes through as it is; another JSON keeps its status and its message; what is no JSON (a proxy's
    page) is a 502 that does not repeat it. When to come again is told on, except where it is between the upstream and
    us.
    """
    ours = status in OUR_AFFAIR
    headers = NO_HEADERS if retry_after_s is None or ours else retry_headers(retry_after_s)
    answered = f"The upstream answered with status {status}."

    def failed(message: str, shown: int, body: bytes | None = None) -> UpstreamError:
        return UpstreamError(
            message,
            kind=UpstreamFailure.STATUS,
            status=shown,
            answered=status,
            body=body,
            headers=headers,
            retry_after_s=retry_after_s,
            should_retry=should_retry,
        )

    if ours:
        return failed(f"The upstream refused the gateway's credentials (status {status}).", 502)
    try:
        failure = msgspec.json.decode(body, type=WireFailure)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return failed(answered, 502)
    if isinstance(failure.error, dict) and isinstance(failure.error.get("message"), str):
        return failed(failure.error["message"], status, body)
    told = message_in(failure.error) or message_in(failure.message) or message_in(failure.detail)
    return failed(told or answered, status)


def message_in(told: Any) -> str | None:
    """Give the words of an error, however it is shaped."""
    if isinstance(told, dict):
        told = told.get("message")
    return told[:4096] if isinstance(told, str) and told else None


def malformed(what: str) -> UpstreamError:
    """Make the error of an answer that cannot be understood."""
    return UpstreamError(f"The upstream's answer is malformed: {what}.", kind=UpstreamFailure.PROTOCOL)
