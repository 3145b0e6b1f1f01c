"""POST /v1/completions, the way in: OpenAI's body into the one `Request`."""

from typing import Annotated, Any

from msgspec import Meta

from gateway.call import Operation, Request, TextPrompt
from gateway.errors import BadRequest
from gateway.protocols.fields import MAX_CHOICES, MAX_LOGPROBS, SharedFields, read_fields
from gateway.protocols.strict_json import parse_object

MAX_PROMPTS = 256


class CompletionBody(SharedFields, kw_only=True):
    """The fields of a completion that we read. `max_tokens` 0 with `echo` asks for the prompt's log-probabilities."""

    prompt: Any
    max_tokens: Annotated[int, Meta(ge=0, lt=2**31)] | None = None
    logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    response_format: dict[str, Any] | None = None


def decode_completion(body: bytes) -> Request:
    """Read a completion. Raises `BadRequest` naming the parameter at fault."""
    fields = read_fields(parse_object(body), CompletionBody)
    n = fields.n or 1
    if fields.best_of is not None:
        if fields.best_of < n:
            raise BadRequest(f"'best_of' is {fields.best_of} and must be at least 'n', {n}.", param="best_of")
        if fields.stream and fields.best_of > n:
            raise BadRequest("'best_of' greater than 'n' cannot be streamed.", param="best_of")
    if fields.max_tokens == 0 and not fields.echo:
        raise BadRequest("'max_tokens' must be at least 1 without 'echo'.", param="max_tokens")
    formatted = fields.response_format
    return Request(
        operation=Operation.COMPLETION,
        model=fields.model,
        prompt=TextPrompt(read_prompts(fields.prompt), bool(fields.echo), fields.suffix or None),
        stream=bool(fields.stream),
        include_usage=fields.include_usage(),
        n=n,
        max_tokens=fields.max_tokens,
        sampling=fields.sampling(fields.logprobs),
        response_format=None if formatted is None or formatted.get("type") == "text" else formatted,
        best_of=fields.best_of,
        user=fields.user,
    )


def read_prompts(prompt: object) -> tuple[str | tuple[int, ...], ...]:
    """Read any of the four shapes: text, texts, token ids, lists of token ids. Raises `BadRequest`."""
    if type(prompt) is str:
        return (prompt,)
    if type(prompt) is list and prompt:
        if all(type(item) is int for item in prompt):
            return (_ids(prompt),)
        if len(prompt) > MAX_PROMPTS:
            raise BadRequest(f"'prompt' has {len(prompt)} entries, at most {MAX_PROMPTS}.", param="prompt")
        if all(type(item) is str for item in prompt):
            return tuple(prompt)
        if all(type(item) is list and item and all(type(token) is int for token in item) for item in prompt):
            return tuple(_ids(item) for item in prompt)
    expected = "a string, a list of strings, a list of token ids or a list of those, none empty"
    raise BadRequest(f"Invalid value for 'prompt': expected {expected}.", param="prompt")


def _ids(ids: list[int]) -> tuple[int, ...]:
    if min(ids) < 0 or max(ids) >= 2**31:
        raise BadRequest("'prompt' holds a number that is no token id.", param="prompt")
    return tuple(ids)
