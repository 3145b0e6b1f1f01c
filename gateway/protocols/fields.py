"""The request fields that chat completions and completions share, their ranges, and how a wrong one is told.

Only fields that we read are named; the rest of the body passes through untouched. Null is as good as absent, as it is
for OpenAI. The extensions (`top_k`, `min_p`, `repetition_penalty`, `min_tokens`, `stop_token_ids`, `ignore_eos`) have
vLLM's names.
"""

import re
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from gateway.call import Json, Sampling
from gateway.errors import BadRequest, UnsupportedMedia

MAX_STOPS = 16
MAX_LOGPROBS = 20
MAX_CHOICES = 128
MAX_LOGIT_BIAS = 1024

Penalty = Annotated[float, Meta(ge=-2, le=2)]
Share = Annotated[float, Meta(ge=0, le=1)]
TokenId = Annotated[int, Meta(ge=0, lt=2**31)]
Count = Annotated[int, Meta(ge=1, lt=2**31)]
StopString = Annotated[str, Meta(min_length=1, max_length=4096)]


class StreamOptions(msgspec.Struct):
    """What a stream shall bring besides the answer."""

    include_usage: bool | None = None


class SharedFields(msgspec.Struct):
    """Fields of both surfaces."""

    model: Annotated[str, Meta(min_length=1, max_length=512)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Share | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: StopString | Annotated[list[StopString], Meta(max_length=MAX_STOPS)] | None = None
    user: str | None = None
    top_k: Annotated[int, Meta(ge=-1, lt=2**31)] | None = None
    min_p: Share | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    min_tokens: Annotated[int, Meta(ge=0, lt=2**31)] | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=256)] | None = None
    ignore_eos: bool | None = None

    def include_usage(self) -> bool:
        """Whether the stream ends with a chunk of usage. Raises `BadRequest` when options come without a stream."""
        if self.stream_options is None:
            return False
        if not self.stream:
            raise BadRequest("'stream_options' is only allowed when 'stream' is true.", param="stream_options")
        return bool(self.stream_options.include_usage)

    def sampling(self, logprobs: int | None) -> Sampling:
        """Gather what was said about sampling."""
        stop = self.stop
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            logit_bias=_biases(self.logit_bias) if self.logit_bias else None,
            seed=self.seed,
            logprobs=logprobs,
            stop=() if stop is None else (stop,) if isinstance(stop, str) else tuple(stop),
            stop_token_ids=tuple(self.stop_token_ids) if self.stop_token_ids else (),
            min_tokens=self.min_tokens,
            ignore_eos=bool(self.ignore_eos),
        )


def _biases(biases: dict[str, float]) -> dict[int, float]:
    if len(biases) > MAX_LOGIT_BIAS:
        raise BadRequest(f"'logit_bias' has {len(biases)} entries, at most {MAX_LOGIT_BIAS}.", param="logit_bias")
    for key in biases:
        if not (key.isascii() and key.isdigit() and len(key) <= 10):
            raise BadRequest(f"'logit_bias' has the key {key[:64]!r}; expected token ids.", param="logit_bias")
    return {int(key): bias for key, bias in biases.items()}


BodyT = TypeVar("BodyT", bound=msgspec.Struct)

_AT = re.compile(r"(.*) - at `(.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*?)`(?: - at `(.*)`)?")


def read_fields(tree: dict[str, Json], into: type[BodyT]) -> BodyT:
    """Check a body's fields against their types and ranges. Raises `BadRequest` naming the parameter."""
    try:
        return msgspec.convert(tree, into)
    except msgspec.ValidationError as error:
        raise _told(str(error)) from None


def _told(message: str) -> BadRequest:
    """Turn msgspec's ``Expected `int`, got `str` - at `$.n` `` into OpenAI's words."""
    missing = _MISSING.fullmatch(message)
    if missing:
        param = ".".join(filter(None, (_param(missing[2] or "$"), missing[1])))
        return BadRequest(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
    at = _AT.fullmatch(message)
    what, param = (at[1], _param(at[2])) if at else (message, "")
    what = what.replace("`", "").replace("Expected", "expected", 1)
    wrong_type = ", got " in what
    code = "invalid_type" if wrong_type else "invalid_value"
    return BadRequest(f"Invalid {'type' if wrong_type else 'value'} for '{param}': {what}.", param=param, code=code)


def _param(path: str) -> str:
    return path.removeprefix("$").removeprefix(".").removeprefix("key` in `$.").replace("[...]", "")


def require_json(content_type: bytes | None) -> None:
    """Raise `UnsupportedMedia` unless the body is declared as JSON in UTF-8, or not declared at all."""
    if content_type is None or content_type == b"application/json":
        return
    media, _, parameters = content_type.lower().partition(b";")
    charset = parameters.strip().replace(b'"', b"")
    if media.strip() != b"application/json" or charset not in (b"", b"charset=utf-8"):
        told = content_type[:64].decode("latin-1")
        raise UnsupportedMedia(f"The content type is {told!r}; expected application/json in UTF-8.")
