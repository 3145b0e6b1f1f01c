"""One connection to an upstream: writes a request, parses the answer, minds its clocks.

One answer at a time. The parser's callbacks collect what one `data_received` brought; it is handed on joined, at once.
"""

import asyncio
from math import inf
from typing import TYPE_CHECKING, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from gateway.http.alarm import Alarm
from gateway.http.errors import (
    BadResponse,
    BetweenTimeout,
    ConnectionReset,
    DeadlinePassed,
    FirstChunkTimeout,
    TransportError,
)
from gateway.http.outbox import Outbox
from gateway.http.response import Response, Timeouts

if TYPE_CHECKING:
    from gateway.http.pool import Pool

BODYLESS = frozenset((204, 304))


class UpstreamConnection(asyncio.Protocol):
    """The protocol of one connected socket; belongs to a pool while idle, to a `Response` while busy."""

    __slots__ = (
        "_alarm",
        "_begun",
        "_complete",
        "_deadline",
        "_fields",
        "_head_bytes",
        "_head_only",
        "_head_seen",
        "_informational",
        "_loop",
        "_outbox",
        "_parser",
        "_paused",
        "_pieces",
        "_pool",
        "_problem",
        "_requests",
        "_response",
        "_reusable",
        "_timeouts",
        "_transport",
        "_unsent",
        "_until_close",
        "born",
        "idle_since",
        "lost",
    )

    def __init__(self, pool: "Pool", loop: asyncio.AbstractEventLoop, outbox: Outbox) -> None:
        self._pool = pool
        self._loop = loop
        self._outbox = outbox
        self._unsent: bytes | None = None  # a request gathered for the outbox
        self._transport: asyncio.Transport | None = None
        self._parser = HttpResponseParser(self)
        self._alarm = Alarm(loop, self._ring)
        self._response: Response | None = None
        self._timeouts: Timeouts
        self._deadline = inf
        self._fields: list[tuple[bytes, bytes]] = []
        self._pieces: list[bytes] = []  # of the body, out of one data_received
        self._problem: str | None = None  # what makes the answer unusable
        self._begun = False  # bytes of an answer have come
        self._head_bytes = 0
        self._head_only = False
        self._head_seen = False
        self._informational = False
        self._complete = False
        self._until_close = False  # the body ends with the connection
        self._reusable = False
        self._requests = 0
        self._paused = False
        self.born = loop.time()
        self.idle_since = self.born
        self.lost = False

    # What the pool and the client call

    def usable(self, oldest: float) -> bool:
        """Whether an idle connection may carry another request: alive, and not idle since before `oldest`."""
        return not self.lost and self.idle_since > oldest

    def begin(self, request: bytes, *, head_only: bool, timeouts: Timeouts, deadline: float) -> Response:
        """Write a request; give its answer, of which nothing has come yet."""
        assert self._transport is not None
        assert self._response is None
        response = Response(self, self._loop)
        self._response = response
        self._timeouts = timeouts
        self._deadline = deadline
        self._head_only = head_only
        self._requests += 1
        self._begun = self._head_seen = self._complete = self._until_close = False
        self._head_bytes = 0
        self._alarm.set(min(self._loop.time() + timeouts.first_chunk_s, deadline))
        self._unsent = request
        self._outbox.add(self)
        return response

    def flush(self) -> None:
        """Write the request, unless the connection has come to its end meanwhile: then nothing of it is sent."""
        if self._unsent is not None and self._transport is not None and not self._transport.is_closing():
            self._transport.write(self._unsent)
            self._unsent = None

    def resume(self) -> None:
        """Read on: the answer's reader has caught up."""
        if self._paused:
            self._paused = False
            assert self._transport is not None
            self._transport.resume_reading()

    def abort(self) -> None:
        """Close at once. An answer that is under way is its reader's no more."""
        self.lost = True
        self._response = None
        self._unsent = None
        self._alarm.close()
        if self._transport is not None:
            self._transport.abort()

    def break_off(self) -> None:
        """Close at once; an answer under way fails."""
        self._fail(ConnectionReset(f"the client of {self._pool.origin} was closed", sent=True))

    # What the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Parse; hand on what it held of the body; end or fail the answer."""
        response = self._response
        if response is None:
            self.abort()  # nobody asked
            return
        if self._unsent is not None:
            message = f"{self._pool.origin} spoke before it was asked"
            self._fail(ConnectionReset(message, sent=False, reused=self._requests > 1))
            return
        self._begun = True
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade:
            self._problem = "it switched protocols unasked"
        except HttpParserError as error:
            if not self._complete:
                self._problem = str(error)
            self._reusable = False
        if self._problem is not None:
            self._fail(BadResponse(f"{self._pool.origin} sent no usable answer: {self._problem}", sent=True))
            return
        if not self._head_seen:
            self._head_bytes += len(data)
            if self._head_bytes > self._pool.limits.response_head_bytes:
                message = f"{self._pool.origin} sent a head larger than {self._pool.limits.response_head_bytes} bytes"
                self._fail(BadResponse(message, sent=True))
            return
        pieces = self._pieces
        if pieces:
            chunk = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            pieces.clear()
            held = response.deliver(chunk, last=self._complete)
            if not self._complete:
                self._alarm.set(min(self._loop.time() + self._timeouts.between_s, self._deadline))
                if held > self._pool.limits.read_ahead_bytes and not self._paused:
                    self._paused = True
                    assert self._transport is not None
                    self._transport.pause_reading()
        elif self._complete:
            response.deliver(b"", last=True)
        else:
            response.wake()
        if self._complete:
            self._finish()

    def eof_received(self) -> None:
        """End a body that ends with the connection."""
        if self._response is not None and self._until_close and self._head_seen and not self._complete:
            response = self._response
            self._response = None
            self._complete = True
            response.deliver(b"", last=True)
            response.release()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the answer that was not whole; leave the pool."""
        self.lost = True
        self._alarm.close()
        self._pool.forget(self)
        if self._response is not None:
            how = "reset the connection" if exc is not None else "closed the connection"
            when = "before its answer was whole" if self._begun else "before it answered"
            reused = self._requests > 1 and not self._begun
            sent = self._unsent is None
            self._fail(ConnectionReset(f"{self._pool.origin} {how} {when}", sent=sent, reused=reused))

    # What the parser calls

    def on_message_begin(self) -> None:
        """Begin a head; a second answer to one request is surplus, and ends the connection."""
        if self._complete:
            self._reusable = False
        else:
            self._fields = []

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect one header; trailers are dropped."""
        if not self._head_seen:
            self._fields.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        """Decide how the body is framed."""
        response, parser = self._response, self._parser
        if response is None or self._complete:
            return
        status = parser.get_status_code()
        if status < 200:
            self._informational = True
            return
        response.status = status
        response.headers = self._fields
        self._head_seen = True
        self._reusable = parser.should_keep_alive()
        if self._head_only:
            self._complete = True
            self._reusable = False  # the parser would take the next answer for this one's body
        elif not self._reusable and status not in BODYLESS:
            names = {name for name, _ in self._fields}
            if b"transfer-encoding" in names:
                last = [value for name, value in self._fields if name == b"transfer-encoding"][-1]
                if last.lower() != b"chunked":
                    self._problem = "its transfer coding is not chunked"
            elif b"content-length" not in names:
                self._until_close = True

    def on_body(self, data: bytes) -> None:
        """Collect a piece of the body."""
        if not self._complete:
            self._pieces.append(data)

    def on_message_complete(self) -> None:
        """Note the answer's end."""
        if self._informational:
            self._informational = False
        else:
            self._complete = True

    # Ends

    def _finish(self) -> None:
        """Part from a whole answer: back to the pool, or closed."""
        response = self._response
        assert response is not None
        self._response = None
        self._alarm.due = inf
        response.release()
        self.resume()
        if self._reusable:
            self._pool.release(self, self._loop.time())
        else:
            self.abort()

    def _fail(self, error: TransportError) -> None:
        response = self._response
        self.abort()
        if response is not None:
            response.fail(error)

    def _ring(self) -> None:
        """Fail the answer with the clock that ran out."""
        response = self._response
        if response is None:
            return
        origin, timeouts, now = self._pool.origin, self._timeouts, self._loop.time()
        if now + 0.001 >= self._deadline:
            self._fail(DeadlinePassed(f"the deadline passed before {origin}'s answer was whole", sent=True))
        elif not response.touched:
            message = f"nothing of {origin}'s answer came within {timeouts.first_chunk_s:g} s"
            self._fail(FirstChunkTimeout(message, sent=True))
        elif response.unread:
            # It is our reader who pauses; the upstream's silence counts from when the rest has been read.
            self._alarm.set(min(now + timeouts.between_s, self._deadline))
        else:
            self._fail(BetweenTimeout(f"{origin}'s answer stopped for {timeouts.between_s:g} s", sent=True))
