"""httpx over our client: what httpx's users expect of it still holds."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import pytest

from gateway.http import errors
from gateway.http.client import Client
from gateway.http.httpx_transport import AS_HTTPX, ClientTransport
from gateway.http.message import HttpRequest, Responder
from gateway.http.origin import Origin
from gateway.http.pool import PoolLimits

from .conftest import Serve, StartUpstream, echo, read_request, until


@pytest.fixture
async def transport() -> AsyncIterator[ClientTransport]:
    made = ClientTransport(PoolLimits(connections=1))
    yield made
    await made.aclose()


def every(root: type[errors.TransportError]) -> Iterator[type[errors.TransportError]]:
    yield root
    for child in root.__subclasses__():
        yield from every(child)


def test_every_error_of_ours_is_one_of_httpx() -> None:
    assert set(AS_HTTPX) == set(every(errors.TransportError))


async def test_requests_and_answers_pass_unchanged(serve: Serve, transport: ClientTransport) -> None:
    running = await serve()
    async with httpx.AsyncClient(transport=transport, base_url=f"http://127.0.0.1:{running.port}") as client:
        answer = await client.post("/a b", params={"q": "1"}, content=b"body")
        assert (answer.status_code, answer.text, answer.headers["content-type"]) == (
            200,
            "POST /a b?q=1 body",
            "text/plain",
        )
        assert (await client.get("/x")).text == "GET /x? "
        assert (await client.head("/x")).headers["content-length"] == "9"
        assert (await client.put("/x", json={"a": 1})).text == 'PUT /x? {"a":1}'


async def test_bodies_stream_both_ways(serve: Serve, transport: ClientTransport) -> None:
    go = asyncio.Event()

    async def stream(request: HttpRequest, responder: Responder) -> None:
        responder.start(200, ())
        responder.write(request.body)
        await go.wait()
        responder.write(b"last")
        responder.finish()

    async def upload() -> AsyncIterator[bytes]:
        yield b"one"
        yield b"two"

    running = await serve(stream)
    async with (
        httpx.AsyncClient(transport=transport) as client,
        client.stream("POST", f"http://127.0.0.1:{running.port}/", content=upload()) as answer,
    ):
        pieces = answer.aiter_raw()
        assert await anext(pieces) == b"onetwo"
        go.set()
        assert await anext(pieces) == b"last"


async def test_leaving_a_stream_closes_it(serve: Serve, transport: ClientTransport) -> None:
    left = asyncio.Event()

    async def endless(request: HttpRequest, responder: Responder) -> None:
        responder.start(200, ())
        responder.write(b"first")
        try:
            await asyncio.Event().wait()
        finally:
            left.set()

    running = await serve(endless)
    async with httpx.AsyncClient(transport=transport) as client:
        async with client.stream("GET", f"http://127.0.0.1:{running.port}/") as answer:
            async for piece in answer.aiter_raw():
                assert piece == b"first"
                break
        await left.wait()


async def test_errors_are_httpxs(upstream: StartUpstream, transport: ClientTransport) -> None:
    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await read_request(reader)
        if head.startswith(b"GET /reset"):
            return
        if head.startswith(b"GET /bad"):
            writer.write(b"nonsense\r\n\r\n")
        if head.startswith(b"GET /half"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
            return
        if head.startswith(b"GET /stop"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        await reader.read()

    started = await upstream(play)
    base = f"http://127.0.0.1:{started.port}"
    async with httpx.AsyncClient(transport=transport, timeout=30.0) as client:
        with pytest.raises(httpx.ReadError):
            await client.get(f"{base}/reset")
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get(f"{base}/bad")
        with pytest.raises(httpx.ReadError):
            await client.get(f"{base}/half")
        with pytest.raises(httpx.ReadTimeout):
            await client.get(f"{base}/stop", timeout=httpx.Timeout(30.0, read=0.05))
        with pytest.raises(httpx.ReadTimeout):
            await client.get(f"{base}/silent", timeout=httpx.Timeout(30.0, read=0.05))
        with pytest.raises(httpx.ConnectError):
            await client.get("http://127.0.0.1:1/")
        with pytest.raises(httpx.UnsupportedProtocol):
            await client.get("ftp://127.0.0.1/")
        silent = asyncio.create_task(client.get(f"{base}/silent"))
        await until(lambda: started.connections >= 6)
        with pytest.raises(httpx.PoolTimeout):
            await client.get(f"{base}/a", timeout=httpx.Timeout(30.0, connect=0.05))
        silent.cancel()
        with pytest.raises(asyncio.CancelledError):
            await silent


async def test_a_client_with_its_own_way_is_used_for_its_origin(
    upstream: StartUpstream, transport: ClientTransport, tmp_path: Path, client_of: Callable[..., Client]
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert b"host: engine\r\n" in await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    path = str(tmp_path / "socket")
    await upstream(answer, unix_path=path)
    transport.mount(client_of(Origin.parse("http://engine", unix_path=path)))
    async with httpx.AsyncClient(transport=transport) as client:
        assert (await client.get("http://engine/")).text == "ok"


async def test_a_name_in_mixed_case_or_with_its_port_is_the_same_origin(
    serve: Serve, transport: ClientTransport
) -> None:
    running = await serve(echo)
    async with httpx.AsyncClient(transport=transport) as client:
        for host in ("localhost", "LOCALHOST"):
            assert (await client.get(f"http://{host}:{running.port}/")).status_code == 200

        assert running.server.connections == 1
