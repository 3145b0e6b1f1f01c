"""How long a request may take in all: what its caller asks for, and what is said when it is over.

Three clocks may bound a whole request: the gateway's own (`listen.request_timeout_s`), the policy's for its tenant
(`deadline_s`), and the caller's, in the header `X-Request-Deadline`. Each can only shorten what the others leave. What
remains travels into waiting, attempts, retries and the engine.

The caller's stands in one of three forms:

- `1500ms`: milliseconds from the request's arrival;
- `1.5s` or `1.5`: seconds from there;
- `1790000000.25`: a moment in unix time, which any number from 1e9 on is. Clocks must agree for that.
"""

import re
from enum import StrEnum
from typing import TYPE_CHECKING

from gateway.errors import BadRequest, DeadlineExceeded

if TYPE_CHECKING:
    from gateway.call import Call

HEADER = b"x-request-deadline"
UNIX_TIME_FROM = 1e9  # as a number of seconds, that would be thirty years
FORM = re.compile(rb"([0-9]{1,12}(?:\.[0-9]{1,9})?) ?(ms|s|)")


class Clock(StrEnum):
    """Whose deadline a call has; the value is how an answer names it."""

    GATEWAY = "the gateway's `request_timeout_s`"
    TENANT = "the `deadline_s` of its policy"
    CALLER = "its own `X-Request-Deadline`"


def remaining_s(value: bytes, now: float) -> float:
    """Read what a caller asks for, as seconds from `now` (unix time). Raises `BadRequest` and `DeadlineExceeded`."""
    found = FORM.fullmatch(value.strip())
    if found is None:
        message = "Invalid 'X-Request-Deadline': expected `1500ms`, `1.5s`, or a moment in unix seconds."
        raise BadRequest(message, param="X-Request-Deadline", code="invalid_value")
    number, unit = float(found[1]), found[2]
    if unit == b"ms":
        left_s = number / 1000
    elif not unit and number >= UNIX_TIME_FROM:
        left_s = number - now
    else:
        left_s = number
    if left_s <= 0:
        raise DeadlineExceeded(
            f"The request's deadline, {Clock.CALLER}, was over on arrival.", code="deadline_exceeded"
        )
    return left_s


def out_of_time(call: "Call", where: str = "") -> DeadlineExceeded:
    """The 504 of a call whose own deadline ran out, wherever that was noticed."""
    return DeadlineExceeded(f"The request's total deadline, {call.clock}, ran out{where}.", code="deadline_exceeded")
