"""The kept connections of one origin: last in, first out, bounded, each step O(1).

The connection used last is the one least likely to have been closed, and the others get to grow old and be let go.
"""

import asyncio
import ssl
from collections import OrderedDict, deque
from dataclasses import dataclass

from gateway.http.errors import ConnectFailed, ConnectTimeout, DeadlinePassed, PoolTimeout
from gateway.http.origin import Origin
from gateway.http.outbox import Outbox
from gateway.http.upstream_connection import UpstreamConnection


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """How many connections, and for how long."""

    connections: int = 1_000
    # Shorter than the 5 s after which the usual upstreams (uvicorn, Node) close: else requests meet their closing.
    idle_s: float = 4.0
    age_s: float = 300.0  # so that a changed DNS answer or balancer is noticed
    response_head_bytes: int = 64 * 1024
    read_ahead_bytes: int = 64 * 1024  # held of an answer that nobody reads; then reading pauses


class Pool:
    """Connections to one origin. `open` counts those being made, busy and idle."""

    def __init__(self, origin: Origin, limits: PoolLimits, ssl_context: ssl.SSLContext | None) -> None:
        self.origin = origin
        self.limits = limits
        self.open = 0
        self._ssl_context = ssl_context
        self._idle: OrderedDict[UpstreamConnection, None] = OrderedDict()  # oldest first
        self._connections: set[UpstreamConnection] = set()
        self._waiters: deque[asyncio.Future[UpstreamConnection | None]] = deque()
        self._expiry: asyncio.TimerHandle | None = None
        self._outbox: Outbox | None = None
        self._closed = False
        self._emptied: asyncio.Future[None] | None = None  # whom `aclose` waits for

    @property
    def idle(self) -> int:
        """How many connections wait to be used."""
        return len(self._idle)

    def reuse(self, now: float) -> UpstreamConnection | None:
        """Give the connection used last, if there is one that is still good."""
        idle = self._idle
        while idle:
            connection, _ = idle.popitem()
            if connection.usable(now - self.limits.idle_s):
                return connection
            connection.abort()
        return None

    async def acquire(self, connect_s: float, deadline: float) -> UpstreamConnection:
        """Give a connection, making or awaiting one. Raises `ConnectFailed`, `PoolTimeout` or `DeadlinePassed`."""
        if self._closed:
            raise ConnectFailed(f"the client of {self.origin} is closed")
        while self.open >= self.limits.connections:
            handed = await self._wait(connect_s, deadline)
            if handed is None:
                return await self._connect(connect_s, deadline)
            if not handed.lost:
                return handed
        self.open += 1
        return await self._connect(connect_s, deadline)

    def release(self, connection: UpstreamConnection, now: float) -> None:
        """Take a connection back after a whole answer."""
        if self._closed or now - connection.born > self.limits.age_s:
            connection.abort()
            return
        if self._waiters and (waiter := self._next_waiter()) is not None:
            waiter.set_result(connection)
            return
        connection.idle_since = now
        self._idle[connection] = None
        if self._expiry is None:
            self._expiry = asyncio.get_running_loop().call_later(self.limits.idle_s, self._expire)

    def forget(self, connection: UpstreamConnection) -> None:
        """Note that a connection is gone; its place goes to whoever waits longest."""
        self._idle.pop(connection, None)
        if connection in self._connections:
            self._connections.discard(connection)
            self._free_place()
            if self._emptied is not None and not self._connections and not self._emptied.done():
                self._emptied.set_result(None)

    async def aclose(self) -> None:
        """Close every connection, busy ones too. Whoever waits or sends gets an error."""
        self._closed = True
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        for connection in tuple(self._connections):
            connection.break_off()
        while (waiter := self._next_waiter()) is not None:
            waiter.set_exception(ConnectFailed(f"the client of {self.origin} is closed"))
        while self._connections:  # their transports report back within the loop's next rounds
            self._emptied = asyncio.get_running_loop().create_future()
            await self._emptied

    def _free_place(self) -> None:
        waiter = self._next_waiter()
        if waiter is None:
            self.open -= 1
        else:
            waiter.set_result(None)  # the place is the waiter's, who connects

    def _next_waiter(self) -> asyncio.Future[UpstreamConnection | None] | None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                return waiter
        return None

    async def _wait(self, connect_s: float, deadline: float) -> UpstreamConnection | None:
        """Queue for a connection, or for the right to make one (None)."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[UpstreamConnection | None] = loop.create_future()
        self._waiters.append(waiter)
        until = loop.time() + connect_s
        try:
            async with asyncio.timeout_at(min(until, deadline)):
                return await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._return(waiter.result())  # given to us in the very moment that we left
            if not isinstance(error, TimeoutError):
                raise
        if deadline <= until:
            raise DeadlinePassed(f"the deadline passed waiting for a connection to {self.origin}", sent=False)
        raise PoolTimeout(
            f"none of {self.limits.connections} connections to {self.origin} came free within {connect_s:g} s"
        )

    def _return(self, handed: UpstreamConnection | None) -> None:
        if handed is None:
            self._free_place()
        elif not handed.lost:
            self.release(handed, asyncio.get_running_loop().time())

    async def _connect(self, connect_s: float, deadline: float) -> UpstreamConnection:
        loop = asyncio.get_running_loop()
        origin, context = self.origin, self._ssl_context
        until = loop.time() + connect_s
        if self._outbox is None:
            self._outbox = Outbox(loop)
        connection = UpstreamConnection(self, loop, self._outbox)
        made = False
        try:
            async with asyncio.timeout_at(min(until, deadline)):
                name = origin.host if context is not None else None
                if origin.unix_path is not None:
                    await loop.create_unix_connection(
                        lambda: connection, origin.unix_path, ssl=context, server_hostname=name
                    )
                else:
                    await loop.create_connection(
                        lambda: connection, origin.host, origin.port, ssl=context, server_hostname=name
                    )
            made = True
        except TimeoutError:
            if deadline <= until:
                raise DeadlinePassed(f"the deadline passed connecting to {origin}", sent=False) from None
            raise ConnectTimeout(f"no connection to {origin} within {connect_s:g} s") from None
        except OSError as error:  # ssl.SSLError and socket.gaierror among them
            raise ConnectFailed(f"cannot connect to {origin}: {error}") from error
        finally:
            if not made:
                connection.abort()
                self._free_place()
        if self._closed or connection.lost:
            connection.abort()
            self._free_place()
            raise ConnectFailed(f"{origin} closed the new connection" if connection.lost else "the client is closed")
        self._connections.add(connection)
        return connection

    def _expire(self) -> None:
        """Let go what was idle too long; set the timer for the next one."""
        self._expiry = None
        loop = asyncio.get_running_loop()
        oldest_allowed = loop.time() - self.limits.idle_s
        while self._idle:
            connection = next(iter(self._idle))
            if connection.idle_since > oldest_allowed:
                self._expiry = loop.call_at(connection.idle_since + self.limits.idle_s, self._expire)
                return
            del self._idle[connection]
            connection.abort()
