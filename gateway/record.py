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


class RequestRecord(msgspec.Struct):
    """One request. Holds no prompt, no answer and no key. `time` is unix seconds of arrival, the rest are durations.

    `model` is the served model's name and None until it is resolved, so that callers cannot make up label values;
    `asked_model` is what the caller wrote. `status` is what went out, 499 when the caller left before a status.
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
    stream: bool = False
    duration_s: float = 0.0
    first_event_s: float | None = None  # arrival to the first event
    usage: Usage = msgspec.field(default_factory=Usage)
    attempts: Sequence[Attempt] = ()
    bytes_in: int = 0
    bytes_out: int = 0
