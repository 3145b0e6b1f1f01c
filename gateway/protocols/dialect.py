"""What the edge asks of a wire format: decode a body, encode an answer, tell an error.

A dialect translates at the door and nowhere else; no stage knows which one a call came in. An upstream that speaks the
caller's dialect has its bytes passed on (`Reply.raw`); everybody else's events go through an encoder, one per call.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from gateway.call import Call, Event, Request
from gateway.errors import GatewayError


class StreamEncoder(Protocol):
    """Encodes the events of one call, as they come, into the bytes of a stream."""

    def encode(self, event: Event) -> bytes:
        """Give the bytes to send for an event; empty where it has nothing to show."""
        ...

    def end(self) -> bytes:
        """Give what ends a stream that went well."""
        ...


class WholeEncoder(Protocol):
    """Gathers the events of one call into one body."""

    def add(self, event: Event) -> None: ...

    def body(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Dialect:
    """One wire format of one operation."""

    decode: Callable[[bytes], Request]  # raises BadRequest
    stream: Callable[[Call, int], StreamEncoder]  # with the answer's unix time
    resume: Callable[[Call, bytes], StreamEncoder]  # goes on in a stream that was forwarded so far, with its last bytes
    whole: Callable[[Call, int], WholeEncoder]
    error_body: Callable[[GatewayError], bytes]
    error_event: Callable[[GatewayError], bytes]
