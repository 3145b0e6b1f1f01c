"""Write the head of an answer or a request so that no value can end it early."""

import re
from collections.abc import Iterable
from http import HTTPStatus
from types import MappingProxyType

NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
ENDING = re.compile(rb"[\r\n\0]")
# The names that nearly every answer has need no second look.
KNOWN = frozenset((b"content-type", b"cache-control", b"content-length", b"retry-after", b"x-request-id"))
STATUS_LINES = MappingProxyType(
    {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
)


def status_line(status: int) -> bytes:
    """Give an answer's first line. An upstream's unregistered status has no words."""
    line = STATUS_LINES.get(status)
    return b"HTTP/1.1 %d \r\n" % status if line is None else line


def field_lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Give headers as lines. Raises `ValueError` for a name or value that could not be sent as one line."""
    written = b""
    for name, value in headers:
        if name not in KNOWN and NAME.fullmatch(name) is None:
            raise ValueError(f"not a header name: {name!r}")
        if not value.isalnum() and ENDING.search(value) is not None:  # most are names of requests, and numbers
            raise ValueError("a header value holds CR, LF or NUL")
        written += b"%b: %b\r\n" % (name, value)
    return written
