"""What the client promises over real sockets."""

import asyncio
import socket
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import pytest
import trustme

from gateway.http.client import Client
from gateway.http.errors import (
    BadResponse,
    BetweenTimeout,
    ConnectFailed,
    ConnectionReset,
    ConnectTimeout,
    DeadlinePassed,
    FirstChunkTimeout,
    PoolTimeout,
    ResponseTooLarge,
    TransportError,
)
from gateway.http.message import HttpRequest, Responder
from gateway.http.origin import Origin
from gateway.http.pool import PoolLimits
from gateway.http.response import Response, Timeouts
from gateway.http.tls import client_context, server_context

from .conftest import Handler, Serve, StartUpstream, read_request, until

LONG = Timeouts(connect_s=60.0, first_chunk_s=60.0, between_s=60.0)
MakeClient = Callable[..., Client]


async def get(client: Client, timeouts: Timeouts = LONG, **options: bool) -> Response:
    return await client.request(b"GET", b"/", timeouts=timeouts, idempotent=options.get("idempotent", False))


async def post(client: Client, timeouts: Timeouts = LONG, **options: bool) -> Response:
    return await client.request(
        b"POST", b"/", body=b"hi", timeouts=timeouts, idempotent=options.get("idempotent", False)
    )


def saying(answer: bytes, *, close: bool = False) -> Handler:
    """An upstream that gives one answer to everything."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            writer.write(answer)
            await writer.drain()
            if close:
                return

    return handle


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


# Requests


async def test_the_request_is_laid_out_exactly(upstream: StartUpstream, client_of: MakeClient) -> None:
    heard: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            heard.append(await read_request(reader))
            writer.write(OK)

    started = await upstream(listen)
    client = client_of(started.origin())
    prepared = client.prepare(b"POST", b"/v1?a=b", ((b"Authorization", b"Bearer k"),))
    for body in (b"hello", b""):
        response = await client.send(prepared, body, headers=((b"x-request-id", b"7"),), timeouts=LONG)
        assert await response.read(100) == b"ok"
    await (await get(client)).read(100)

    host = b"host: 127.0.0.1:%d\r\naccept-encoding: identity\r\n" % started.port
    head = b"POST /v1?a=b HTTP/1.1\r\n" + host + b"authorization: Bearer k\r\nx-request-id: 7\r\n"
    assert heard == [
        head + b"content-length: 5\r\n\r\nhello",
        head + b"content-length: 0\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + host + b"\r\n",
    ]
    assert started.connections == 1


@pytest.mark.parametrize(
    ("method", "target", "headers"),
    [
        (b"get", b"/", ()),
        (b"GET", b"/a b", ()),
        (b"GET", b"/\r\nx: y", ()),
        (b"GET", b"", ()),
        (b"GET", b"/", ((b"x", b"a\r\nb: c"),)),
        (b"GET", b"/", ((b"Content-Length", b"5"),)),
        (b"GET", b"/", ((b"transfer-encoding", b"chunked"),)),
        (b"GET", b"/", ((b"Connection", b"close"),)),
    ],
)
def test_a_request_that_could_be_read_as_another_is_refused(
    method: bytes, target: bytes, headers: tuple[tuple[bytes, bytes], ...]
) -> None:
    client = Client(Origin.parse("http://127.0.0.1:1"))

    with pytest.raises(ValueError, match=r"request|header|client"):
        client.prepare(method, target, headers)


# Answers

ANSWERS = [
    (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", 200, b"hello", True),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, b"", True),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n", 200, b"hello", True),
    (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 1\r\nX-B: 2\r\n\r\n",
        200,
        b"hello",
        True,
    ),
    (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, b"ok", True),
    (
        b"HTTP/1.1 103 E\r\nLink: a\r\n\r\nHTTP/1.1 102 P\r\n\r\nHTTP/1.1 404 No\r\nContent-Length: 2\r\n\r\nno",
        404,
        b"no",
        True,
    ),
    (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"", True),
    (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", 304, b"", True),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello", 200, b"hello", False),
    (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", 200, b"hello", False),
    (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello", 200, b"hello", True),
]


@pytest.mark.parametrize(("answer", "status", "body", "kept"), ANSWERS, ids=lambda value: repr(value)[:40])
async def test_every_framing_is_read_and_the_connection_kept_if_it_may_be(
    upstream: StartUpstream, client_of: MakeClient, answer: bytes, status: int, body: bytes, kept: bool
) -> None:
    started = await upstream(saying(answer, close=not kept))
    client = client_of(started.origin())
    for _ in range(2):
        async with aclosing(await get(client)) as response:
            assert (response.status, await response.read(100)) == (status, body)

    assert started.connections == (1 if kept else 2)


async def test_a_body_may_end_with_the_connection(upstream: StartUpstream, client_of: MakeClient) -> None:
    started = await upstream(saying(b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\n\r\nhello", close=True))
    client = client_of(started.origin())
    response = await get(client)

    assert await response.read(100) == b"hello"
    assert response.header(b"content-type") == b"a/b"
    await until(lambda: client.pool.open == 0)


async def test_headers_are_lower_case_and_all_there(upstream: StartUpstream, client_of: MakeClient) -> None:
    started = await upstream(saying(b"HTTP/1.1 200 OK\r\nX-A: 1 \r\nx-a:2\r\nContent-Length: 0\r\n\r\n"))
    response = await get(client_of(started.origin()))

    assert response.headers == [(b"x-a", b"1"), (b"x-a", b"2"), (b"content-length", b"0")]


async def test_the_answer_to_head_has_no_body(upstream: StartUpstream, client_of: MakeClient) -> None:
    started = await upstream(saying(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"))
    response = await client_of(started.origin()).request(b"HEAD", b"/", timeouts=LONG)

    assert (response.header(b"content-length"), await response.read(0)) == (b"5", b"")


async def test_each_piece_is_given_when_it_comes(upstream: StartUpstream, client_of: MakeClient) -> None:
    heard = asyncio.Semaphore(0)

    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for i in range(5):
            await heard.acquire()
            writer.write(b"1\r\n%d\r\n1\r\n.\r\n" % i)
        writer.write(b"0\r\n\r\n")

    started = await upstream(stream)
    response = await get(client_of(started.origin()))
    pieces = []
    heard.release()
    async for piece in response:
        pieces.append(piece)
        heard.release()

    assert pieces == [b"0.", b"1.", b"2.", b"3.", b"4."]


BAD = [
    b"nonsense\r\n\r\n",
    b"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok"[:5] + b"9.9 200 OK\r\n\r\n",
    b"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZ\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nokX\r\n",
    b"HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: a\r\n folded\r\n\r\n",
    b"HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000,
    b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000,
]


@pytest.mark.parametrize("answer", BAD, ids=lambda value: repr(value)[:60])
async def test_what_is_no_answer_is_an_error(upstream: StartUpstream, client_of: MakeClient, answer: bytes) -> None:
    started = await upstream(saying(answer))
    client = client_of(started.origin())
    with pytest.raises(BadResponse) as caught:
        await (await get(client)).read(1000)

    assert caught.value.sent
    await until(lambda: client.pool.open == 0)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
    ],
)
@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
async def test_a_truncated_answer_is_an_error(
    upstream: StartUpstream, client_of: MakeClient, answer: bytes, reset: bool
) -> None:
    async def truncate(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(answer)
        if reset:
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    started = await upstream(truncate)
    with pytest.raises(ConnectionReset) as caught:
        await (await post(client_of(started.origin()))).read(1000)

    assert caught.value.sent
    assert not caught.value.reused
    assert started.connections == 1


async def test_what_came_before_the_end_is_read_before_the_error(
    upstream: StartUpstream, client_of: MakeClient
) -> None:
    started = await upstream(saying(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", close=True))
    response = await get(client_of(started.origin()))
    await until(lambda: response.unread)

    assert await anext(response) == b"half"
    with pytest.raises(ConnectionReset):
        await anext(response)


@pytest.mark.parametrize("surplus", [b"more", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"])
async def test_a_connection_with_more_than_was_asked_for_is_not_used_again(
    upstream: StartUpstream, client_of: MakeClient, surplus: bytes
) -> None:
    started = await upstream(saying(OK + surplus))
    client = client_of(started.origin())
    for _ in range(2):
        assert await (await get(client)).read(100) == b"ok"

    assert started.connections == 2


async def test_a_connection_that_talks_while_idle_is_closed(upstream: StartUpstream, client_of: MakeClient) -> None:
    go = asyncio.Event()

    async def chatter(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(OK)
        await go.wait()
        writer.write(OK)
        await reader.read()

    started = await upstream(chatter)
    client = client_of(started.origin())
    await (await get(client)).read(100)
    assert client.pool.idle == 1
    go.set()
    await until(lambda: client.pool.open == 0)


async def test_a_body_past_the_readers_limit_is_refused_and_closed(
    upstream: StartUpstream, client_of: MakeClient
) -> None:
    gone = asyncio.Event()

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            while True:
                writer.write(b"x" * 1000)
                await writer.drain()
        finally:
            gone.set()

    started = await upstream(endless)
    with pytest.raises(ResponseTooLarge):
        await (await get(client_of(started.origin()))).read(5000)
    await gone.wait()


# Leaving early


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n"])
async def test_the_upstream_sees_the_caller_leave(upstream: StartUpstream, client_of: MakeClient, head: bytes) -> None:
    asked = asyncio.Event()
    left: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(head)
        asked.set()
        try:
            left.set_result(await reader.read())
        except ConnectionError:
            left.set_result(b"")

    started = await upstream(stall)
    client = client_of(started.origin())
    if head:
        async with aclosing(await post(client)) as response:
            assert await anext(response) == b"one"
    else:
        task = asyncio.create_task(post(client))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    assert await left == b""
    await until(lambda: client.pool.open == 0)


async def test_closing_a_whole_answer_keeps_the_connection(upstream: StartUpstream, client_of: MakeClient) -> None:
    started = await upstream(saying(OK))
    client = client_of(started.origin())
    for _ in range(3):
        response = await get(client)
        await until(lambda: client.pool.idle == 1)
        response.close()
        response.close()

    assert started.connections == 1


# Clocks


async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


def stalling_after(data: bytes) -> Handler:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(data)
        await reader.read()

    return handle


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("before", [b"", b"HTTP/1.1 200 OK\r\n", CHUNKED])
async def test_the_first_chunk_has_its_own_clock(upstream: StartUpstream, client_of: MakeClient, before: bytes) -> None:
    started = await upstream(stalling_after(before))
    client = client_of(started.origin())
    with pytest.raises(FirstChunkTimeout) as caught:
        await (await post(client, Timeouts(60.0, 0.05, 60.0))).read(100)

    assert caught.value.sent
    await until(lambda: client.pool.open == 0)


async def test_the_time_between_chunks_has_its_own_clock(upstream: StartUpstream, client_of: MakeClient) -> None:
    started = await upstream(stalling_after(CHUNKED + b"3\r\none\r\n"))
    response = await post(client_of(started.origin()), Timeouts(60.0, 60.0, 0.05))

    assert await anext(response) == b"one"
    with pytest.raises(BetweenTimeout):
        await anext(response)


@pytest.mark.parametrize("before", [b"", CHUNKED, CHUNKED + b"3\r\none\r\n"])
async def test_the_deadline_ends_every_wait(upstream: StartUpstream, client_of: MakeClient, before: bytes) -> None:
    started = await upstream(stalling_after(before))
    client = client_of(started.origin())
    deadline = asyncio.get_running_loop().time() + 0.05
    with pytest.raises(DeadlinePassed) as caught:
        await (await client.request(b"POST", b"/", timeouts=LONG, deadline=deadline)).read(100)

    assert caught.value.sent


async def test_connecting_has_its_own_clock(client_of: MakeClient) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        filler = [socket.socket() for _ in range(4)]
        for sock in filler:
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", port))
        client = client_of(Origin("http", "127.0.0.1", port))
        with pytest.raises(ConnectTimeout) as caught:
            await post(client, Timeouts(0.05, 60.0, 60.0))
        deadline = asyncio.get_running_loop().time() + 0.05
        with pytest.raises(DeadlinePassed) as passed:
            await client.request(b"POST", b"/", timeouts=LONG, deadline=deadline)
        for sock in filler:
            sock.close()

    assert (caught.value.sent, passed.value.sent, client.pool.open) == (False, False, 0)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://nowhere.invalid", "http://[::1]:1"])
async def test_a_connection_that_cannot_be_made_is_an_error(client_of: MakeClient, url: str) -> None:
    client = client_of(Origin.parse(url))
    with pytest.raises(ConnectFailed) as caught:
        await post(client)

    assert (caught.value.sent, client.pool.open) == (False, 0)


# Kept connections


async def test_the_connection_used_last_is_used_first(upstream: StartUpstream, client_of: MakeClient) -> None:
    served: list[object] = []

    async def remember(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            served.append(writer)
            writer.write(CHUNKED)
            await go.wait()
            writer.write(b"0\r\n\r\n")

    go = asyncio.Event()
    started = await upstream(remember)
    client = client_of(started.origin())
    responses = [await post(client) for _ in range(3)]
    go.set()
    for response in responses:
        await response.read(0)
    assert client.pool.idle == 3
    first = len(served)
    for _ in range(5):
        await (await post(client)).read(0)

    assert len(set(map(id, served[first:]))) == 1


async def test_a_kept_connection_that_was_closed_is_not_used(upstream: StartUpstream, client_of: MakeClient) -> None:
    started = await upstream(saying(OK, close=True))
    client = client_of(started.origin())
    for _ in range(3):
        await (await post(client)).read(100)
        await until(lambda: client.pool.open == 0)

    assert started.connections == 3


def closing_on_the_second() -> Handler:
    """The first connection closes when its second request has been written, unanswered."""
    connections = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        first = connections == 1
        await read_request(reader)
        writer.write(OK)
        await read_request(reader)
        if not first:
            writer.write(OK)

    return handle


async def test_a_request_that_may_have_been_taken_is_not_sent_again(
    upstream: StartUpstream, client_of: MakeClient
) -> None:
    started = await upstream(closing_on_the_second())
    client = client_of(started.origin())
    await (await post(client)).read(100)
    with pytest.raises(ConnectionReset) as caught:
        await post(client)

    assert (caught.value.sent, caught.value.reused, started.connections) == (True, True, 1)


async def test_a_request_that_may_be_repeated_is_sent_again(upstream: StartUpstream, client_of: MakeClient) -> None:
    started = await upstream(closing_on_the_second())
    client = client_of(started.origin())
    await (await get(client)).read(100)
    response = await get(client, idempotent=True)

    assert (await response.read(100), started.connections) == (b"ok", 2)


async def test_a_fresh_connection_that_closes_is_not_tried_again(
    upstream: StartUpstream, client_of: MakeClient
) -> None:
    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)

    started = await upstream(close)
    with pytest.raises(ConnectionReset):
        await get(client_of(started.origin()), idempotent=True)

    assert started.connections == 1


async def test_an_idle_connection_is_let_go(upstream: StartUpstream, client_of: MakeClient) -> None:
    started = await upstream(saying(OK))
    client = client_of(started.origin(), PoolLimits(idle_s=0.05))
    await (await post(client)).read(100)
    assert client.pool.idle == 1

    await until(lambda: client.pool.open == 0)


async def test_an_old_connection_is_not_kept(upstream: StartUpstream, client_of: MakeClient) -> None:
    started = await upstream(saying(OK))
    client = client_of(started.origin(), PoolLimits(age_s=-1.0))
    for _ in range(2):
        await (await post(client)).read(100)

    assert started.connections == 2


async def test_connections_are_bounded_and_handed_on_in_turn(upstream: StartUpstream, client_of: MakeClient) -> None:
    started = await upstream(saying(OK))
    client = client_of(started.origin(), PoolLimits(connections=1))
    order: list[int] = []

    async def one(i: int) -> None:
        async with aclosing(await post(client)) as response:
            await response.read(100)
        order.append(i)

    await asyncio.gather(*(one(i) for i in range(50)))

    assert (order, started.connections, client.pool.open) == (list(range(50)), 1, 1)


async def test_a_place_is_freed_by_a_connection_that_dies(upstream: StartUpstream, client_of: MakeClient) -> None:
    started = await upstream(saying(OK, close=True))
    client = client_of(started.origin(), PoolLimits(connections=1))

    async def one() -> bytes:
        async with aclosing(await get(client, idempotent=True)) as response:
            return await response.read(100)

    assert await asyncio.gather(*(one() for _ in range(10))) == [b"ok"] * 10
    await until(lambda: client.pool.open == 0)


async def test_waiting_for_a_connection_has_an_end(upstream: StartUpstream, client_of: MakeClient) -> None:
    started = await upstream(stalling_after(CHUNKED + b"3\r\none\r\n"))
    client = client_of(started.origin(), PoolLimits(connections=1))
    held = await post(client)
    with pytest.raises(PoolTimeout) as caught:
        await post(client, Timeouts(connect_s=0.05))
    with pytest.raises(DeadlinePassed) as passed:
        await client.request(b"POST", b"/", timeouts=LONG, deadline=asyncio.get_running_loop().time() + 0.05)
    assert (caught.value.sent, passed.value.sent) == (False, False)

    waiting = asyncio.create_task(post(client))
    await asyncio.sleep(0)
    held.close()
    (await waiting).close()
    await until(lambda: client.pool.open == 0)


async def test_a_waiter_who_leaves_loses_no_connection(upstream: StartUpstream, client_of: MakeClient) -> None:
    started = await upstream(stalling_after(CHUNKED + b"3\r\none\r\n"))
    client = client_of(started.origin(), PoolLimits(connections=1))
    for give_up_after in range(4):
        held = await post(client)
        waiting = asyncio.create_task(post(client))
        await asyncio.sleep(0)
        held.close()
        for _ in range(give_up_after):
            await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    await until(lambda: client.pool.open == 0)
    (await post(client)).close()


async def test_closing_the_client_ends_everything(upstream: StartUpstream, client_of: MakeClient) -> None:
    started = await upstream(stalling_after(CHUNKED + b"3\r\none\r\n"))
    client = client_of(started.origin(), PoolLimits(connections=1))
    running = await post(client)
    assert await anext(running) == b"one"
    waiting = asyncio.create_task(post(client))
    await asyncio.sleep(0)
    await client.aclose()

    with pytest.raises(TransportError):
        await anext(running)
    with pytest.raises(ConnectFailed):
        await waiting
    with pytest.raises(ConnectFailed):
        await post(client)
    assert client.pool.open == 0


# Other ways to an upstream


async def test_an_address_of_ip_version_6_is_an_address(upstream: StartUpstream, client_of: MakeClient) -> None:
    started = await upstream(saying(OK), host="::1")
    response = await get(client_of(Origin.parse(f"http://[::1]:{started.port}/v1")))

    assert await response.read(100) == b"ok"


async def test_a_unix_socket_is_an_upstream(upstream: StartUpstream, client_of: MakeClient, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    await upstream(saying(OK), unix_path=path)
    response = await get(client_of(Origin.parse("http://engine", unix_path=path)))

    assert await response.read(100) == b"ok"


class Authority:
    """A certificate authority and a certificate for localhost, as files."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        issued = authority.issue_cert("localhost")
        self.ca, self.key, self.certificate = folder / "ca.pem", folder / "key.pem", folder / "cert.pem"
        authority.cert_pem.write_to_path(str(self.ca))
        issued.private_key_pem.write_to_path(str(self.key))
        for pem in issued.cert_chain_pems:
            pem.write_to_path(str(self.certificate), append=True)


async def test_tls_is_verified_and_names_its_server(serve: Serve, client_of: MakeClient, tmp_path: Path) -> None:
    named: list[str | None] = []

    async def large(request: HttpRequest, responder: Responder) -> None:
        responder.respond(200, (), request.body * 2)

    authority = Authority(tmp_path)
    context = server_context(certificate_file=authority.certificate, key_file=authority.key)
    context.sni_callback = lambda _socket, name, _context: named.append(name)
    running = await serve(large, ssl_context=context)
    origin = Origin("https", "localhost", running.port)
    client = client_of(origin, ssl_context=client_context(ca_file=authority.ca))
    for _ in range(2):
        response = await client.request(b"POST", b"/", body=b"x" * 500_000, timeouts=LONG)
        assert len(await response.read(2_000_000)) == 1_000_000
    assert named == ["localhost"]

    with pytest.raises(ConnectFailed, match="certificate"):
        await get(client_of(origin))
    misnamed = client_of(Origin("https", "127.0.0.1", running.port), ssl_context=client_context(ca_file=authority.ca))
    with pytest.raises(ConnectFailed, match="certificate"):
        await get(misnamed)
    trusting = client_of(origin, ssl_context=client_context(verify=False))
    assert (await get(trusting)).status == 200


async def test_tls_where_none_is_spoken_is_an_error(upstream: StartUpstream, client_of: MakeClient) -> None:
    started = await upstream(saying(OK))
    client = client_of(Origin("https", "127.0.0.1", started.port))
    with pytest.raises(ConnectFailed):
        await get(client, Timeouts(connect_s=0.2))

    assert client.pool.open == 0


@pytest.mark.parametrize(
    ("url", "origin", "authority"),
    [
        ("http://a", Origin("http", "a", 80), "a"),
        ("https://a.b/v1?x", Origin("https", "a.b", 443), "a.b"),
        ("http://a:8080/", Origin("http", "a", 8080), "a:8080"),
        ("http://[::1]:8080", Origin("http", "::1", 8080), "[::1]:8080"),
        ("https://[::1]", Origin("https", "::1", 443), "[::1]"),
    ],
)
def test_an_origin_is_read_from_a_url(url: str, origin: Origin, authority: str) -> None:
    assert (Origin.parse(url), Origin.parse(url).authority) == (origin, authority)


@pytest.mark.parametrize("url", ["ftp://a", "a:80", "http://", "http://u:p@a", "http://a:99999", "http://a b", "/v1"])
def test_what_is_no_origin_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Origin.parse(url)
