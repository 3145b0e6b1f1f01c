"""Callers that do not read, and callers that do not finish what they ask: what they may hold, and for how long."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.configuration.config import EngineModel
from gateway.http.exchange import Exchange
from gateway.http.limits import ServerLimits
from gateway.telemetry.record import Ending
from gateway.upstreams.engine import EngineUpstream
from tests.gateway.conftest import Gateway, http_upstream, model, running
from tests.rig.plain_client import PlainClient
from tests.rig.upstream import Upstream, eventually, scripted_upstream
from tests.tiny_model import tiny_model_dir

CHAT = "/v1/chat/completions"
ASKED = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
BODY = json.dumps(ASKED).encode()
EVENT = 'data: {"choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":null}]}\n\n' % ("x" * 1000)
MUCH = {"pieces": [*([EVENT * 30] * 40), "data: [DONE]\n\n"]}  # 1.3 MB
FOREVER_S, NEVER_S = 3600.0, 1.0


def head(body: bytes) -> bytes:
    """Lay out the head of a request for a chat."""
    fields = b"host: h\r\ncontent-type: application/json\r\ncontent-length: %d" % len(body)
    return b"POST %b HTTP/1.1\r\n%b\r\n\r\n" % (CHAT.encode(), fields)


HEAD = head(BODY)


@asynccontextmanager
async def serving(limits: ServerLimits) -> AsyncIterator[tuple[Gateway, Upstream]]:
    async with scripted_upstream() as server, running(model("m", http_upstream(server.url)), limits=limits) as gateway:
        yield gateway, server


async def connect(gateway: Gateway, data: bytes) -> socket.socket:
    """Open a connection with the smallest window there is, send something, and read nothing."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, ("127.0.0.1", gateway.port))
    await loop.sock_sendall(sock, data)
    return sock


async def whole_answers(gateway: Gateway, callers: int = 10, each: int = 20) -> int:
    """Let well-behaved callers ask; give how many answers came whole."""

    async def ask() -> int:
        async with PlainClient(gateway.port) as client:
            answers = [await client.ask("POST", CHAT, ASKED) for _ in range(each)]
            return sum(answer.body.endswith(b"data: [DONE]\n\n") for answer in answers)

    return sum(await asyncio.gather(*(ask() for _ in range(callers))))


class Held:
    """Looks again and again how much is held for a caller, and keeps the most."""

    def __init__(self, gateway: Gateway) -> None:
        self._connections = gateway.server._connections
        self.most = 0
        self._looking = asyncio.ensure_future(self._look())

    async def _look(self) -> None:
        while True:
            for each in self._connections:
                self.most = max(self.most, each._transport.get_write_buffer_size() + each._unsent_bytes)
            await asyncio.sleep(0.001)

    def close(self) -> None:
        self._looking.cancel()


async def do_not_read(gateway: Gateway, server: Upstream, callers: int) -> tuple[list[socket.socket], int]:
    """Let callers ask for much and read nothing, until all that may be held is; give them, and the most for one."""
    server.plan = lambda number: MUCH if number < callers else {}
    held = Held(gateway)
    deaf = [await connect(gateway, HEAD + BODY) for _ in range(callers)]
    await eventually(lambda: len(server.seen) == callers, 30)
    await asyncio.sleep(0.3)
    held.close()
    return deaf, held.most


@pytest.mark.fault_row(26)
async def test_callers_that_do_not_read_hold_little_and_are_cut_off_and_others_notice_nothing() -> None:
    limits = ServerLimits(stall_s=2.0)
    async with serving(limits) as (gateway, server):
        deaf, most = await do_not_read(gateway, server, 200)
        good = await whole_answers(gateway)
        await eventually(lambda: gateway.server.connections == 0, 30)
        await eventually(lambda: server.active == 0)
        endings = [record.ending for record in gateway.records]
        for each in deaf:
            each.close()

    assert most <= 3 * limits.write_buffer_bytes
    assert good == 200
    assert (endings.count(Ending.LEFT), endings.count(Ending.OK)) == (200, 200)


@pytest.mark.fault_row(26)
@pytest.mark.parametrize("defended", [True, False])
async def test_callers_of_an_engine_that_do_not_read_are_cut_off_and_hold_no_block(
    defended: bool, tmp_path: Path
) -> None:
    """The engine runs ahead of them by what `max_tokens` granted, and no further. Without the stall clock they stay."""
    directory = tiny_model_dir(tmp_path / "tiny", hidden_size=32, num_layers=1, max_positions=4096)
    engine = await EngineUpstream.open("m", EngineModel(path=str(directory), threads=1, num_blocks=600), directory)
    served = model("m", engine, encoder=engine.prompts, max_context=engine.max_context)
    asked = json.dumps(ASKED | {"max_tokens": 1_500, "ignore_eos": True}).encode()
    async with running(served, limits=ServerLimits(stall_s=0.5 if defended else FOREVER_S)) as gateway:
        deaf = [await connect(gateway, head(asked) + asked) for _ in range(5)]
        await eventually(lambda: engine.stats()["generated_tokens"] > 0)
        if defended:
            await eventually(lambda: gateway.server.connections == 0, 30)
        await eventually(lambda: not engine._engine.has_work, 60)
        await asyncio.sleep(0.1 if defended else NEVER_S)
        stats, stayed = engine.stats(), gateway.server.connections
        endings = [record.ending for record in gateway.records]
        for each in deaf:
            each.close()

    assert stats["free_blocks"] + stats["cached_blocks"] == stats["total_blocks"]
    assert (stayed == 0 and endings == [Ending.LEFT] * 5) is defended


@pytest.mark.fault_row(26, removed=True)
async def test_without_backpressure_each_of_them_holds_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Exchange, "congested", False)
    limits = ServerLimits(stall_s=FOREVER_S)
    async with serving(limits) as (gateway, server):
        deaf, most = await do_not_read(gateway, server, 5)
        for each in deaf:
            each.close()

    assert most > 10 * limits.write_buffer_bytes


@pytest.mark.fault_row(26, removed=True)
async def test_without_the_stall_clock_they_stay() -> None:
    async with serving(ServerLimits(stall_s=FOREVER_S)) as (gateway, server):
        deaf, _ = await do_not_read(gateway, server, 5)
        await asyncio.sleep(NEVER_S)
        stayed = gateway.server.connections
        for each in deaf:
            each.close()

    assert stayed == 5


@pytest.mark.fault_row(26, removed=True)
async def test_without_a_bound_on_what_the_kernel_takes_they_seem_to_have_read_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket, "TCP_NOTSENT_LOWAT", socket.TCP_NODELAY)
    async with serving(ServerLimits(stall_s=FOREVER_S)) as (gateway, server):
        deaf, _ = await do_not_read(gateway, server, 5)
        await eventually(lambda: len(gateway.records) == 5)
        for each in deaf:
            each.close()

    assert {record.ending for record in gateway.records} == {Ending.OK}


# Who does not finish what it asks.

HALF_HEAD, HALF_BODY = HEAD[:-4], HEAD + BODY[:10]
CHUNKED = b"POST %b HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n" % CHAT.encode()
SLOW = [b"", b"POST", HALF_HEAD, HALF_BODY, CHUNKED]


async def trickle(socks: list[socket.socket]) -> None:
    """Send a byte on each connection, round after round, as long as somebody takes it."""
    loop = asyncio.get_running_loop()
    while True:
        for sock in socks:
            with contextlib.suppress(OSError):
                await loop.sock_sendall(sock, b"x")
        await asyncio.sleep(0.05)


@pytest.mark.fault_row(27)
@pytest.mark.parametrize("defended", [True, False])
async def test_a_thousand_connections_that_never_finish_are_closed_and_others_are_served_meanwhile(
    defended: bool,
) -> None:
    """A fifth each: nothing at all, a word, half a head and half a body that go on byte by byte, a chunk."""
    clocks = (2.5, 2.5) if defended else (FOREVER_S, FOREVER_S)
    async with serving(ServerLimits(head_s=clocks[0], body_s=clocks[1])) as (gateway, _):
        slow = [await connect(gateway, SLOW[number % len(SLOW)]) for number in range(1_000)]
        trickling = asyncio.ensure_future(trickle(slow[2::5] + slow[3::5]))
        open_then = gateway.server.connections
        good = await whole_answers(gateway)
        try:
            await eventually(lambda: gateway.server.connections == 0, 30.0 if defended else 3.5)
            closed = True
        except TimeoutError:
            closed = False
        trickling.cancel()
        for each in slow:
            each.close()

    assert open_then >= 500  # all of them, unless connecting took that long
    assert good == 200
    assert closed is defended


@pytest.mark.fault_row(27)
@pytest.mark.parametrize("defended", [True, False])
async def test_no_more_connections_are_open_than_may_be(defended: bool) -> None:
    """Each holds a descriptor of a worker that has so many and no more."""
    async with serving(ServerLimits(connections=100 if defended else 10_000)) as (gateway, _):
        slow = [await connect(gateway, b"") for _ in range(300)]
        await asyncio.sleep(0.1)
        await eventually(lambda: gateway.server.connections in (100, 300))
        open_then = gateway.server.connections
        for each in slow:
            each.close()
        await eventually(lambda: gateway.server.connections == 0)
        good = await whole_answers(gateway)

    assert (open_then <= 100) is defended
    assert good == 200
