"""The body of a chunked request, cut out of the connection's bytes.

The parser of heads cannot tell where a message ended inside the bytes it was fed, and the next request may follow in
the same ones; so the framing of bodies is ours. It is strict (RFC 9112, section 7.1): hexadecimal digits only, CRLF
only.
"""

import re

from gateway.http.refusal import Refused

SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?")
TRAILER_LINE = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*")
LINE_BYTES = 256  # a size with its extensions
TRAILER_BYTES = 8 * 1024
FREE_CHUNKS = 4096  # beyond these, chunks must hold CHUNK_BYTES on average: tiny ones cost us more than their sender
CHUNK_BYTES = 16


class ChunkedBody:
    """Decodes one body. Trailers are checked and dropped: nobody reads them."""

    __slots__ = ("_body", "_chunks", "_left", "_limit", "_pending", "_trailer_bytes", "_trailers", "received")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._body = bytearray()
        self._pending = b""  # an unfinished line, or the CRLF after a chunk
        self._left = 0  # of the chunk's data, with the CRLF after it
        self._chunks = 0
        self._trailers = False
        self._trailer_bytes = 0
        self.received = 0

    def feed(self, data: bytes) -> bytes | None:
        """Take more bytes. Gives what follows the body once it is whole, None until then. Raises `Refused`."""
        if self._pending:
            data = self._pending + data
            self._pending = b""
        at, end = 0, len(data)
        while at < end:
            if self._left > 2:
                piece = data[at : at + self._left - 2]
                self._body += piece
                at += len(piece)
                self._left -= len(piece)
            elif self._left:
                if end - at < 2 and data[at:] != b"\r":
                    raise Refused(400, "invalid_chunk", "A chunk is not followed by CRLF.")
                if end - at < 2:
                    break
                if data[at : at + 2] != b"\r\n":
                    raise Refused(400, "invalid_chunk", "A chunk is not followed by CRLF.")
                at += 2
                self._left = 0
            else:
                stop = data.find(b"\r\n", at)
                if stop < 0:
                    self._check_unfinished(data[at:])
                    break
                line = data[at:stop]
                at = stop + 2
                if self._trailers:
                    if not line:
                        return data[at:]
                    self._trailer(line)
                else:
                    self._size(line)
        self._pending = data[at:]
        return None

    def whole(self) -> bytes:
        """Give the body, once `feed` has given what follows it."""
        return bytes(self._body)

    def _size(self, line: bytes) -> None:
        match = SIZE_LINE.fullmatch(line)
        if match is None or len(line) > LINE_BYTES:
            raise Refused(400, "invalid_chunk", "A chunk's size is not a hexadecimal number.")
        size = int(match[1], 16)
        if size == 0:
            self._trailers = True
            return
        self.received += size
        if self.received > self._limit:
            raise body_too_large(self._limit)
        self._chunks += 1
        if self._chunks > FREE_CHUNKS + self.received // CHUNK_BYTES:
            raise Refused(400, "invalid_chunk", f"The body's chunks are smaller than {CHUNK_BYTES} bytes on average.")
        self._left = size + 2

    def _trailer(self, line: bytes) -> None:
        self._trailer_bytes += len(line)
        if self._trailer_bytes > TRAILER_BYTES:
            raise Refused(431, "headers_too_large", f"The body's trailers are larger than {TRAILER_BYTES} bytes.")
        if TRAILER_LINE.fullmatch(line) is None:
            raise Refused(400, "invalid_chunk", "A trailer is not a header.")

    def _check_unfinished(self, line: bytes) -> None:
        """A line's end has not come: it must still be able to."""
        if b"\n" in line or b"\r" in line[:-1]:
            raise Refused(400, "invalid_chunk", "A line of the chunked body does not end with CRLF.")
        if len(line) > (TRAILER_BYTES if self._trailers else LINE_BYTES):
            raise Refused(400, "invalid_chunk", "A line of the chunked body is too long.")


def body_too_large(limit: int) -> Refused:
    """Say that a body crossed its bound, with the number."""
    return Refused(413, "request_too_large", f"The request body is larger than {limit} bytes.")
