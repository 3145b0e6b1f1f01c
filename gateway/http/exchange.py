"""The write side of one request: implements `Responder` over the connection that it came in on."""

import asyncio
from typing import TYPE_CHECKING

from gateway.http.head import field_lines, status_line
from gateway.http.message import HeaderList

if TYPE_CHECKING:
    from gateway.http.connection import Connection

SERVER = b"server: penstock\r\n"


class Exchange:
    """One request's answer. After its end it writes nothing more, whoever still holds it."""

    __slots__ = ("_chunked", "_connection", "_head_only", "_http10", "begun", "done", "keep_alive", "started", "task")

    def __init__(self, connection: "Connection", head_only: bool, http10: bool, keep_alive: bool) -> None:
        self._connection = connection
        self._head_only = head_only
        self._http10 = http10
        self._chunked = False
        self.keep_alive = keep_alive
        self.task: asyncio.Task[None] | None = None  # that runs the application
        self.begun = False  # the application runs, or has run
        self.started = False
        self.done = False  # answered or given up: nothing more may be written

    def respond(self, status: int, headers: HeaderList, body: bytes) -> None:
        """Send a whole answer with its Content-Length, in one write."""
        self._open(status)
        if status == 204 or status == 304:
            length, body = b"", b""
        else:
            length = b"content-length: %d\r\n" % len(body)
            if self._head_only:
                body = b""
        head = b"%b%b%b%b%b\r\n%b" % (
            status_line(status),
            SERVER,
            field_lines(headers),
            length,
            self._persistence(),
            body,
        )
        self.started = self.done = True
        self._connection.send(head)
        self._connection.answered(self)

    def start(self, status: int, headers: HeaderList) -> None:
        """Send the head of an answer whose length is not known."""
        self._open(status)
        if self._http10:  # knows no chunks: the connection's end is the body's
            self.keep_alive = False
            framing = b""
        else:
            self._chunked = not self._head_only
            framing = b"transfer-encoding: chunked\r\n"
        head = b"%b%b%b%b%b\r\n" % (status_line(status), SERVER, field_lines(headers), framing, self._persistence())
        self.started = True
        self._connection.send(head)

    def write(self, data: bytes) -> None:
        """Send one piece of the body at once."""
        if self.done or not data:
            return
        if self._chunked:
            self._connection.send(b"%x\r\n%b\r\n" % (len(data), data))
        elif not self._head_only:
            self._connection.send(data)

    @property
    def congested(self) -> bool:
        """Whether the client reads more slowly than we write."""
        return self._connection.congested

    async def drain(self) -> None:
        """Wait until the client has caught up, or until it is cut off for not reading (cancels us)."""
        if not self.done and self._connection.congested:
            await self._connection.caught_up()

    def finish(self) -> None:
        """End a started answer."""
        if self.done:
            return
        if not self.started:
            raise RuntimeError("finish() before start()")
        self.done = True
        if self._chunked:
            self._connection.send(b"0\r\n\r\n")
        self._connection.answered(self)

    def abort(self) -> None:
        """Close the connection without ending the answer."""
        if not self.done:
            self.done = True
            self._connection.abort()

    def _open(self, status: int) -> None:
        if self.started:
            raise RuntimeError("a second answer to one request")
        if not 200 <= status <= 599:
            raise ValueError(f"not the status of an answer: {status}")

    def _persistence(self) -> bytes:
        if self.keep_alive and self._connection.closing_down:
            self.keep_alive = False
        if not self.keep_alive:
            return b"connection: close\r\n"
        return b"connection: keep-alive\r\n" if self._http10 else b""
