"""A connection to one Redis that is made anew when it was lost, and that server's clock as well as we know it."""

import asyncio
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from cache.errors import StoreMisused, StoreUnavailable
from cache.redis_address import Address, Door
from cache.redis_connection import LEAVING, Connection, ErrorReply, Reply, Word, connect

RUN = re.compile(rb"^run_id:(\w+)", re.MULTILINE)
BIRTH_KEY = "penstock:born"  # set once in a server's memory: another value means that the memory is another


@dataclass(frozen=True, slots=True)
class Patience:
    """How long we wait for a connection and for a reply, in seconds."""

    connect_s: float = 0.1
    reply_s: float = 0.05


class Link:
    """Calls go over one shared connection. Whoever finds none waits a little for the common attempt.

    `forgot` is called when a connection leads to another memory than the one before: one without our mark, or, where
    no key may be set that belongs to another node (`by_run`), one of a server that was started anew.
    """

    def __init__(
        self,
        locate: Callable[[], Awaitable[Address]],
        door: Door,
        patience: Patience,
        *,
        forgot: Callable[[], None] | None = None,
        by_run: bool = False,
    ) -> None:
        self._locate = locate
        self._door = door
        self._patience = patience
        self._forgot = forgot
        self._by_run = by_run
        self._tls = door.context()
        self._connection: Connection | None = None
        self._opening: asyncio.Task[Connection] | None = None
        self._offset_us = 0
        self._birth: Reply = None

    async def call(self, *words: Word) -> Reply:
        """Send a command and give its reply. Raises `ErrorReply` and `StoreUnavailable`."""
        connection = self._connection
        if connection is None or connection.closed:
            connection = await self._open()
        try:
            return await connection.call(*words)
        except ErrorReply as error:
            if error.word in LEAVING:
                connection.close()
            raise

    def clock(self) -> int:
        """Tell the server's clock, never ahead of it."""
        return time.monotonic_ns() // 1000 + self._offset_us

    def learn(self, server_us: int) -> None:
        """Take note of the server's clock, read since it was asked."""
        self._offset_us = server_us - time.monotonic_ns() // 1000

    async def open(self) -> None:
        """Connect now and have the whole patience for it. Raises `StoreUnavailable`."""
        await asyncio.shield(self._attempt())

    async def aclose(self) -> None:
        """Hang up."""
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening])
        if self._connection is not None:
            await self._connection.aclose()

    async def _open(self) -> Connection:
        try:
            async with asyncio.timeout(self._patience.reply_s):
                return await asyncio.shield(self._attempt())
        except TimeoutError as error:
            raise StoreUnavailable("there is no connection to Redis yet", reason="connect") from error

    def _attempt(self) -> "asyncio.Task[Connection]":
        if self._opening is None:
            self._opening = asyncio.get_running_loop().create_task(self._connect())
            self._opening.add_done_callback(self._attempted)
        return self._opening

    def _attempted(self, task: "asyncio.Task[Connection]") -> None:
        self._opening = None
        if not task.cancelled():
            task.exception()  # whoever waits has it; if nobody does, the next call tries again

    async def _connect(self) -> Connection:
        try:
            async with asyncio.timeout(self._patience.connect_s):
                address = await self._locate()
        except TimeoutError as error:
            raise StoreUnavailable("nobody says where Redis is", reason="connect") from error
        connection = await connect(
            address,
            self._door,
            connect_s=self._patience.connect_s,
            patience_s=self._patience.reply_s,
            tls=self._tls,
        )
        try:
            await self._greet(connection)
        except ErrorReply as error:
            connection.close()
            raise StoreUnavailable(f"Redis answered: {error}", reason=error.word.lower()) from error
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    async def _greet(self, connection: Connection) -> None:
        reply = await connection.call("TIME")
        if not isinstance(reply, list) or len(reply) != 2:
            raise StoreMisused(f"TIME answered {reply!r}", reason="refused")
        seconds, micros = reply
        assert isinstance(seconds, bytes)
        assert isinstance(micros, bytes)
        self.learn(int(seconds) * 1_000_000 + int(micros))
        if self._forgot is None:
            return
        try:
            birth = await (_run_of(connection) if self._by_run else _mark_of(connection))
        except ErrorReply:
            return  # a server that takes no writes now; the steps will say so, each for itself
        if self._birth is not None and birth != self._birth:
            self._forgot()
        self._birth = birth


async def _mark_of(connection: Connection) -> Reply:
    await connection.call("SET", BIRTH_KEY, secrets.token_hex(8), "NX")
    return await connection.call("GET", BIRTH_KEY)


async def _run_of(connection: Connection) -> Reply:
    told = await connection.call("INFO", "server")
    run = RUN.search(told) if isinstance(told, bytes) else None
    return None if run is None else run[1]
