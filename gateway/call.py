"""One request on its way through the gateway: the central types and how stages compose.

A field of `Call` has one writer, named beside it, and is read only by what stands later in the pipeline. What never
changes is a msgspec struct: a frozen dataclass sets its fields one by one through `object`, which made up a tenth of a
request's cost here.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol, TypeAlias

import msgspec

from gateway.attempts.recovery import Recovery
from gateway.deadline import Clock
from gateway.scope import Scope
from policies.outcome import Outcome
from policies.tenant import Tenant, Terms

if TYPE_CHECKING:
    from gateway.generation import Generation
    from gateway.quotas.quota import Quota
    from gateway.upstreams.base import Upstream

# What a body has for each token of its prompt, about: English is 4 to 5 and code 3 in today's vocabularies, other
# scripts are less, and a body's own marks come on top.
BYTES_PER_TOKEN = 4.0

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"


class Operation(StrEnum):
    """What is asked for; the value is OpenTelemetry's `gen_ai.operation.name`."""

    __hash__ = str.__hash__  # an enum's own is written in Python

    CHAT = "chat"
    COMPLETION = "text_completion"


class FinishReason(StrEnum):
    """Why a choice ended, in OpenAI's words."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"


class ChatPrompt(msgspec.Struct, frozen=True):
    """Messages and tools as they came, checked to be strict JSON; each message is an object with a role.

    `continue_final_message` asks to go on in the last message instead of answering it.
    """

    messages: list[dict[str, Json]]
    tools: list[dict[str, Json]] | None = None
    tool_choice: Json = None
    template_kwargs: dict[str, Json] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False


class TextPrompt(msgspec.Struct, frozen=True):
    """Plain prompts, each text or token ids; a list of several makes that many times `n` choices."""

    prompts: tuple[str | tuple[int, ...], ...]
    echo: bool = False
    suffix: str | None = None


class Sampling(msgspec.Struct, frozen=True):
    """What the caller said about sampling; None where it said nothing."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    logprobs: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int | None = None
    ignore_eos: bool = False


class Request(msgspec.Struct):
    """The fields we read, whatever the protocol it came in. What is not here passes through in the body untouched."""

    operation: Operation
    model: str
    prompt: ChatPrompt | TextPrompt
    stream: bool = False
    include_usage: bool = False
    n: int = 1
    max_tokens: int | None = None
    sampling: Sampling = msgspec.field(default_factory=Sampling)
    response_format: dict[str, Json] | None = None  # None also where the caller asked for plain text
    best_of: int | None = None
    user: str | None = None


class Usage(msgspec.Struct):
    """Tokens of one generation. `cached` is the part of `prompt` that was found in a prefix cache."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0


class TokenLogprob(msgspec.Struct, frozen=True):
    """One emitted token with its log-probability and the likeliest alternatives, ids only: the edge decodes them."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class Event(msgspec.Struct):
    """One step of an answer, whatever the upstream.

    From an HTTP upstream whose protocol is the caller's, `raw` holds bytes to forward as they are, parsed only when
    somebody asks. From the engine, `index` names the choice, `token_ids` and `text` what it gained, `finish` its end;
    `usage` comes with the last event of all. `limit` is on an event with `finish` where a quota ended the choice, and
    names the limit. After raw bytes that are the `last` nothing more is owed to the caller.
    """

    raw: bytes | None = None
    index: int = 0
    token_ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: FinishReason | None = None
    usage: Usage | None = None
    limit: str | None = None
    last: bool = False


class Events(Protocol):
    """The events of an answer, once. Closing them before their end cancels what makes them.

    An async generator is one; where there are few events, a plain object costs less (the event loop keeps a weak
    reference to each generator, 1.5 µs).
    """

    def __aiter__(self) -> AsyncIterator[Event]: ...

    async def __anext__(self) -> Event: ...

    async def aclose(self) -> None: ...


class Single:
    """The events of an answer that came whole. `event` may be read without waiting; it is None once it was given."""

    __slots__ = ("event",)

    def __init__(self, event: Event) -> None:
        self.event: Event | None = event

    def take(self) -> Event | None:
        """Give the event, once."""
        event, self.event = self.event, None
        return event

    def __aiter__(self) -> "Single":
        return self

    async def __anext__(self) -> Event:
        event = self.take()
        if event is None:
            raise StopAsyncIteration
        return event

    async def aclose(self) -> None:
        """Forget the event."""
        self.event = None


class Reply(msgspec.Struct):
    """An answer under way. `raw` says that the events carry bytes in the caller's own protocol."""

    status: int
    headers: dict[str, str]
    events: Events
    raw: bool = False


class PromptEncoder(Protocol):
    """Turns a request into the served model's own token ids: template, tools and tokenizer (`gateway/prompts.py`)."""

    max_context: int | None

    async def encode(self, prompt: ChatPrompt | TextPrompt, salt: bytes) -> tuple[tuple[int, ...], ...]:
        """Give the ids of each prompt (one for a chat). Raises `BadRequest` for what template or tokenizer refuses.

        What is remembered of it is found again under the same `salt` only (the tenant's).
        """
        ...

    async def count(self, prompt: ChatPrompt | TextPrompt, salt: bytes) -> tuple[int, ...]:
        """Give how many ids each prompt has. Raises as `encode` does."""
        ...

    async def encode_text(self, text: str, salt: bytes, *, special: bool = True) -> tuple[int, ...]: ...

    def tokenize(self, text: str, *, special: bool = True) -> tuple[int, ...]:
        """Give the ids of a short text, without remembering any."""
        ...

    def detokenize(self, token_ids: Sequence[int]) -> str: ...

    def token_text(self, token_id: int) -> str:
        """One token as the vocabulary spells it, for people to look at."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes of one token, for log-probabilities."""
        ...

    def close(self) -> None: ...


@dataclass(slots=True)
class Model:
    """A served model: the name callers use and what stands behind it. Built once from the configuration."""

    name: str
    upstreams: tuple["Upstream", ...]
    created: int
    owned_by: str
    fingerprint: str
    encoder: PromptEncoder | None = None  # where we own the tokenizer
    max_context: int | None = None
    max_output: int | None = None
    upstream_model: str | None = None  # what its HTTP upstreams call it, where they call it otherwise
    bytes_per_token: float = BYTES_PER_TOKEN  # of a request's body, where we do not own the tokenizer
    recovery: Recovery = field(default_factory=Recovery)  # what is done about attempts that fail or are late
    needs_ids: bool = field(init=False)  # whether some upstream takes token ids, so that prompts must be encoded

    def __post_init__(self) -> None:
        self.needs_ids = any(upstream.takes_ids for upstream in self.upstreams)


class TokenCount(msgspec.Struct):
    """What `Bound` found: `input` is the count of all prompts together, an estimate where not `exact`.

    `output` is how many tokens each choice may bring, None where neither caller nor model nor policy says; all choices
    together (`gateway.quotas.quota.num_choices`) that many times. `prompts` are the ids where an upstream wants them,
    so that nothing is tokenised twice. `imposed` says that `output` is the policy's doing and not the caller's, so that
    it has to be told to an upstream that reads the body.
    """

    input: int
    exact: bool
    output: int | None = None
    prompts: tuple[tuple[int, ...], ...] | None = None
    imposed: bool = False


class Departure(msgspec.Struct, frozen=True, omit_defaults=True):
    """Tokens that an upstream says to have used beyond what we counted; less is negative, agreement 0."""

    prompt: int = 0
    completion: int = 0


class AttemptKind(StrEnum):
    """Why an attempt was sent: for the call itself, because another one failed, or because one is late."""

    FIRST = "first"
    RETRY = "retry"
    HEDGE = "hedge"


class Attempt(msgspec.Struct):
    """One sending to one upstream. Times are loop seconds.

    `departure`: its usage is not what we counted. `refused`: it failed before the upstream began to work on it.
    `lost`: it was given up, because another attempt of the same call was quicker.
    """

    upstream: str
    started: float
    kind: AttemptKind = AttemptKind.FIRST
    first_event: float | None = None
    ended: float | None = None
    outcome: Outcome | None = None
    error: str | None = None
    departure: Departure | None = None
    refused: bool = False
    lost: bool = False


@dataclass(slots=True)
class Call:
    """One request on its way through the gateway."""

    id: str
    path: str
    received: float  # loop seconds, which are `time.monotonic()`'s
    body: bytes  # as received; forwarded untouched unless a field must change
    headers: dict[bytes, bytes]  # as received, names lower-case
    request: Request
    deadline: float  # loop seconds; resolve may bring it forward
    scope: Scope  # what a stage acquires it enters here; released last-in first-out
    clock: Clock = Clock.GATEWAY  # whose deadline it is
    tenant: Tenant = field(init=False)  # authenticate
    model: Model = field(init=False)  # resolve
    terms: Terms = field(init=False)  # resolve: what the tenant's policy says of this model
    quota: "Quota | None" = field(init=False, default=None)  # throttle: None where the terms hold no limit
    tokens: TokenCount = field(init=False)  # bound
    generation: "Generation" = field(init=False)  # generate
    route: tuple["Upstream", ...] = field(init=False, default=())  # choose
    attempts: list[Attempt] = field(init=False, default_factory=list)  # dispatch
    sent_bytes: int = field(init=False, default=0)  # the edge
    told: bool = field(init=False, default=False)  # the edge: the whole answer has gone out


Handler = Callable[[Call], Awaitable[Reply]]


class Stage(Protocol):
    """One step of the pipeline: refuses, acquires on a scope, or wraps what comes back.

    One that neither waits nor looks at the reply is a plain function that ends in `return inner(call)`: it costs no
    coroutine, and the answer does not pass through it. It refuses by raising as it is called.
    """

    def __call__(self, call: Call, inner: Handler) -> Awaitable[Reply]: ...


def compose(stages: Sequence[Stage], last: Handler) -> Handler:
    """Nest the stages around `last`; the first listed sees the call first."""

    def around(stage: Stage, inner: Handler) -> Handler:
        run = stage.__call__  # bound once: calling the object itself would bind it each time

        def handle(call: Call) -> Awaitable[Reply]:
            return run(call, inner)

        return handle

    handler = last
    for stage in reversed(stages):
        handler = around(stage, handler)
    return handler
