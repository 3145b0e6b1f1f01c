"""What is known of one request when it has ended: the one source of its metrics and of its line in the access log."""

from collections.abc import Sequence
from enum import StrEnum

import msgspec

from gateway.call import Attempt, Operation, Usage


class Ending(StrEnum):
    """How a request ended for its caller; the value is a metrics label."""

    __hash__ = str.__hash__  # an enum's own is written in Python

    OK = "ok"  # a whole answer
    REFUSED = "refused"  # an error status before any upstream was asked
    FAILED = "failed"  # an upstream was asked, and the caller got an error status or an error event
    LEFT = "left"  # the caller went away first


class LimitHit(msgspec.Struct, frozen=True):
    """A limit that said no, or would have: its name, what it counts, and the level of the scope that it stands on.

    All three are `store` where nothing more was to be had because the store of the limits was lost.
    """

    key: str
    measure: str
    level: str


class QuotaRecord(msgspec.Struct):
    """What the limits said of a request. `refused` answered it 429, `ended` cut its answer short.

    `reserved` is how many tokens it was promised in the end, input and output together; None where no limit counts
    tokens. `overshoot` are output tokens that nobody had granted, `exact` whether all were counted by the served
    model's own tokenizer, `degraded` whether these were shares of this process alone.
    """

    refused: LimitHit | None = None
    ended: LimitHit | None = None
    shadowed: tuple[LimitHit, ...] = ()
    reserved: int | None = None
    overshoot: int = 0
    exact: bool = True
    degraded: bool = False


class RequestRecord(msgspec.Struct):
    """One request. Holds no prompt, no answer and no key. `time` is unix seconds of arrival, the rest are durations.

    `model` is the served model's name and None until it is resolved, so that callers cannot make up label values;
    `asked_model` is what the caller wrote. `input_tokens` is what the prompt was counted as before any upstream was
    asked, `max_output` what a choice was allowed to bring. `cost` is in billionths of a US dollar. `status` is what
    went out, 499 when the caller left before a status.
    """

    id: str
    time: float
    path: str
    status: int = 0
    ending: Ending = Ending.OK
    error: str | None = None  # the `label` of a GatewayError
    operation: Operation | None = None
    asked_model: str | None = None
    model: str | None = None
    tenant: str | None = None
    organisation: str | None = None
    team: str | None = None
    key: str | None = None  # the id of the key, or the subject of the token
    engine: bool = False  # whether the model runs here, so that its tokens are exact and its answers stop at an edge
    stream: bool = False
    duration_s: float = 0.0
    first_event_s: float | None = None  # arrival to the first event
    usage: Usage = msgspec.field(default_factory=Usage)
    input_tokens: int | None = None
    asked_output: int | None = None  # by the caller, for each choice
    max_output: int | None = None
    choices: int = 1
    cost: int | None = None  # None where no price is known
    quota: QuotaRecord | None = None  # None where no limit holds
    attempts: Sequence[Attempt] = ()
    bytes_in: int = 0
    bytes_out: int = 0
