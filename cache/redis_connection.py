"""One connection to Redis that many callers share, on hiredis' parser.

Commands are written as they come and answered in order; uvloop puts what one turn of the loop writes into one send, so
concurrent callers are batched without waiting for each other. Beside redis-py's client, which takes a connection from
its pool for each command, that is a fraction of the work (`bench/redis_client.py` measures both).

Deadlines cost no timer each: all callers have the same patience, so they fall due in the order in which they came, and
one timer looks at the first. Whoever falls due is told so, while the connection stays: its late reply is dropped when
it comes. Only a connection that said nothing at all for `SILENCE_S` although asked is given up.
"""

import asyncio
import ssl
from collections import deque
from typing import TypeAlias, cast

import hiredis

from cache.errors import StoreError, StoreMisused, StoreUnavailable
from cache.redis_address import Address, Door

SILENCE_S = 1.0
MAX_WAITING = 8192
Word: TypeAlias = str | bytes | int
Reply: TypeAlias = "bytes | int | list[Reply] | None"

# Errors that say: not now, or not here. Anything else is our mistake, or a foreign value under our keys.
PASSING = frozenset(
    {
        *("OOM", "READONLY", "LOADING", "BUSY", "MASTERDOWN", "MISCONF", "NOREPLICAS", "MOVED", "ASK", "CLUSTERDOWN"),
        *("TRYAGAIN", "NOAUTH", "WRONGPASS", "NOPERM"),
    }
)
# After these the server is no longer the one to ask, for those who look it up anew.
LEAVING = frozenset({"READONLY", "MASTERDOWN", "LOADING"})


class ErrorReply(Exception):
    """Redis answered with an error. `word` is its first word, in capitals."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.word = message.partition(" ")[0]


def translate(error: ErrorReply) -> StoreError:
    """Say what an error reply means to us."""
    if error.word in PASSING:
        return StoreUnavailable(f"Redis answered: {error}", reason=error.word.lower())
    return StoreMisused(f"Redis answered: {error}", reason="refused")


class Connection(asyncio.Protocol):
    """An open connection. `call` is the whole of it; `closed` tells that it is of no more use."""

    def __init__(self, loop: asyncio.AbstractEventLoop, patience_s: float) -> None:
        self._loop = loop
        self._patience_s = patience_s
        self._reader = hiredis.Reader()
        self._waiting: deque[asyncio.Future[Reply]] = deque()
        self._due: deque[tuple[float, asyncio.Future[Reply]]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._wakes_at = 0.0
        self._transport: asyncio.Transport | None = None
        self._heard = loop.time()
        self._gone: asyncio.Future[None] = loop.create_future()
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin (called by the loop)."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are none by inheritance

    def data_received(self, data: bytes) -> None:
        """Hand replies to those who wait, in order (called by the loop)."""
        reader, waiting = self._reader, self._waiting
        self._heard = self._loop.time()
        reader.feed(data)
        try:
            while waiting and (reply := reader.gets()) is not False:
                future = waiting.popleft()
                if future.done():
                    continue
                if isinstance(reply, hiredis.ReplyError):
                    future.set_exception(ErrorReply(str(reply)))
                else:
                    future.set_result(reply)
        except hiredis.ProtocolError as error:
            self._fail(StoreUnavailable(f"Redis broke the protocol: {error}", reason="protocol"))

    def connection_lost(self, error: Exception | None) -> None:
        """Tell everybody (called by the loop)."""
        if not self._gone.done():
            self._gone.set_result(None)
        self._fail(StoreUnavailable(f"the connection to Redis was lost: {error or 'closed by Redis'}", reason="lost"))

    def call(self, *words: Word) -> "asyncio.Future[Reply]":
        """Send a command. The future raises `ErrorReply` or `StoreUnavailable`; cancelling it drops the reply."""
        future: asyncio.Future[Reply] = self._loop.create_future()
        if self.closed or self._transport is None:
            future.set_exception(StoreUnavailable("the connection to Redis is closed", reason="lost"))
        elif len(self._waiting) >= MAX_WAITING:
            future.set_exception(StoreUnavailable(f"{MAX_WAITING} commands wait for Redis already", reason="busy"))
        else:
            self._transport.write(hiredis.pack_command(words))  # type: ignore[arg-type]  # its stub says one word
            self._waiting.append(future)
            due = self._loop.time() + self._patience_s
            self._due.append((due, future))
            if self._timer is None:
                self._heard = self._loop.time()
                self._wake(due)
            elif due < self._wakes_at:  # it waits for the end of a silence, for the sake of nobody who is still there
                self._timer.cancel()
                self._wake(due)
        return future

    def patience(self, seconds: float) -> None:
        """Wait so long for each reply from now on. Only while nobody waits."""
        assert not self._waiting
        self._patience_s = seconds

    def close(self) -> None:
        """Hang up; those who wait are told."""
        self._fail(StoreUnavailable("the connection to Redis is closed", reason="lost"))

    async def aclose(self) -> None:
        """Hang up, and wait until the socket is closed."""
        self.close()
        if self._transport is not None:
            await self._gone

    def _look(self) -> None:
        now, due = self._loop.time(), self._due
        while due and (due[0][1].done() or due[0][0] <= now):
            _, future = due.popleft()
            if not future.done():
                future.set_exception(
                    StoreUnavailable(f"Redis did not answer within {self._patience_s:g} s", reason="timeout")
                )
        self._timer = None
        if self._waiting and now - self._heard >= SILENCE_S:
            self._fail(StoreUnavailable(f"Redis said nothing for {SILENCE_S:g} s", reason="timeout"))
        elif due:
            self._wake(due[0][0])
        elif self._waiting:
            self._wake(self._heard + SILENCE_S)

    def _wake(self, at: float) -> None:
        self._wakes_at = at
        self._timer = self._loop.call_at(at, self._look)

    def _fail(self, error: StoreUnavailable) -> None:
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.abort()
        waiting, self._waiting = self._waiting, deque()
        self._due.clear()
        for future in waiting:
            if not future.done():
                future.set_exception(error)


async def connect(
    address: Address, door: Door, *, connect_s: float, patience_s: float, tls: ssl.SSLContext | None = None
) -> Connection:
    """Open a connection and come in. Raises `StoreError`."""
    loop = asyncio.get_running_loop()
    connection = Connection(loop, max(patience_s, connect_s))
    try:
        async with asyncio.timeout(connect_s):
            if address.path:
                await loop.create_unix_connection(lambda: connection, address.path)
            else:
                await loop.create_connection(lambda: connection, address.host, address.port, ssl=tls)
            if door.password:
                who = (door.username,) if door.username else ()
                await connection.call("AUTH", *who, door.password)
            if door.database:
                await connection.call("SELECT", door.database)
            await connection.call("PING")
    except TimeoutError as error:
        connection.close()
        raise StoreUnavailable(
            f"no connection to Redis at {address} within {connect_s:g} s", reason="connect"
        ) from error
    except OSError as error:
        connection.close()
        raise StoreUnavailable(f"no connection to Redis at {address}: {error}", reason="connect") from error
    except ErrorReply as error:
        connection.close()
        raise translate(error) from error
    except BaseException:
        connection.close()
        raise
    connection.patience(patience_s)
    return connection
