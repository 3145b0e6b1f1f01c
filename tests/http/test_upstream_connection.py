"""How an answer's bytes are taken, without a socket: each cut gives the same answer, and reading pauses in time."""

import asyncio
from typing import cast

import pytest

from gateway.http.errors import (
    BadResponse,
    BetweenTimeout,
    ConnectionReset,
    DeadlinePassed,
    FirstChunkTimeout,
    TransportError,
)
from gateway.http.origin import Origin
from gateway.http.outbox import Outbox
from gateway.http.pool import Pool, PoolLimits
from gateway.http.response import AT_ONCE_BYTES, Response, Timeouts
from gateway.http.upstream_connection import UpstreamConnection

from .clock import FakeLoop

REQUEST = b"GET / HTTP/1.1\r\n\r\n"
CLOCKS = Timeouts(connect_s=1.0, first_chunk_s=60.0, between_s=30.0)


class Wire:
    """A transport that only remembers."""

    def __init__(self) -> None:
        self.written = b""
        self.reading = True
        self.aborted = False
        self.closing = False

    def write(self, data: bytes) -> None:
        self.written += data

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True


async def begun(response: Response) -> None:
    while not response.begun():
        await response.news()


class Rig:
    """A connection that has sent a request, its wire, its pool and the answer."""

    def __init__(self, limits: PoolLimits | None = None) -> None:
        self.pool = Pool(Origin.parse("http://upstream"), limits or PoolLimits(), None)
        self.wire = Wire()
        self.clock = FakeLoop()
        loop = cast(asyncio.AbstractEventLoop, self.clock)
        self.connection = UpstreamConnection(self.pool, loop, Outbox(loop))
        self.connection.connection_made(cast(asyncio.Transport, self.wire))
        self.response = self.begin()

    def begin(self, *, send: bool = True) -> Response:
        response = self.connection.begin(REQUEST, head_only=False, timeouts=CLOCKS, deadline=1000.0)
        if send:
            self.clock.run()
        return response

    async def result(self) -> tuple[int, list[tuple[bytes, bytes]], bytes, bool]:
        await begun(self.response)
        return self.response.status, self.response.headers, await self.response.read(10_000), self.pool.idle == 1


ANSWER = (
    b"HTTP/1.1 102 Processing\r\nX: y\r\n\r\n"
    b"HTTP/1.1 200 OK\r\nX-A: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\nA;x=y\r\n0123456789\r\n0\r\nTrailer: 1\r\n\r\n"
)
WHOLE = (200, [(b"x-a", b"1"), (b"transfer-encoding", b"chunked")], b"hello0123456789", True)


@pytest.mark.parametrize("cut", range(1, len(ANSWER)))
async def test_a_cut_anywhere_changes_nothing(cut: int) -> None:
    rig = Rig()
    rig.connection.data_received(ANSWER[:cut])
    rig.connection.data_received(ANSWER[cut:])

    assert await rig.result() == WHOLE
    await rig.pool.aclose()


async def test_single_bytes_change_nothing() -> None:
    rig = Rig()
    for i in range(len(ANSWER)):
        rig.connection.data_received(ANSWER[i : i + 1])

    assert await rig.result() == WHOLE
    await rig.pool.aclose()


async def test_one_connection_carries_answers_of_every_framing() -> None:
    rig = Rig()
    for framing in (b"Content-Length: 5\r\n\r\nhello", b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"):
        for status in (b"200", b"500"):
            rig.connection.data_received(b"HTTP/1.1 " + status + b" X\r\n" + framing)
            assert (await rig.result())[2:] == (b"hello", True)
            assert rig.pool.reuse(rig.clock.now) is rig.connection
            rig.response = rig.begin()
    rig.connection.abort()


@pytest.mark.parametrize("cut", range(1, 40))
async def test_a_wrong_chunk_is_found_at_every_cut(cut: int) -> None:
    rig = Rig()
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloXX"
    rig.connection.data_received(answer[:cut])
    rig.connection.data_received(answer[cut:])

    with pytest.raises(BadResponse):
        await rig.result()
    assert rig.wire.aborted


async def test_the_pieces_of_one_reading_are_given_as_one() -> None:
    rig = Rig()
    rig.connection.data_received(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n")
    assert await anext(rig.response) == b"ab"
    rig.connection.data_received(b"1\r\nc\r\n0\r\n\r\n")

    assert [piece async for piece in rig.response] == [b"c"]
    await rig.pool.aclose()


async def test_reading_pauses_when_nobody_reads_on_and_resumes_when_somebody_does() -> None:
    rig = Rig(PoolLimits(read_ahead_bytes=1000))
    rig.connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 3000\r\n\r\n" + b"x" * 900)
    assert rig.wire.reading
    rig.connection.data_received(b"x" * 600)
    assert not rig.wire.reading

    assert len(await anext(rig.response)) == 1500
    assert rig.wire.reading
    rig.connection.data_received(b"x" * 1500)
    assert len(await rig.response.read(3000)) == 1500
    assert (rig.wire.reading, rig.pool.idle) == (True, 1)
    await rig.pool.aclose()


async def test_much_that_waits_is_given_in_pieces_and_reading_goes_on_behind_the_last() -> None:
    rig = Rig(PoolLimits(read_ahead_bytes=1000))
    body = bytes(range(250)) * 800
    rig.connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n" + body)
    pieces = []
    for _ in range(4):
        assert not rig.wire.reading
        pieces.append(await anext(rig.response))

    assert [len(piece) for piece in pieces] == [AT_ONCE_BYTES] * 3 + [len(body) - 3 * AT_ONCE_BYTES]
    assert b"".join(pieces) == body
    assert rig.wire.reading
    await rig.pool.aclose()


async def test_a_whole_answer_frees_the_connection_before_it_is_read() -> None:
    rig = Rig(PoolLimits(read_ahead_bytes=10))
    rig.connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n" + b"x" * 30)
    assert not rig.wire.reading
    rig.connection.data_received(b"x" * 20)

    assert (rig.wire.reading, rig.pool.idle) == (True, 1)
    assert len(await rig.response.read(50)) == 50
    await rig.pool.aclose()


async def test_an_error_stays_an_error() -> None:
    rig = Rig()
    rig.connection.data_received(b"nonsense\r\n\r\n")
    for _ in range(2):
        with pytest.raises(TransportError):
            await anext(rig.response)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"


@pytest.mark.fault_row(13)
async def test_the_first_chunks_clock_runs_until_the_first_chunk() -> None:
    rig = Rig()
    rig.connection.data_received(HEAD)
    rig.clock.advance(59.0)
    rig.connection.data_received(b"x")
    rig.clock.advance(88.0)
    rig.connection.data_received(b"x")
    assert await anext(rig.response) == b"xx"

    rig = Rig()
    rig.connection.data_received(HEAD)
    rig.clock.advance(61.0)
    with pytest.raises(FirstChunkTimeout):
        await anext(rig.response)


@pytest.mark.fault_row(13)
async def test_each_chunk_starts_the_clock_between_them_anew() -> None:
    rig = Rig()
    rig.connection.data_received(HEAD)
    for i in range(5):
        rig.clock.advance(29.0 * i)
        rig.connection.data_received(b"x")
        assert await anext(rig.response) == b"x"
    rig.clock.advance(29.0 * 4 + 30.1)

    with pytest.raises(BetweenTimeout):
        await anext(rig.response)
    assert rig.wire.aborted


async def test_a_reader_who_pauses_is_not_the_upstreams_silence() -> None:
    rig = Rig()
    rig.connection.data_received(HEAD + b"one")
    rig.clock.advance(300.0)
    assert await anext(rig.response) == b"one"
    assert not rig.wire.aborted

    rig.clock.advance(400.0)
    with pytest.raises(BetweenTimeout):
        await anext(rig.response)


async def test_the_deadline_holds_even_for_a_reader_who_pauses() -> None:
    rig = Rig()
    rig.connection.data_received(HEAD + b"one")
    rig.clock.advance(1000.1)

    assert await anext(rig.response) == b"one"
    with pytest.raises(DeadlinePassed):
        await anext(rig.response)


async def test_no_clock_runs_while_idle_and_each_request_starts_anew() -> None:
    rig = Rig()
    rig.connection.data_received(HEAD + b"123456789")
    rig.clock.advance(500.0)
    assert not rig.wire.aborted

    assert (await rig.result())[2:] == (b"123456789", True)
    assert rig.pool.reuse(0.0) is rig.connection
    rig.response = rig.begin()
    rig.clock.advance(559.0)
    assert not rig.wire.aborted
    rig.clock.advance(561.0)
    with pytest.raises(FirstChunkTimeout):
        await rig.result()


async def again() -> Rig:
    """A rig whose connection was used and kept, and has been given a second request that is not yet written."""
    rig = Rig()
    rig.connection.data_received(HEAD + b"123456789")
    assert rig.pool.reuse(0.0) is rig.connection
    rig.response = rig.begin(send=False)
    return rig


async def test_a_request_is_written_at_the_end_of_the_pass() -> None:
    rig = await again()
    assert rig.wire.written == REQUEST
    rig.clock.run()

    assert rig.wire.written == REQUEST * 2
    rig.connection.abort()


async def test_what_an_upstream_closed_before_the_pass_ended_was_not_sent() -> None:
    rig = await again()
    rig.wire.closing = True
    rig.clock.run()
    rig.connection.connection_lost(None)

    with pytest.raises(ConnectionReset) as caught:
        await begun(rig.response)
    assert (caught.value.sent, caught.value.reused, rig.wire.written) == (False, True, REQUEST)


async def test_what_an_upstream_says_before_it_was_asked_is_no_answer() -> None:
    rig = await again()
    rig.connection.data_received(b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n")
    rig.clock.run()

    with pytest.raises(ConnectionReset) as caught:
        await begun(rig.response)
    assert (caught.value.sent, rig.wire.written, rig.wire.aborted) == (False, REQUEST, True)


async def test_a_request_given_up_within_its_pass_is_not_sent() -> None:
    rig = await again()
    rig.response.close()
    rig.clock.run()

    assert (rig.wire.written, rig.wire.aborted) == (REQUEST, True)
