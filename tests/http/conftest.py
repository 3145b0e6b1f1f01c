"""A server under test and upstreams that say exactly what a test wants, all on real sockets."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import pytest

from gateway.http.client import Client
from gateway.http.limits import ServerLimits
from gateway.http.message import Application, HttpRequest, Responder
from gateway.http.origin import Origin
from gateway.http.pool import PoolLimits
from gateway.http.server import Server


@dataclass
class Running:
    """A server and where it listens."""

    server: Server
    port: int

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def exchange(self, data: bytes) -> bytes:
        """Send bytes, then read until the server closes."""
        reader, writer = await self.connect()
        try:
            writer.write(data)
            return await reader.read()
        finally:
            writer.close()


Serve = Callable[..., Awaitable[Running]]
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def listening() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    return sock


async def echo(request: HttpRequest, responder: Responder) -> None:
    """Answer with what was asked."""
    responder.respond(
        200,
        ((b"content-type", b"text/plain"),),
        b"%b %b?%b %b" % (request.method.encode(), request.path.encode(), request.query.encode(), request.body),
    )


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Start servers; end them after the test."""
    servers: list[Server] = []

    async def start(
        application: Application = echo,
        limits: ServerLimits | None = None,
        *,
        ssl_context: ssl.SSLContext | None = None,
    ) -> Running:
        server = Server(application, limits, ssl_context=ssl_context)
        servers.append(server)
        sock = listening()
        port: int = sock.getsockname()[1]
        await server.start(sock)
        return Running(server, port)

    yield start
    for server in servers:
        await server.drain(0.0)


@dataclass
class Upstream:
    """A scripted upstream: the handler plays one connection; `connections` counts them."""

    port: int = 0
    connections: int = 0

    def origin(self) -> Origin:
        return Origin("http", "127.0.0.1", self.port)


StartUpstream = Callable[..., Awaitable[Upstream]]


@pytest.fixture
async def upstream() -> AsyncIterator[StartUpstream]:
    """Start scripted upstreams; a handler that returns closes its connection."""
    servers: list[asyncio.Server] = []
    tasks: set[asyncio.Task[None]] = set()

    async def start(handler: Handler, *, host: str = "127.0.0.1", unix_path: str | None = None) -> Upstream:
        started = Upstream()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            started.connections += 1
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            try:
                await handler(reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                return
            finally:
                writer.close()
                tasks.discard(task)

        if unix_path is not None:
            servers.append(await asyncio.start_unix_server(connected, unix_path))
            return started
        servers.append(await asyncio.start_server(connected, host, 0))
        started.port = servers[-1].sockets[0].getsockname()[1]
        return started

    yield start
    for server in servers:
        server.close()
    for task in tuple(tasks):
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
async def client_of() -> AsyncIterator[Callable[..., Client]]:
    """Make clients; close them after the test."""
    clients: list[Client] = []

    def make(origin: Origin, limits: PoolLimits | None = None, *, ssl_context: ssl.SSLContext | None = None) -> Client:
        clients.append(Client(origin, limits, ssl_context=ssl_context))
        return clients[-1]

    yield make
    for client in clients:
        await client.aclose()


async def until(holds: Callable[[], bool]) -> None:
    """Let the loop run until something holds."""
    while not holds():
        await asyncio.sleep(0.0005)


async def read_request(reader: asyncio.StreamReader) -> bytes:
    """Read one request with Content-Length off a socket; give head and body."""
    head = await reader.readuntil(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return head + await reader.readexactly(int(line[15:]))
    return head
