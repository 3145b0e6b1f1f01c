"""One client's connection: reads requests, runs the application on each in turn, minds the clocks.

```
 bytes ─► RequestReader ─► HttpRequest ─► task: application(request, exchange) ─► Exchange ─► bytes
            │ partial: HEAD, BODY clock         │ congested: STALL clock              │
            └ refused: answer, CLOSING, close    └ client gone: cancelled              └ answered: next one, or IDLE
```

Only one request of a connection is under way at a time; pipelined ones wait as bytes. Once an answer is complete the
next request may begin while the first one's task still settles what is left: its end is the server's to await, not the
client's.
"""

import asyncio
import logging
from enum import Enum, auto
from math import inf
from typing import TYPE_CHECKING, cast

from gateway.http.alarm import Alarm
from gateway.http.exchange import Exchange
from gateway.http.message import HttpRequest
from gateway.http.outbox import Outbox
from gateway.http.refusal import Refused, error_body
from gateway.http.request import RequestReader

if TYPE_CHECKING:
    from gateway.http.server import Server

log = logging.getLogger(__name__)

JSON = ((b"content-type", b"application/json"),)


class Clock(Enum):
    """What the connection's alarm is set for."""

    NONE = auto()
    IDLE = auto()  # the next request's first byte
    HEAD = auto()  # a head's last byte
    BODY = auto()  # a body's last byte
    STALL = auto()  # some progress of a slow reader
    CLOSING = auto()  # our last bytes' way out, or the client's own close


class Connection(asyncio.Protocol):
    """The protocol of one accepted socket."""

    __slots__ = (
        "_alarm",
        "_clock",
        "_exchange",
        "_flushed",
        "_lingering",
        "_loop",
        "_outbox",
        "_paused",
        "_reader",
        "_server",
        "_since",
        "_transport",
        "_unsent",
        "_unsent_bytes",
        "_writable",
        "_written",
        "congested",
        "ending",
    )

    def __init__(self, server: "Server", loop: asyncio.AbstractEventLoop, outbox: Outbox) -> None:
        self._server = server
        self._loop = loop
        self._outbox = outbox
        self._transport: asyncio.Transport
        self._reader: RequestReader
        self._alarm = Alarm(loop, self._ring)
        self._clock = Clock.NONE
        self._since = 0.0  # when the clock of a head or body began
        self._exchange: Exchange | None = None  # the answer under way
        self._paused = False
        self._writable: asyncio.Future[None] | None = None  # whom `resume_writing` wakes
        self._unsent: list[bytes] = []  # gathered for the outbox
        self._unsent_bytes = 0
        self._written = 0
        self._flushed = 0  # at the last look of the STALL clock
        self._lingering = False  # input is swallowed for a while after the last answer
        self.congested = False
        self.ending = False  # no request will be read any more

    # What the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for a first request, or refuse for want of room."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one by its methods only
        limits = self._server.limits
        peername = transport.get_extra_info("peername")
        peer = str(peername[0]) if isinstance(peername, tuple) else "unix"
        self._reader = RequestReader(limits, peer)
        self._transport.set_write_buffer_limits(high=limits.write_buffer_bytes)
        if not self._server.admit(self):
            self._refuse(Refused(503, "too_many_connections", "Too many connections are open."))
            self._transport.close()  # without lingering, which would hold the very room that is missing
            return
        self._start_clock(Clock.HEAD, limits.linger_s if self._server.draining else limits.head_s)

    def data_received(self, data: bytes) -> None:
        """Take bytes; they begin a request unless an answer is under way."""
        if self.ending:
            return  # swallowed, so that closing does not reset what we answered
        self._reader.feed(data)
        if self._exchange is None and not self.congested:
            self._advance()
        elif self._reader.buffered > self._server.limits.pipelined_bytes and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def pause_writing(self) -> None:
        """Note a reader that does not keep up, and mind that it makes some progress."""
        self.congested = True
        if self._clock is not Clock.CLOSING:
            self._flushed = self._written - self._transport.get_write_buffer_size()
            self._start_clock(Clock.STALL, self._server.limits.stall_s)

    def resume_writing(self) -> None:
        """Let the application, or the next request, go on."""
        self.congested = False
        if self._clock is Clock.STALL:
            self._stop_clock()
        if self._writable is not None:
            self._writable.set_result(None)
            self._writable = None
        if self._exchange is None and not self.ending:
            self._advance()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the application whose client has left, unless its answer was complete."""
        self.ending = True
        self._unsent.clear()
        self._alarm.close()
        self._leave()
        self._server.forget(self)

    # What an exchange calls

    @property
    def closing_down(self) -> bool:
        """Whether the answer under way is this connection's last."""
        return self._server.draining

    def send(self, data: bytes) -> None:
        """Write at the end of this pass of the loop, and at once what is too much to hold."""
        self._unsent.append(data)
        self._unsent_bytes += len(data)
        if self._unsent_bytes > self._server.limits.write_buffer_bytes:
            self.flush()
        elif len(self._unsent) == 1:
            self._outbox.add(self)

    def flush(self) -> None:
        """Write what `send` has gathered."""
        unsent = self._unsent
        if unsent:
            data = unsent[0] if len(unsent) == 1 else b"".join(unsent)
            unsent.clear()
            self._written += self._unsent_bytes
            self._unsent_bytes = 0
            self._transport.write(data)

    def answered(self, exchange: Exchange) -> None:
        """Go on after a complete answer: close, or begin the next request."""
        self._exchange = None
        if not exchange.keep_alive:
            self._close()
        elif not self.congested:
            if self._reader.buffered:
                self._advance()
            else:
                self._await_request()

    async def caught_up(self) -> None:
        """Wait for `resume_writing`."""
        if self._writable is None:
            self._writable = self._loop.create_future()
        await asyncio.shield(self._writable)

    def abort(self) -> None:
        """Close at once, whatever is unsent."""
        self.ending = True
        self._unsent.clear()
        self._transport.abort()

    # What the server calls

    @property
    def descriptor(self) -> int:
        """The socket, where another process could take it over: between two requests, everything written; else -1."""
        between = self._clock is Clock.IDLE or (self._clock is Clock.HEAD and not self._reader.buffered)
        if not between or self.ending or self._unsent or self._transport.get_write_buffer_size():
            return -1
        return int(self._transport.get_extra_info("socket").fileno())

    def release(self) -> None:
        """Let go of a socket that another process has taken over; the connection itself goes on there."""
        self.ending = True
        self._transport.abort()  # closes our descriptor; nothing is sent, as it is not the last one

    def retire(self) -> None:
        """Close if kept idle; a request under way will be the last, a new connection may still send its only one."""
        if self._clock is Clock.IDLE:
            self._close()
        elif self._clock is Clock.HEAD and not self._reader.buffered:
            self._start_clock(Clock.HEAD, self._server.limits.linger_s)

    # Requests

    def _advance(self) -> None:
        """Begin the next request if it is whole; otherwise wait for it with the right clock."""
        if self.ending:
            return
        reader = self._reader
        try:
            request = reader.read(self._loop.time())
        except Refused as refusal:
            self._refuse(refusal)
            return
        if self._paused and (request is None or reader.buffered <= self._server.limits.pipelined_bytes):
            self._paused = False
            self._transport.resume_reading()
        if request is None:
            self._await_input()
            return
        self._stop_clock()
        exchange = Exchange(self, request.method == "HEAD", reader.http10, reader.keep_alive)
        self._exchange = exchange
        exchange.task = task = self._loop.create_task(self._run(request, exchange))
        self._server.tasks.add(task)

    async def _run(self, request: HttpRequest, exchange: Exchange) -> None:
        """Run the application. It answers everything itself; what it leaves open is a defect and ends here."""
        try:
            if exchange.done:
                return  # the client left before we began
            exchange.begun = True
            await self._server.application(request, exchange)
            if not exchange.done:
                raise RuntimeError("the application returned without finishing its answer")
        except Exception:
            log.exception("unanswered request: %s %s", request.method, request.path)
            if exchange.started:
                exchange.abort()  # nothing, if the answer was complete
            else:
                exchange.respond(500, JSON, error_body("Internal error.", kind="server_error", code="internal_error"))
        finally:
            if not exchange.done:
                exchange.abort()  # cancelled while the client was still there
            assert exchange.task is not None
            self._server.finished(exchange.task)

    def _await_input(self) -> None:
        limits, reader = self._server.limits, self._reader
        if reader.in_body:
            if self._clock is not Clock.BODY:
                self._start_clock(Clock.BODY, limits.body_s)
                if reader.continue_wanted:
                    self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._alarm.due = self._since + limits.body_s + reader.body_received / limits.body_bytes_per_s
        elif reader.buffered:
            if self._clock is not Clock.HEAD:
                self._start_clock(Clock.HEAD, limits.head_s)
        elif self._clock is not Clock.HEAD:  # else a new connection's clock goes on
            self._await_request()

    def _await_request(self) -> None:
        """Wait for the first byte of another request."""
        if self._server.draining and not self._server.relieved:
            self._close()
        else:
            self._start_clock(Clock.IDLE, self._server.limits.idle_s)

    def _leave(self) -> None:
        """End what is under way: its client is gone."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None and not exchange.done:
            exchange.done = True
            if exchange.begun and exchange.task is not None:
                exchange.task.cancel()
        if self._writable is not None:
            self._writable.set_result(None)
            self._writable = None

    # Closing

    def _refuse(self, refusal: Refused) -> None:
        """Answer bytes that are no request, and close.

        Closing on unread input would reset the connection and could take the answer with it: so the end is announced,
        and what still comes is swallowed for a while (nginx's lingering close).
        """
        exchange = Exchange(self, False, False, False)
        kind = "invalid_request_error" if refusal.status < 500 else "server_error"
        self._lingering = self._transport.can_write_eof()
        exchange.respond(refusal.status, JSON, error_body(refusal.message, kind=kind, code=refusal.code))

    def _close(self) -> None:
        """Close after what was written; a client that does not read it is cut off."""
        if self.ending:
            return
        self.ending = True
        self.flush()
        limits = self._server.limits
        self._flushed = self._written - self._transport.get_write_buffer_size()
        if self._lingering:
            self._start_clock(Clock.CLOSING, limits.linger_s)
            if self._paused:
                self._paused = False
                self._transport.resume_reading()
            self._transport.write_eof()
        else:
            self._start_clock(Clock.CLOSING, limits.stall_s)
            self._transport.close()

    def _start_clock(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        self._since = self._loop.time()
        self._alarm.set(self._since + seconds)

    def _stop_clock(self) -> None:
        self._clock = Clock.NONE
        self._alarm.due = inf

    def _ring(self) -> None:
        """Act on the clock that ran out."""
        clock, limits = self._clock, self._server.limits
        if clock is Clock.STALL or clock is Clock.CLOSING:
            unsent = self._transport.get_write_buffer_size()
            flushed = self._written - unsent
            if flushed > self._flushed and unsent:
                self._flushed = flushed
                self._start_clock(clock, limits.stall_s)
                return
            self._leave()
            self.abort()
        elif clock is Clock.HEAD and self._reader.buffered:
            self._refuse(Refused(408, "head_timeout", f"The request's head did not come within {limits.head_s:g} s."))
        elif clock is Clock.BODY:
            self._refuse(Refused(408, "body_timeout", "The request's body came too slowly."))
        else:
            self._close()
