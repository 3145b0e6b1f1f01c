"""Callers who leave, many streams at once, and that afterwards everything is as it was before."""

import asyncio
import json
import socket
import struct
from typing import Any

import psutil
import pytest

from gateway.telemetry.record import Ending
from gateway.upstreams.http import HttpUpstream
from policies.outcome import Outcome
from tests.gateway.conftest import Gateway, http_upstream, model, running
from tests.rig.upstream import Upstream, eventually

WITHIN_S = 0.1  # from the caller's leaving to the upstream's noticing


class Caller:
    """A raw HTTP client that can leave in any way at any moment."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def ask(cls, gateway: Gateway, *, key: str = "", **fields: Any) -> "Caller":
        caller = cls(*await asyncio.open_connection("127.0.0.1", gateway.port))
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]} | fields).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        head += f"authorization: Bearer {key}\r\n" if key else ""
        caller.writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        return caller

    async def read_until(self, mark: bytes) -> bytes:
        return await self.reader.readuntil(mark)

    def leave(self, *, rudely: bool) -> None:
        if rudely:
            sock = self.writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort() if rudely else self.writer.close()


@pytest.mark.fault_row(24)
@pytest.mark.parametrize("rudely", [False, True], ids=["FIN", "RST"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("hang_at", ["accept", "head", 2])
async def test_the_upstream_is_closed_when_the_caller_leaves(
    gateway: Gateway, upstream: Upstream, stream: bool, rudely: bool, hang_at: str | int
) -> None:
    if not stream and hang_at == 2:
        hang_at = "head"
    caller = await Caller.ask(gateway, stream=stream, script={"hang_at": hang_at})
    if hang_at == 2:
        await caller.read_until(b"Hello")
    await eventually(lambda: upstream.active == 1)
    await asyncio.sleep(0.01)

    caller.leave(rudely=rudely)

    async with asyncio.timeout(WITHIN_S * 10):  # the promise is 100 ms; a busy machine gets more before this fails
        await upstream.seen[0].ended.wait()
    assert upstream.seen[0].ending == "left"
    await eventually(lambda: len(gateway.records) == 1)
    record = gateway.records[0]
    assert (record.status, record.ending) == (200 if hang_at == 2 else 499, Ending.LEFT)
    assert record.error == "client_closed"
    assert [attempt.outcome for attempt in record.attempts] == [Outcome.IGNORED]
    assert gateway.metrics.in_flight == 0


@pytest.mark.fault_row(25)
async def test_a_caller_who_leaves_the_queue_was_never_sent(upstream: Upstream) -> None:
    served = http_upstream(upstream.url, slots=1)
    async with running(model("m", served)) as gateway:
        first = await Caller.ask(gateway, script={"hang_at": "accept"})
        await eventually(lambda: upstream.active == 1)
        second = await Caller.ask(gateway)
        await eventually(lambda: gateway.metrics.in_flight == 2)
        second.leave(rudely=False)
        await eventually(lambda: gateway.metrics.in_flight == 1)
        first.leave(rudely=False)
        await eventually(lambda: gateway.metrics.in_flight == 0)

    assert len(upstream.seen) == 1
    assert served.in_flight == 0


class Baseline:
    """What must be as before: open files, tasks."""

    def __init__(self) -> None:
        self.process = psutil.Process()
        self.files = self.process.num_fds()
        self.tasks = len(asyncio.all_tasks())

    async def returns(self) -> None:
        await eventually(lambda: len(asyncio.all_tasks()) <= self.tasks)
        await eventually(lambda: self.process.num_fds() <= self.files)


async def test_two_hundred_streams_end_exactly_once_each(upstream: Upstream) -> None:
    """A third to their end, a third broken by the upstream, a third left by their callers, all at the same time."""
    baseline = Baseline()
    served = http_upstream(upstream.url)
    scripts: list[dict[str, Any]] = [
        {"words": ["w"] * 20, "chunk_delay_s": 0.005},
        {"words": ["w"] * 20, "chunk_delay_s": 0.005, "reset_at": 10},
        {"words": ["w"] * 20, "chunk_delay_s": 0.005, "hang_at": 10},
    ]

    async def read(gateway: Gateway, number: int) -> bytes:
        caller = await Caller.ask(gateway, stream=True, script=scripts[number % 3])
        if number % 3 == 2:
            read = await caller.read_until(b'"w"')
            caller.leave(rudely=number % 2 == 0)
            return read
        read = await caller.read_until(b"\r\n0\r\n\r\n")
        caller.leave(rudely=False)
        return read

    async with running(model("m", served)) as gateway:
        streams = await asyncio.gather(*(read(gateway, number) for number in range(200)))
        await eventually(lambda: len(gateway.records) == 200, 10)
        assert (gateway.metrics.in_flight, served.in_flight, upstream.active) == (0, 0, 0)
        await eventually(lambda: gateway.server.in_flight == 0)

    whole, broken = streams[0::3], streams[1::3]
    assert all(read.count(b"[DONE]") == 1 and b'"error"' not in read and read.count(b'"w"') == 20 for read in whole)
    assert all(read.count(b'"error"') == 1 and b"[DONE]" not in read for read in broken)
    endings = [record.ending for record in gateway.records]
    assert [endings.count(each) for each in (Ending.OK, Ending.FAILED, Ending.LEFT)] == [67, 67, 66]
    assert sorted(seen.ending or "" for seen in upstream.seen) == ["broken"] * 67 + ["left"] * 66 + ["whole"] * 67
    await baseline.returns()


async def test_a_cancellation_at_any_moment_leaves_no_slot_leased(upstream: Upstream) -> None:
    """Callers leave after 0, 1, 2, … rounds of the event loop, wherever their call is by then."""
    served: HttpUpstream = http_upstream(upstream.url, slots=3)
    async with running(model("m", served)) as gateway:
        for rounds in range(60):
            caller = await Caller.ask(gateway, stream=rounds % 2 == 0, script={"chunk_delay_s": 0.001})
            for _ in range(rounds):
                await asyncio.sleep(0)
            caller.leave(rudely=rounds % 3 == 0)
        await eventually(lambda: served.in_flight == 0 and gateway.metrics.in_flight == 0)
        await eventually(lambda: upstream.active == 0)


async def test_a_reader_who_does_not_read_holds_no_stream_in_memory(gateway: Gateway, upstream: Upstream) -> None:
    """What the caller does not read is not read from the upstream either, beyond the buffers between."""
    words = ["x" * 1000] * 20_000
    caller = await Caller.ask(gateway, stream=True, script={"words": words})
    await caller.read_until(b"xxx")
    await asyncio.sleep(0.3)

    assert upstream.active == 1  # 20 MB would have been sent long ago
    caller.leave(rudely=True)
    await eventually(lambda: upstream.active == 0)
