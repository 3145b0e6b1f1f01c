"""An upstream's answer, read as it comes."""

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.http.errors import ResponseTooLarge, TransportError

if TYPE_CHECKING:
    from gateway.http.upstream_connection import UpstreamConnection

AT_ONCE_BYTES = 64 * 1024  # given at a time: whoever passes an answer on to a slow reader holds no more than that of it


@dataclass(frozen=True, slots=True)
class Timeouts:
    """The clocks of one request, each in seconds; the total is the deadline, given beside them.

    `first_chunk_s` runs from sending to the first bytes of the body, `between_s` from each bytes to the next. An answer
    that is not streamed comes whole at its end: give it a `first_chunk_s` as long as it may take.
    """

    connect_s: float = 5.0  # for a new connection, or for one to come free
    first_chunk_s: float = 60.0
    between_s: float = 30.0


class Response:
    """Status, headers, and the body once, by iteration or `read`. Close it: an unfinished one holds its connection.

    Header names are lower-case. The body is as on the wire: nothing is decompressed.
    """

    __slots__ = (
        "_chunks",
        "_connection",
        "_failure",
        "_held",
        "_loop",
        "_waiter",
        "_whole",
        "headers",
        "status",
        "touched",
    )

    def __init__(self, connection: "UpstreamConnection", loop: asyncio.AbstractEventLoop) -> None:
        self._connection: UpstreamConnection | None = connection  # until the answer is whole, closed or failed
        self._loop = loop
        self._chunks: list[bytes] = []
        self._held = 0
        self._whole = False
        self._failure: TransportError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.touched = False  # something of the body has come

    def header(self, name: bytes) -> bytes | None:
        """Give the first header of that (lower-case) name."""
        for known, value in self.headers:
            if known == name:
                return value
        return None

    @property
    def ended(self) -> bool:
        """Whether the body has come whole and nothing of it is left to read."""
        return self._whole and not self._chunks

    def __aiter__(self) -> "Response":
        return self

    async def __anext__(self) -> bytes:
        """Give what has come since, at most `AT_ONCE_BYTES`, waiting for some. Raises `TransportError`."""
        while not self._chunks:
            if self._failure is not None:
                raise self._failure
            if self._whole:
                raise StopAsyncIteration
            await self.news()
        chunks = self._chunks
        if self._held > AT_ONCE_BYTES:
            return self._some()
        chunk = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self._held = 0
        if self._connection is not None:
            self._connection.resume()
        return chunk

    def _some(self) -> bytes:
        """Give the first of more than may be given at once; reading goes on when the rest has been taken."""
        whole = b"".join(self._chunks)
        self._chunks[:] = (whole[AT_ONCE_BYTES:],)
        self._held -= AT_ONCE_BYTES
        return whole[:AT_ONCE_BYTES]

    def all_here(self, limit: int) -> bytes | None:
        """Give the body if it came whole and at once, which short answers do; None where `read` has to gather it."""
        chunks = self._chunks
        if self._whole and len(chunks) == 1 and len(chunks[0]) <= limit:
            return chunks.pop()
        return None

    async def read(self, limit: int) -> bytes:
        """Give the rest of the body whole. Raises `TransportError`; `ResponseTooLarge` past `limit`, having closed."""
        pieces: list[bytes] = []
        size = 0
        async for piece in self:
            size += len(piece)
            if size > limit:
                self.close()
                raise ResponseTooLarge(f"the answer's body is larger than {limit} bytes", sent=True)
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> None:
        """Be done with the answer. If it is not whole its connection is closed at once, and the upstream sees that."""
        self._whole = True
        self._chunks.clear()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()

    async def aclose(self) -> None:
        """Close, as `contextlib.aclosing` asks for it."""
        self.close()

    def begun(self) -> bool:
        """Whether status and headers are here. Raises `TransportError`."""
        if self.status == 0 and self._failure is not None:
            raise self._failure
        return self.status != 0

    def news(self) -> "asyncio.Future[None]":
        """Give what is done as soon as there is more to look at."""
        self._waiter = waiter = self._loop.create_future()
        return waiter

    # What the connection calls

    @property
    def unread(self) -> bool:
        """Whether bytes wait for the reader."""
        return bool(self._chunks)

    def deliver(self, chunk: bytes, *, last: bool) -> int:
        """Take a piece of the body; give how many bytes now wait to be read."""
        if chunk:
            self.touched = True
            self._chunks.append(chunk)
            self._held += len(chunk)
        if last:
            self._whole = True
        self.wake()
        return self._held

    def release(self) -> None:
        """Part from the connection: the answer is whole."""
        self._connection = None

    def fail(self, error: TransportError) -> None:
        """End the answer with an error, which the reader meets after what has come."""
        self._connection = None
        self._failure = error
        self.wake()

    def wake(self) -> None:
        """Let the reader look."""
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)
