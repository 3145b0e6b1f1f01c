"""Write the head of an answer or a request so that no value can end it early."""

import re
from collections.abc import Iterable
from http import HTTPStatus
from types import MappingProxyType

NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
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
    lines = []
    for name, value in headers:
        if name not in KNOWN and NAME.fullmatch(name) is None:
            raise ValueError(f"not a header name: {name!r}")
        lines.append(b"%b: %b\r\n" % (name, value))
    written = b"".join(lines)
    # One look at all of them: each line has exactly its own CR and LF, and nobody has a NUL.
    if written.count(b"\n") != len(lines) or written.count(b"\r") != len(lines) or b"\0" in written:
        raise ValueError("a header value holds CR, LF or NUL")
    return written
