"""What is written in one pass of the loop leaves at its end."""

import asyncio
from typing import cast

from gateway.http.connection import Connection
from gateway.http.limits import ServerLimits
from gateway.http.message import HttpRequest, Responder
from gateway.http.outbox import Outbox
from gateway.http.server import Server

from .clock import FakeLoop


class Sender:
    def __init__(self, name: str, order: list[str]) -> None:
        self.name = name
        self.order = order

    def flush(self) -> None:
        self.order.append(self.name)


def test_senders_are_flushed_in_order_once_a_pass() -> None:
    loop, order = FakeLoop(), list[str]()
    outbox = Outbox(cast(asyncio.AbstractEventLoop, loop))
    outbox.add(Sender("a", order))
    outbox.add(Sender("b", order))
    assert (order, len(loop.soon)) == ([], 1)

    loop.run()
    loop.run()
    outbox.add(Sender("c", order))
    loop.run()
    assert order == ["a", "b", "c"]


class Wire:
    """A transport that remembers each write."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.reading = True

    def get_extra_info(self, name: str) -> object:
        return ("127.0.0.1", 1)

    def set_write_buffer_limits(self, *, high: int) -> None:
        return

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def abort(self) -> None:
        self.writes.append(b"aborted")


async def connected(application: object, limits: ServerLimits | None = None) -> tuple[Connection, Wire]:
    server = Server(application, limits)  # type: ignore[arg-type]
    loop = asyncio.get_running_loop()
    connection, wire = Connection(server, loop, Outbox(loop)), Wire()
    connection.connection_made(cast(asyncio.Transport, wire))
    return connection, wire


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def test_the_pieces_of_an_answer_that_come_together_are_one_write() -> None:
    async def stream(request: HttpRequest, responder: Responder) -> None:
        responder.start(200, ())
        responder.write(b"one")
        responder.write(b"two")
        await settle()
        responder.write(b"three")
        responder.finish()

    connection, wire = await connected(stream)
    connection.data_received(GET)
    await settle()
    await settle()

    first, second = wire.writes
    assert first.endswith(b"\r\n\r\n3\r\none\r\n3\r\ntwo\r\n")
    assert second == b"5\r\nthree\r\n0\r\n\r\n"
    connection.connection_lost(None)


async def test_more_than_the_buffer_may_hold_does_not_wait() -> None:
    async def large(request: HttpRequest, responder: Responder) -> None:
        responder.start(200, ())
        for _ in range(10):
            responder.write(b"x" * 600)
        responder.finish()

    connection, wire = await connected(large, ServerLimits(write_buffer_bytes=1000))
    connection.data_received(GET)
    await settle()

    assert len(wire.writes) > 3
    assert b"".join(wire.writes).count(b"x" * 600) == 10
    connection.connection_lost(None)


async def test_nothing_is_written_after_an_abort() -> None:
    async def breaks_off(request: HttpRequest, responder: Responder) -> None:
        responder.start(200, ())
        responder.write(b"one")
        responder.abort()

    connection, wire = await connected(breaks_off)
    connection.data_received(GET)
    await settle()

    assert wire.writes == [b"aborted"]
    connection.connection_lost(None)
