"""The listening side: accepts connections, knows what is under way, drains."""

import asyncio
import socket
import ssl

from gateway.http.connection import Connection
from gateway.http.limits import ServerLimits
from gateway.http.message import Application
from gateway.http.outbox import Outbox


class Server:
    """An HTTP/1.1 server over given sockets. One task a request, cancelled when its client leaves."""

    def __init__(
        self, application: Application, limits: ServerLimits | None = None, *, ssl_context: ssl.SSLContext | None = None
    ) -> None:
        self.application = application
        self.limits = limits or ServerLimits()
        self.draining = False
        self.tasks: set[asyncio.Task[None]] = (
            set()
        )  # applications under way, answered ones that still settle among them
        self._ssl_context = ssl_context
        self._connections: set[Connection] = set()
        self._listeners: list[asyncio.Server] = []
        self._changed: asyncio.Event = asyncio.Event()  # a connection or a task has ended while draining

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    @property
    def in_flight(self) -> int:
        """How many requests are under way."""
        return len(self.tasks)

    async def start(self, sock: socket.socket) -> None:
        """Accept on a bound socket; it is ours from here on. May be called for several."""
        loop = asyncio.get_running_loop()
        outbox = Outbox(loop)
        self._listeners.append(
            await loop.create_server(
                lambda: Connection(self, loop, outbox),
                sock=sock,
                backlog=4096,
                ssl=self._ssl_context,
                ssl_handshake_timeout=self.limits.head_s if self._ssl_context is not None else None,
            )
        )

    async def drain(self, grace_s: float) -> None:
        """Stop accepting, let running requests finish within `grace_s`, then break off the rest.

        What is broken off is cancelled, and its cleaning up is awaited for a moment.
        """
        loop = asyncio.get_running_loop()
        self.draining = True
        for listener in self._listeners:
            listener.close()
        for connection in tuple(self._connections):
            connection.retire()
        deadline = loop.time() + grace_s
        await self._ended_before(deadline)
        for task in tuple(self.tasks):
            task.cancel()
        for connection in tuple(self._connections):
            connection.abort()
        await self._ended_before(loop.time() + self.limits.linger_s)

    async def _ended_before(self, deadline: float) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                while self._connections or self.tasks:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return

    # What connections call

    def admit(self, connection: Connection) -> bool:
        """Register a connection; say whether there is room for it."""
        self._connections.add(connection)
        return len(self._connections) <= self.limits.connections

    def forget(self, connection: Connection) -> None:
        """Drop a closed connection."""
        self._connections.discard(connection)
        self._changed.set()

    def finished(self, task: asyncio.Task[None]) -> None:
        """Drop an application that has returned."""
        self.tasks.discard(task)
        if self.draining:
            self._changed.set()
