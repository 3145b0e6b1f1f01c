"""What the server promises over real sockets."""

import asyncio
import contextlib
import json
import socket
import ssl
from pathlib import Path

import pytest
import trustme

from gateway.http.limits import ServerLimits
from gateway.http.message import HttpRequest, Responder
from gateway.http.refusal import error_body
from gateway.http.tls import client_context, server_context

from .conftest import Serve, echo, until

GET = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
TEXT = ((b"content-type", b"text/event-stream"),)


def post(body: bytes, *headers: bytes) -> bytes:
    return b"\r\n".join((b"POST /p HTTP/1.1", b"Host: x", *headers, b"Content-Length: %d" % len(body), b"", body))


def answers(data: bytes) -> list[tuple[int, bytes]]:
    """Split whole answers with Content-Length into status and body."""
    found = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        length = next(int(line[16:]) for line in head.split(b"\r\n") if line.startswith(b"content-length: "))
        found.append((int(head[9:12]), data[:length]))
        data = data[length:]
    return found


class Watched:
    """An application that tells when it began and how it ended."""

    def __init__(self, *, begin: bool = False) -> None:
        self.begin = begin
        self.began = asyncio.Event()
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def __call__(self, request: HttpRequest, responder: Responder) -> None:
        try:
            if self.begin:
                responder.start(200, TEXT)
                responder.write(b"first")
            self.began.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.ended.set_result("cancelled")
            raise


# Answers


async def test_a_whole_answer_is_one_with_its_length(serve: Serve) -> None:
    running = await serve()
    data = await running.exchange(post(b"hi", b"Connection: close"))

    assert data == (
        b"HTTP/1.1 200 OK\r\nserver: penstock\r\ncontent-type: text/plain\r\ncontent-length: 11\r\n"
        b"connection: close\r\n\r\nPOST /p? hi"
    )


async def test_a_stream_is_chunked_and_each_write_arrives_by_itself(serve: Serve) -> None:
    go = asyncio.Event()

    async def stream(request: HttpRequest, responder: Responder) -> None:
        responder.start(200, TEXT)
        responder.write(b"one")
        await go.wait()
        responder.write(b"")
        responder.write(b"twelve bytes")
        responder.finish()

    running = await serve(stream)
    reader, writer = await running.connect()
    writer.write(LAST)

    head = await reader.readuntil(b"\r\n\r\n")
    assert b"transfer-encoding: chunked\r\n" in head
    assert await reader.readexactly(8) == b"3\r\none\r\n"
    go.set()
    assert await reader.read() == b"c\r\ntwelve bytes\r\n0\r\n\r\n"
    writer.close()


async def test_pipelined_requests_are_answered_in_order(serve: Serve) -> None:
    async def slow_first(request: HttpRequest, responder: Responder) -> None:
        for _ in range(30 - int(request.query or 0)):
            await asyncio.sleep(0)
        await echo(request, responder)

    running = await serve(slow_first)
    sent = b"".join(b"GET /a?%d HTTP/1.1\r\nHost: x\r\n\r\n" % i for i in range(30))
    data = await running.exchange(sent + LAST)

    assert [body for _, body in answers(data)] == [b"GET /a?%d " % i for i in range(30)] + [b"GET /last? "]


async def test_more_pipelined_input_than_is_held_is_read_later(serve: Serve) -> None:
    gate = asyncio.Event()

    async def gated(request: HttpRequest, responder: Responder) -> None:
        await gate.wait()
        await echo(request, responder)

    running = await serve(gated, ServerLimits(pipelined_bytes=1000))
    reader, writer = await running.connect()
    body = b"b" * 900
    writer.write(post(body) * 2000 + LAST)
    await until(lambda: bool(running.server.in_flight))
    gate.set()
    data = await reader.read()
    writer.close()

    assert len(answers(data)) == 2001


async def test_what_follows_the_last_request_is_not_answered(serve: Serve) -> None:
    running = await serve()

    assert len(answers(await running.exchange(LAST + GET + GET))) == 1


async def test_head_gives_the_head_of_get(serve: Serve) -> None:
    running = await serve()
    data = await running.exchange(b"HEAD /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")

    assert b"content-length: 9\r\n" in data
    assert data.endswith(b"\r\n\r\n")


async def test_head_of_a_stream_has_no_body(serve: Serve) -> None:
    async def stream(request: HttpRequest, responder: Responder) -> None:
        responder.start(200, TEXT)
        responder.write(b"data")
        responder.finish()

    running = await serve(stream)
    head = b"HEAD /a HTTP/1.1\r\nHost: x\r\n\r\n"
    data = await running.exchange(head + head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))

    assert data.count(b"HTTP/1.1 200 OK\r\n") == 2
    assert b"data" not in data
    assert data.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_that_has_no_body_has_no_length(serve: Serve, status: int) -> None:
    async def empty(request: HttpRequest, responder: Responder) -> None:
        responder.respond(status, (), b"ignored")

    running = await serve(empty)
    data = await running.exchange(LAST)

    assert b"content-length" not in data
    assert data.endswith(b"connection: close\r\n\r\n")


async def test_http10_is_answered_and_closed(serve: Serve) -> None:
    running = await serve()

    assert (await running.exchange(b"GET /a HTTP/1.0\r\n\r\n")).endswith(b"connection: close\r\n\r\nGET /a? ")


async def test_http10_is_kept_when_it_asks(serve: Serve) -> None:
    running = await serve()
    data = await running.exchange(b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET /b HTTP/1.0\r\n\r\n")

    assert data.count(b"connection: keep-alive\r\n") == 1
    assert [body for _, body in answers(data)] == [b"GET /a? ", b"GET /b? "]


async def test_a_stream_to_http10_ends_with_the_connection(serve: Serve) -> None:
    async def stream(request: HttpRequest, responder: Responder) -> None:
        responder.start(200, TEXT)
        responder.write(b"one")
        responder.write(b"two")
        responder.finish()

    running = await serve(stream)
    data = await running.exchange(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")

    assert b"chunked" not in data
    assert data.endswith(b"\r\n\r\nonetwo")


async def test_a_large_body_comes_whole(serve: Serve) -> None:
    async def size(request: HttpRequest, responder: Responder) -> None:
        responder.respond(200, (), b"%d %d" % (len(request.body), sum(request.body)))

    running = await serve(size)
    body = bytes(range(256)) * 20_000

    assert answers(await running.exchange(post(body, b"Connection: close"))) == [
        (200, b"%d %d" % (len(body), sum(body)))
    ]


async def test_a_large_answer_comes_whole(serve: Serve) -> None:
    body = bytes(range(256)) * 20_000

    async def large(request: HttpRequest, responder: Responder) -> None:
        responder.respond(200, (), body)

    running = await serve(large)

    assert answers(await running.exchange(GET + LAST)) == [(200, body), (200, body)]


async def test_the_server_says_continue_when_asked(serve: Serve) -> None:
    running = await serve()
    reader, writer = await running.connect()
    writer.write(b"POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")

    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"hi" + LAST)
    assert len(answers(await reader.read())) == 2
    writer.close()


async def test_no_continue_for_a_body_that_will_be_refused(serve: Serve) -> None:
    running = await serve(limits=ServerLimits(body_bytes=10))
    data = await running.exchange(post(b"x" * 11)[:-11].replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"))

    assert data.startswith(b"HTTP/1.1 413 ")


# Refusals


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400, "missing_host"),
        (b"GET /%00 HTTP/1.1\r\nHost: x\r\n\r\n", 400, "invalid_target"),
        (
            b"GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
            400,
            "upgrade_not_supported",
        ),
        (post(b"x", b"Transfer-Encoding: chunked"), 400, "invalid_headers"),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414, "target_too_long"),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000, 431, "headers_too_large"),
        (b"BREW / HTTP/1.1\r\nHost: x\r\n\r\n", 501, "unknown_method"),
    ],
)
async def test_a_refusal_is_an_openai_error_and_closes(serve: Serve, data: bytes, status: int, code: str) -> None:
    running = await serve()
    [(found, body)] = answers(await running.exchange(data + GET))

    assert found == status
    error = json.loads(body)["error"]
    kind = "invalid_request_error" if status < 500 else "server_error"
    assert (error["type"], error["code"], error["param"]) == (kind, code, None)
    assert error["message"]


async def test_a_refusal_comes_after_the_answers_before_it(serve: Serve) -> None:
    running = await serve()

    assert [status for status, _ in answers(await running.exchange(GET + b"nonsense\r\n\r\n"))] == [200, 400]


async def test_too_large_a_body_is_refused_with_the_number(serve: Serve) -> None:
    running = await serve(limits=ServerLimits(body_bytes=1000))
    [(status, body)] = answers(await running.exchange(post(b"x" * 1_000_000)))

    assert (status, b"1000 bytes" in body) == (413, True)


async def test_a_chunked_body_is_refused_when_it_grows_too_large(serve: Serve) -> None:
    running = await serve(limits=ServerLimits(body_bytes=1000))
    chunk = b"100\r\n" + b"x" * 256 + b"\r\n"
    [(status, _)] = answers(
        await running.exchange(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * 100)
    )

    assert status == 413


@pytest.mark.fault_row(27)
async def test_connections_past_the_bound_are_told_so(serve: Serve) -> None:
    running = await serve(limits=ServerLimits(connections=1))
    reader, writer = await running.connect()
    writer.write(GET)
    await reader.readuntil(b"GET /a? ")
    [(status, body)] = answers(await running.exchange(b""))
    assert (status, json.loads(body)["error"]["code"]) == (503, "too_many_connections")

    writer.write(LAST)
    await reader.read()
    writer.close()
    await until(lambda: not running.server.connections)
    assert len(answers(await running.exchange(LAST))) == 1


# The application's mistakes


async def test_an_application_that_fails_is_answered_for(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    async def broken(request: HttpRequest, responder: Responder) -> None:
        if request.path == "/a":
            raise KeyError("secret")
        await echo(request, responder)

    running = await serve(broken)
    [(status, body), (after, _)] = answers(await running.exchange(GET + LAST))

    assert (status, after) == (500, 200)
    assert body == error_body("Internal error.", kind="server_error", code="internal_error")
    assert "secret" in caplog.text


async def test_an_application_that_fails_in_a_stream_breaks_it_off(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(request: HttpRequest, responder: Responder) -> None:
        responder.start(200, TEXT)
        responder.write(b"one")
        await asyncio.sleep(0)
        raise KeyError("late")

    running = await serve(broken)
    reader, writer = await running.connect()
    writer.write(GET)
    data = b""
    with contextlib.suppress(ConnectionResetError):
        data = await reader.read()

    assert not data.endswith(b"0\r\n\r\n")
    assert "late" in caplog.text
    writer.close()


@pytest.mark.parametrize("begin", [False, True])
async def test_an_answer_left_open_is_never_a_silent_end(
    serve: Serve, caplog: pytest.LogCaptureFixture, begin: bool
) -> None:
    async def forgetful(request: HttpRequest, responder: Responder) -> None:
        if begin:
            responder.start(200, TEXT)

    running = await serve(forgetful)
    reader, writer = await running.connect()
    writer.write(LAST)
    data = await reader.read()
    writer.close()

    assert data.startswith(b"HTTP/1.1 500 ") or not data.endswith(b"0\r\n\r\n")
    assert "without finishing" in caplog.text


async def test_a_second_answer_is_a_mistake_and_the_first_stands(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async def twice(request: HttpRequest, responder: Responder) -> None:
        responder.respond(200, (), b"first")
        responder.respond(200, (), b"second")

    running = await serve(twice)

    assert answers(await running.exchange(GET + LAST)) == [(200, b"first"), (200, b"first")]
    assert "a second answer" in caplog.text


async def test_a_header_cannot_be_injected(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    async def careless(request: HttpRequest, responder: Responder) -> None:
        responder.respond(200, ((b"x-echo", b"a\r\nset-cookie: b"),), b"")

    running = await serve(careless)
    data = await running.exchange(LAST)

    assert data.startswith(b"HTTP/1.1 500 ")
    assert b"set-cookie" not in data


async def test_a_settling_task_does_not_keep_the_next_request_waiting(serve: Serve) -> None:
    settled = asyncio.Event()

    async def settles(request: HttpRequest, responder: Responder) -> None:
        await echo(request, responder)
        if request.path == "/a":
            await settled.wait()

    running = await serve(settles)

    assert len(answers(await running.exchange(GET + LAST))) == 2
    assert running.server.in_flight == 1
    settled.set()


# The client leaves


@pytest.mark.fault_row(24)
@pytest.mark.parametrize("begin", [False, True], ids=["before the first byte", "after the first byte"])
@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
async def test_a_client_that_leaves_cancels_its_request(serve: Serve, begin: bool, reset: bool) -> None:
    watched = Watched(begin=begin)
    running = await serve(watched)
    reader, writer = await running.connect()
    writer.write(GET)
    await watched.began.wait()
    if begin:
        await reader.readuntil(b"first")
    if reset:
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    writer.close()

    assert await watched.ended == "cancelled"
    await until(lambda: not (running.server.connections or running.server.in_flight))


async def test_a_client_that_leaves_with_pipelined_requests_starts_none_of_them(serve: Serve) -> None:
    watched = Watched()
    running = await serve(watched)
    _, writer = await running.connect()
    writer.write(GET + GET)
    await watched.began.wait()
    writer.close()

    assert await watched.ended == "cancelled"  # a second run would set the future twice


async def test_a_client_that_leaves_after_its_answer_does_not_cancel_the_settling(serve: Serve) -> None:
    gone = asyncio.Event()
    outcome: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def settles(request: HttpRequest, responder: Responder) -> None:
        try:
            await echo(request, responder)
            await gone.wait()
            outcome.set_result("settled")
        except asyncio.CancelledError:
            outcome.set_result("cancelled")
            raise

    running = await serve(settles)
    reader, writer = await running.connect()
    writer.write(GET)
    await reader.readuntil(b"GET /a? ")
    writer.close()
    await until(lambda: not running.server.connections)
    gone.set()

    assert await outcome == "settled"


# Slow clients


@pytest.mark.fault_row(27)
@pytest.mark.parametrize("sent", [b"", b"GET / HT", GET[:-2]])
async def test_a_head_that_does_not_come_ends_the_connection(serve: Serve, sent: bytes) -> None:
    running = await serve(limits=ServerLimits(head_s=0.3))
    data = await running.exchange(sent)

    assert [status for status, _ in answers(data)] == ([408] if sent else [])


async def test_a_second_head_that_does_not_come_whole_ends_the_connection(serve: Serve) -> None:
    running = await serve(limits=ServerLimits(head_s=0.3))

    assert [status for status, _ in answers(await running.exchange(GET + b"GET /"))] == [200, 408]


@pytest.mark.fault_row(27)
async def test_a_trickle_does_not_extend_the_head_clock(serve: Serve) -> None:
    running = await serve(limits=ServerLimits(head_s=0.3))
    reader, writer = await running.connect()

    async def trickle() -> None:
        while True:
            writer.write(b"x")
            await asyncio.sleep(0.01)

    writer.write(b"GET / HTTP/1.1\r\nX: ")
    task = asyncio.create_task(trickle())
    assert [status for status, _ in answers(await reader.read())] == [408]
    task.cancel()
    writer.close()


async def test_an_idle_connection_is_closed(serve: Serve) -> None:
    running = await serve(limits=ServerLimits(idle_s=0.05))

    assert len(answers(await running.exchange(GET))) == 1


@pytest.mark.fault_row(27)
@pytest.mark.parametrize(
    "head",
    [
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    ],
)
async def test_a_body_that_does_not_come_ends_the_connection(serve: Serve, head: bytes) -> None:
    running = await serve(limits=ServerLimits(body_s=0.05))

    assert [status for status, _ in answers(await running.exchange(head))] == [408]


async def test_a_body_that_comes_fast_enough_may_take_longer(serve: Serve) -> None:
    running = await serve(limits=ServerLimits(body_s=0.05, body_bytes_per_s=1))
    reader, writer = await running.connect()
    writer.write(b"POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\nConnection: close\r\n\r\n")
    for _ in range(20):
        writer.write(b"b")
        await asyncio.sleep(0.01)

    assert answers(await reader.read()) == [(200, b"POST /p? " + b"b" * 20)]
    writer.close()


async def connect_and_read_nothing(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    return sock


@pytest.mark.fault_row(26)
async def test_a_reader_who_stops_reading_is_cut_off(serve: Serve) -> None:
    outcome: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def endless(request: HttpRequest, responder: Responder) -> None:
        responder.start(200, TEXT)
        try:
            while True:
                responder.write(b"x" * 10_000)
                if responder.congested:
                    await responder.drain()
        except asyncio.CancelledError:
            outcome.set_result("cancelled")
            raise

    running = await serve(endless, ServerLimits(stall_s=0.05))
    sock = await connect_and_read_nothing(running.port)
    await asyncio.get_running_loop().sock_sendall(sock, GET)

    assert await outcome == "cancelled"
    await until(lambda: not running.server.connections)
    sock.close()


async def test_a_slow_reader_who_reads_gets_everything(serve: Serve) -> None:
    waits = 0

    async def large(request: HttpRequest, responder: Responder) -> None:
        nonlocal waits
        responder.start(200, TEXT)
        for _ in range(300):
            responder.write(b"z" * 10_000)
            if responder.congested:
                waits += 1
                await responder.drain()
        responder.finish()

    running = await serve(large, ServerLimits(write_buffer_bytes=20_000))
    loop = asyncio.get_running_loop()
    sock = await connect_and_read_nothing(running.port)
    await loop.sock_sendall(sock, LAST)
    received = 0
    while data := await loop.sock_recv(sock, 65536):
        received += data.count(b"z")
    sock.close()

    assert received == 3_000_000
    assert waits > 0


@pytest.mark.fault_row(26)
async def test_a_whole_answer_nobody_reads_does_not_hold_the_connection(serve: Serve) -> None:
    async def large(request: HttpRequest, responder: Responder) -> None:
        responder.respond(200, (), b"x" * 20_000_000)

    running = await serve(large, ServerLimits(stall_s=0.05, linger_s=0.05))
    sock = await connect_and_read_nothing(running.port)
    await asyncio.get_running_loop().sock_sendall(sock, GET)
    other = await connect_and_read_nothing(running.port)
    await asyncio.get_running_loop().sock_sendall(other, LAST)
    await until(lambda: running.server.connections > 0 and not running.server.in_flight)
    await until(lambda: not running.server.connections)
    sock.close()
    other.close()


# Draining


async def test_draining_closes_idle_connections_and_finishes_running_answers(serve: Serve) -> None:
    go = asyncio.Event()

    async def stream(request: HttpRequest, responder: Responder) -> None:
        if request.path == "/a":
            await echo(request, responder)
            return
        responder.start(200, TEXT)
        responder.write(b"begun")
        await go.wait()
        responder.write(b"ended")
        responder.finish()

    running = await serve(stream)
    idle_reader, idle_writer = await running.connect()
    idle_writer.write(GET)
    await idle_reader.readuntil(b"GET /a? ")
    reader, writer = await running.connect()
    writer.write(GET.replace(b"/a", b"/s"))
    await reader.readuntil(b"begun")

    drained = asyncio.create_task(running.server.drain(60.0))
    assert await idle_reader.read() == b""
    with pytest.raises(ConnectionRefusedError):
        await running.connect()
    assert not drained.done()
    go.set()
    assert (await reader.read()).endswith(b"5\r\nended\r\n0\r\n\r\n")
    await drained
    assert (running.server.connections, running.server.in_flight) == (0, 0)
    idle_writer.close()
    writer.close()


async def test_an_answer_begun_while_draining_says_close(serve: Serve) -> None:
    go = asyncio.Event()

    async def gated(request: HttpRequest, responder: Responder) -> None:
        await go.wait()
        await echo(request, responder)

    running = await serve(gated)
    reader, writer = await running.connect()
    writer.write(GET + GET)
    await until(lambda: bool(running.server.in_flight))
    drained = asyncio.create_task(running.server.drain(60.0))
    await asyncio.sleep(0)
    go.set()
    data = await reader.read()
    await drained
    writer.close()

    assert len(answers(data)) == 1
    assert b"connection: close\r\n" in data


async def test_what_outlasts_the_grace_is_broken_off_and_cleans_up(serve: Serve) -> None:
    watched = Watched(begin=True)
    running = await serve(watched)
    reader, writer = await running.connect()
    writer.write(GET)
    await reader.readuntil(b"first")
    await running.server.drain(0.0)

    assert await watched.ended == "cancelled"
    assert (running.server.connections, running.server.in_flight) == (0, 0)
    writer.close()


async def test_a_new_connection_may_still_send_its_request_while_draining(serve: Serve) -> None:
    running = await serve()
    reader, writer = await running.connect()
    await until(lambda: bool(running.server.connections))
    drained = asyncio.create_task(running.server.drain(60.0))
    await asyncio.sleep(0)
    writer.write(GET)

    assert len(answers(await reader.read())) == 1
    await drained
    writer.close()


# TLS


async def test_it_serves_over_tls(serve: Serve, tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    for pem in issued.cert_chain_pems:
        pem.write_to_path(str(tmp_path / "cert.pem"), append=True)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = server_context(certificate_file=tmp_path / "cert.pem", key_file=tmp_path / "key.pem")
    running = await serve(ssl_context=context)
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", running.port, ssl=client_context(ca_file=tmp_path / "ca.pem"), server_hostname="localhost"
    )
    writer.write(post(b"x" * 200_000) + LAST)
    data = await reader.read()
    writer.close()

    assert [len(body) for _, body in answers(data)] == [200_009, 11]
    found = writer.get_extra_info("ssl_object")
    assert isinstance(found, ssl.SSLObject)
    assert found.selected_alpn_protocol() == "http/1.1"
