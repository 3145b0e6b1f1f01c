"""The listening side: accepts connections, knows what is under way, drains."""

import asyncio
import socket
import ssl
from collections.abc import Callable

from gateway.http.connection import Connection
from gateway.http.handover import AT_ONCE, Receiver, Sender
from gateway.http.limits import ServerLimits
from gateway.http.message import Application
from gateway.http.outbox import Outbox

SWEEP_S = 0.02  # between two looks for connections that can be handed over
LAST_WORDS_S = 2.5  # for running requests to tell their callers that they are broken off


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
        self._successor: Sender | None = None
        self._outbox: Outbox | None = None
        self._adopting: set[asyncio.Task[object]] = set()
        self._predecessor: Receiver | None = None

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    @property
    def in_flight(self) -> int:
        """How many requests are under way."""
        return len(self.tasks)

    @property
    def relieved(self) -> bool:
        """Whether another process takes over connections that wait for their next request."""
        return self._successor is not None and not self._successor.gone

    async def start(self, sock: socket.socket) -> None:
        """Accept on a bound socket; it is ours from here on. May be called for several."""
        loop = asyncio.get_running_loop()
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            # Accepted sockets inherit it. Else the kernel takes megabytes of an answer that nobody reads before we
            # hear of it: what a slow reader holds, and when its stall begins, would be for the kernel to say.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, self.limits.write_buffer_bytes)
        self._listeners.append(
            await loop.create_server(
                self._connection,
                sock=sock,
                backlog=4096,
                ssl=self._ssl_context,
                ssl_handshake_timeout=self.limits.head_s if self._ssl_context is not None else None,
            )
        )

    def relieve(self, end: socket.socket) -> Receiver:
        """Take over the connections that come through a socket, from whoever drains at its other end."""
        self._predecessor = Receiver(end, self.adopt, self._changed.set)
        return self._predecessor

    def adopt(self, sock: socket.socket) -> None:
        """Take over a connection that another process has served so far. Its next request is ours."""
        sock.setblocking(False)
        task: asyncio.Task[object] = asyncio.ensure_future(
            asyncio.get_running_loop().connect_accepted_socket(self._connection, sock)
        )
        self._adopting.add(task)
        task.add_done_callback(self._adopted)

    async def drain(
        self,
        grace_s: float,
        *,
        accepting: bool = False,
        successor: Sender | None = None,
        break_off: Callable[[], None] | None = None,
    ) -> None:
        """Stop accepting, let running requests finish within `grace_s`, then break off the rest.

        `accepting` goes on to accept, for an application that refuses, until nothing runs. With a `successor`
        connections are not closed between two requests but handed over. `break_off` has the application end what still
        runs then with an error of its own; what does not end for that is cancelled, and its cleaning up is awaited for
        a moment.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grace_s
        self.draining = True
        self._successor = successor
        if accepting:
            await self._ended_before(deadline, connections=False)
        for listener in self._listeners:
            listener.close()
        sweeping = None
        if successor is None:
            for connection in tuple(self._connections):
                connection.retire()
        else:
            self._hand_over(successor)
            sweeping = asyncio.ensure_future(self._sweep(successor))
        try:
            await self._ended_before(deadline)
            if break_off is not None and self.tasks:
                break_off()
                await self._ended_before(loop.time() + LAST_WORDS_S)
        finally:
            self._successor = None
            if sweeping is not None:
                sweeping.cancel()
            if self._predecessor is not None:
                self._predecessor.close()
            for task in (*self.tasks, *self._adopting):
                task.cancel()
            for connection in tuple(self._connections):
                connection.abort()
        await self._ended_before(loop.time() + self.limits.linger_s)

    @property
    def _relays(self) -> bool:
        """Whether connections may still come that are to be handed on: they would be lost with this process."""
        expects = self._adopting or (self._predecessor is not None and self._predecessor.open)
        return self.relieved and bool(expects)

    def _connection(self) -> Connection:
        loop = asyncio.get_running_loop()
        if self._outbox is None:
            self._outbox = Outbox(loop)
        return Connection(self, loop, self._outbox)

    def _adopted(self, task: "asyncio.Task[object]") -> None:
        self._adopting.discard(task)
        self._changed.set()
        if not task.cancelled():
            task.exception()  # its client has gone meanwhile: nobody is left to be told

    async def _sweep(self, successor: Sender) -> None:
        """Hand over every connection that waits for its next request, again and again: others come to do so."""
        while not successor.gone:
            await asyncio.sleep(SWEEP_S)
            self._hand_over(successor)

    def _hand_over(self, successor: Sender) -> None:
        waiting = [(connection, connection.descriptor) for connection in self._connections]
        waiting = [each for each in waiting if each[1] >= 0]
        for first in range(0, len(waiting), AT_ONCE):
            some = waiting[first : first + AT_ONCE]
            if not successor.send([descriptor for _, descriptor in some]):
                break
            for connection, _ in some:
                connection.release()

    async def _ended_before(self, deadline: float, *, connections: bool = True) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                while self.tasks or (connections and (self._connections or self._relays)):
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
