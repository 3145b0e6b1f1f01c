"""Connections go to another server as they are; closing them, as servers do, loses what was on its way."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gateway.http.handover import Sender
from gateway.http.message import HttpRequest, Responder
from gateway.http.server import Server

REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


class Named:
    """Answers with its name, once it is let."""

    def __init__(self, name: str) -> None:
        self.name = name.encode()
        self.go = asyncio.Event()
        self.go.set()
        self.asked = 0

    async def __call__(self, request: HttpRequest, responder: Responder) -> None:
        self.asked += 1
        await self.go.wait()
        responder.respond(200, [], self.name)


class Pair:
    """A server that serves and one that is to relieve it."""

    def __init__(self) -> None:
        self.old_application, self.new_application = Named("old"), Named("new")
        self.old, self.new = Server(self.old_application), Server(self.new_application)
        sending, receiving = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sender = Sender(sending)
        self.receiver = self.new.relieve(receiving)
        self.port = 0
        self.draining: asyncio.Task[None] | None = None

    def relieve(self) -> None:
        self.draining = asyncio.ensure_future(self.old.drain(30, successor=self.sender))

    async def client(self) -> socket.socket:
        """Connect, and wait for a first answer of the old one."""
        sock = await self.connect()
        await self.ask(sock)
        return sock

    async def connect(self) -> socket.socket:
        sock = socket.socket()
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        return sock

    async def ask(self, sock: socket.socket) -> bytes:
        await asyncio.get_running_loop().sock_sendall(sock, REQUEST)
        return await self.told(sock)

    async def told(self, sock: socket.socket) -> bytes:
        """Read an answer; nothing where the connection was closed."""
        read = b""
        while not read.endswith((b"old", b"new")):
            try:
                data = await asyncio.get_running_loop().sock_recv(sock, 1000)
            except ConnectionResetError:
                return b""
            if not data:
                return b""
            read += data
        return read


@asynccontextmanager
async def pair() -> AsyncIterator[Pair]:
    servers = Pair()
    listener = socket.create_server(("127.0.0.1", 0))
    servers.port = listener.getsockname()[1]
    await servers.old.start(listener)
    yield servers
    if servers.draining is not None:
        await servers.draining
    servers.sender.close()
    await servers.old.drain(0)
    await servers.new.drain(0)
    servers.receiver.close()


async def test_a_request_on_its_way_is_lost_where_an_idle_connection_is_closed() -> None:
    """What handing over is there for: without it, this is what happens."""
    async with pair() as servers:
        sock = await servers.client()
        sock.sendall(REQUEST)  # the loop has not seen it when it closes the connection
        await servers.old.drain(1)
        answer = await servers.told(sock)
        sock.close()

    assert answer == b""


async def test_a_request_on_its_way_is_answered_by_the_successor() -> None:
    async with pair() as servers:
        sock = await servers.client()
        sock.sendall(REQUEST)  # the loop has not seen it when it hands the connection over
        await servers.old.drain(1, successor=servers.sender)
        answer = await servers.told(sock)
        again = await servers.ask(sock)
        sock.close()

    assert answer.endswith(b"new")
    assert again.endswith(b"new")
    assert b"connection: close" not in answer


async def test_a_connection_that_has_said_nothing_yet_is_handed_over_too() -> None:
    async with pair() as servers:
        sock = await servers.connect()
        while not servers.old.connections:
            await asyncio.sleep(0)
        await servers.old.drain(1, successor=servers.sender)
        answer = await servers.ask(sock)
        sock.close()

    assert answer.endswith(b"new")


async def test_an_answer_under_way_is_finished_and_says_that_it_is_the_last() -> None:
    async with pair() as servers:
        sock = await servers.client()
        servers.old_application.go.clear()
        sock.sendall(REQUEST)
        while servers.old_application.asked < 2:
            await asyncio.sleep(0)
        servers.relieve()
        await asyncio.sleep(0.05)
        servers.old_application.go.set()
        answer = await servers.told(sock)
        sock.close()

    assert answer.endswith(b"old")
    assert b"connection: close" in answer


async def test_half_a_request_is_finished_where_it_was_begun() -> None:
    async with pair() as servers:
        sock = await servers.client()
        sock.sendall(REQUEST[:10])
        await asyncio.sleep(0.02)
        servers.relieve()
        await asyncio.sleep(0.05)
        sock.sendall(REQUEST[10:])
        answer = await servers.told(sock)
        sock.close()

    assert answer.endswith(b"old")


async def test_a_successor_that_is_gone_leaves_connections_where_they_are() -> None:
    async with pair() as servers:
        sock = await servers.client()
        servers.receiver.close()
        servers.relieve()
        await asyncio.sleep(0.05)
        answer = await servers.ask(sock)
        sock.close()

    assert answer.endswith(b"old")
    assert b"connection: close" in answer


@pytest.mark.parametrize("number", [300])
async def test_many_connections_are_handed_over_at_once(number: int) -> None:
    async with pair() as servers:
        socks = [await servers.client() for _ in range(number)]
        servers.relieve()
        assert servers.draining is not None
        await servers.draining
        answers = [await servers.ask(sock) for sock in socks]
        for sock in socks:
            sock.close()

    assert all(answer.endswith(b"new") for answer in answers)
    assert servers.receiver.received == number


async def test_who_is_relieved_itself_hands_on_what_still_comes() -> None:
    """Two restarts, the second before the first one's stream has ended: nobody in between goes too soon."""
    async with pair() as servers:
        sock = await servers.client()
        servers.old_application.go.clear()
        sock.sendall(REQUEST)
        while servers.old_application.asked < 2:
            await asyncio.sleep(0)
        idle = await servers.connect()
        while servers.old.connections < 2:
            await asyncio.sleep(0)
        third = Server(Named("third new"))
        sending, receiving = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        last = third.relieve(receiving)
        relayed = asyncio.ensure_future(servers.new.drain(30, successor=Sender(sending)))
        await asyncio.sleep(0.05)
        waited = not relayed.done()
        await servers.old.drain(0.1, successor=servers.sender)
        servers.sender.close()
        await relayed
        sending.close()
        answer = await servers.ask(idle)
        sock.close()
        idle.close()
        await third.drain(0)

    assert waited
    assert answer.endswith(b"third new")
    assert not last.open
