"""A proxy between a client and a server that makes the network bad, in Toxiproxy's words, switched while it runs.

It stands on TCP or a unix socket, with an event loop and a thread of its own, so that neither the test's loop nor its
clients delay what passes. A toxic acts on one direction, on every connection, from the moment when it is added:

    UP    client ──► server        DOWN    server ──► client

`Latency`, `Bandwidth`, `Slicer`, `LimitData`, `Timeout` and `ResetPeer` are Toxiproxy's own. Two things it has no word
for: `Held` keeps everything back until it is removed and delivers it then, as TCP does over a network that was split;
and `unreachable()`, where a new connection is not refused but never completed, as when the first packet is dropped.
"""

import asyncio
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import TracebackType
from typing import TypeAlias

from tests.rig.toxics import Direction, Held, LimitData, ResetPeer, Schedule, SlowClose, Timeout, Toxic

Place: TypeAlias = "Path | tuple[str, int]"  # a unix socket, or host and port
MAX_QUEUED_BYTES = 1 << 20  # on the way in one direction of one connection; more is not read
PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class Planted:
    """A toxic that acts: its name and direction. `toxicity` is the share of connections that it meets."""

    name: str
    direction: Direction
    toxic: Toxic
    toxicity: float = 1.0


class FaultProxy:
    """Enter it to stand before `target`. Every method may be called from any thread and has acted when it returns."""

    def __init__(self, target: Place, at: Place = ("127.0.0.1", 0), *, seed: int = 0) -> None:
        self.target = target
        self.place = at
        self.accepted = 0
        self.planted: dict[str, Planted] = {}
        self.chance = Random(seed)
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._deaf: list[socket.socket] = []  # the listener that accepts nobody, and who fills its queue
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)

    def __enter__(self) -> "FaultProxy":
        self._thread.start()
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._do(self._end)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_S)
        self._loop.close()

    @property
    def open(self) -> int:
        """How many connections go through now."""
        return len(self._links)

    @property
    def listening(self) -> bool:
        """Whether connections are taken."""
        return self._server is not None

    def add(self, toxic: Toxic, direction: Direction = Direction.DOWN, *, name: str = "", toxicity: float = 1.0) -> str:
        """Let a toxic act from now on; gives its name, by which it is removed. One of the same name is replaced."""
        name = name or f"{type(toxic).__name__.lower()}_{direction}"
        planted = Planted(name, direction, toxic, toxicity)

        async def act() -> None:
            self.planted[name] = planted
            for link in tuple(self._links):
                link.meet(planted)

        self._do(act)
        return name

    def remove(self, name: str) -> None:
        """Let a toxic act no longer. Raises `KeyError`."""

        async def act() -> None:
            planted = self.planted.pop(name)
            for link in tuple(self._links):
                link.part(planted)

        self._do(act)

    def clear(self) -> None:
        """Be a good network again: no toxic, and listening."""
        for name in tuple(self.planted):
            self.remove(name)
        self.up()

    def down(self) -> None:
        """Refuse connections, and break those that are open."""
        self._do(self._down)

    def unreachable(self) -> None:
        """Leave new connections unanswered, neither taken nor refused; what is open stays. TCP only."""
        assert not isinstance(self.place, Path)
        self._do(self._fall_deaf)

    def up(self) -> None:
        """Listen, if not listening."""
        self._do(self._listen)

    def cut(self) -> None:
        """Break every open connection with RST; new ones are taken."""

        async def act() -> None:
            for link in tuple(self._links):
                link.reset()

        self._do(act)

    def _do(self, act: Callable[[], Coroutine[None, None, None]]) -> None:
        asyncio.run_coroutine_threadsafe(act(), self._loop).result(PATIENCE_S)

    async def _listen(self) -> None:
        if self._server is not None:
            return
        for sock in self._deaf:
            sock.close()
        self._deaf.clear()
        listener = self._bind()
        if isinstance(self.place, Path):
            self._server = await asyncio.start_unix_server(self._accept, sock=listener, backlog=1024)
        else:
            self.place = listener.getsockname()[:2]
            self._server = await asyncio.start_server(self._accept, sock=listener, backlog=1024)

    def _bind(self) -> socket.socket:
        if isinstance(self.place, Path):
            self.place.unlink(missing_ok=True)
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(self.place))
        else:
            listener = socket.socket(socket.AF_INET)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(self.place)
        listener.setblocking(False)
        return listener

    async def _down(self) -> None:
        await self._close_server()
        for link in tuple(self._links):
            link.reset()
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _fall_deaf(self) -> None:
        await self._close_server()
        listener = self._bind()
        listener.listen(0)
        self._deaf.append(listener)
        for _ in range(2):  # the queue of an empty backlog takes one; the next one's first packet is dropped
            sock = socket.socket(socket.AF_INET)
            sock.setblocking(False)
            with suppress(BlockingIOError):
                sock.connect(self.place if not isinstance(self.place, Path) else str(self.place))
            self._deaf.append(sock)
        await asyncio.sleep(0)

    async def _close_server(self) -> None:
        if self._server is not None:
            for listener in self._server.sockets:
                self._loop.remove_reader(listener.fileno())
            for _ in range(5):  # who was accepted a moment ago is still being attached to the server
                await asyncio.sleep(0)
            self._server.close()
            self._server = None
            if isinstance(self.place, Path):
                self.place.unlink(missing_ok=True)

    async def _end(self) -> None:
        await self._down()
        for sock in self._deaf:
            sock.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.accepted += 1
        try:
            if isinstance(self.target, Path):
                far_reader, far_writer = await asyncio.open_unix_connection(str(self.target))
            else:
                far_reader, far_writer = await asyncio.open_connection(*self.target)
        except OSError:
            writer.transport.abort()
            self._tasks.discard(task)
            return
        link = _Link(self, (reader, writer), (far_reader, far_writer))
        self._links.add(link)
        try:
            for planted in tuple(self.planted.values()):
                link.meet(planted)
            await link.run()
        finally:
            self._links.discard(link)
            self._tasks.discard(task)


Ends: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Link:
    """One connection through the proxy: two flows, and what may break it."""

    def __init__(self, proxy: FaultProxy, near: Ends, far: Ends) -> None:
        self._loop = asyncio.get_running_loop()
        self._chance = proxy.chance
        self._writers = (near[1], far[1])
        self._flows = {
            Direction.UP: Flow(self, near[0], far[1], proxy.chance),
            Direction.DOWN: Flow(self, far[0], near[1], proxy.chance),
        }
        self._broken = asyncio.Event()
        self._timers: dict[str, asyncio.TimerHandle] = {}

    async def run(self) -> None:
        """Carry until both sides have ended, or the connection was broken."""
        carrying = [asyncio.ensure_future(flow.carry()) for flow in self._flows.values()]
        both = asyncio.ensure_future(asyncio.wait(carrying))
        breaking = asyncio.ensure_future(self._broken.wait())
        try:
            await asyncio.wait((both, breaking), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for timer in self._timers.values():
                timer.cancel()
            for task in (*carrying, both, breaking):
                task.cancel()
            await asyncio.gather(*carrying, both, breaking, return_exceptions=True)
            for writer in self._writers:
                writer.close()
                with suppress(OSError):
                    await writer.wait_closed()

    def meet(self, planted: Planted) -> None:
        """Be acted on by a toxic from now on."""
        if planted.toxicity < 1.0 and self._chance.random() >= planted.toxicity:
            return
        self._flows[planted.direction].toxics[planted.name] = planted.toxic
        match planted.toxic:
            case ResetPeer(timeout_ms):
                self._timers[planted.name] = self._loop.call_later(timeout_ms / 1000, self.reset)
            case Timeout(timeout_ms) if timeout_ms > 0:
                self._timers[planted.name] = self._loop.call_later(timeout_ms / 1000, self.close)
        self._flows[planted.direction].changed.set()

    def part(self, planted: Planted) -> None:
        """Be acted on by it no longer. What a `Timeout` has swallowed is missing, so its connection ends."""
        flow = self._flows[planted.direction]
        if flow.toxics.pop(planted.name, None) is None:
            return
        if (timer := self._timers.pop(planted.name, None)) is not None:
            timer.cancel()
        if isinstance(planted.toxic, Timeout):
            self.close()
        flow.changed.set()

    def close(self) -> None:
        """End in order, whatever is still on its way."""
        self._broken.set()

    def reset(self) -> None:
        """End with RST on both sides."""
        for writer in self._writers:
            sock = writer.get_extra_info("socket")
            if sock is not None and sock.family != socket.AF_UNIX:
                with suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        self._broken.set()


class Flow:
    """One direction of one connection: read, decide when each piece is due, deliver it then and in order."""

    def __init__(self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, chance: Random) -> None:
        self.toxics: dict[str, Toxic] = {}
        self.changed = asyncio.Event()  # a toxic came or went, or there is something to deliver
        self._link = link
        self._reader = reader
        self._writer = writer
        self._schedule = Schedule(self.toxics, chance, asyncio.get_running_loop().time)
        self._pieces: deque[tuple[float, bytes]] = deque()
        self._queued = 0
        self._drained = asyncio.Event()
        self._passed: dict[LimitData, int] = {}
        self._ended = False

    async def carry(self) -> None:
        """Carry until the sender has ended and everything is delivered."""
        delivering = asyncio.ensure_future(self._deliver())
        try:
            while data := await self._reader.read(1 << 16):
                for due, piece in self._schedule.pieces(data):
                    self._pieces.append((due, piece))
                    self._queued += len(piece)
                self.changed.set()
                while self._queued > MAX_QUEUED_BYTES:
                    self._drained.clear()
                    await self._drained.wait()
            self._ended = True
            self.changed.set()
            await delivering
        except OSError:
            self._link.reset()
        finally:
            delivering.cancel()
            await asyncio.gather(delivering, return_exceptions=True)

    async def _deliver(self) -> None:
        while True:
            held = any(isinstance(toxic, Held) for toxic in self.toxics.values())
            wait_s = None if held or not self._pieces else self._pieces[0][0] - self._schedule.clock()
            if wait_s is None or wait_s > 0:
                if self._ended and not self._pieces:
                    break
                self.changed.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self.changed.wait()
                continue
            _, piece = self._pieces.popleft()
            self._queued -= len(piece)
            self._drained.set()
            self._writer.write(self._limited(piece))
            await self._writer.drain()
        for toxic in tuple(self.toxics.values()):
            if isinstance(toxic, SlowClose):
                await asyncio.sleep(toxic.delay_ms / 1000)
        if self._writer.can_write_eof():
            self._writer.write_eof()

    def _limited(self, piece: bytes) -> bytes:
        """Give as much of a piece as a limit lets pass; the connection ends behind the last byte."""
        for toxic in self.toxics.values():
            if isinstance(toxic, LimitData):
                passed = self._passed.get(toxic, 0)
                piece = piece[: max(0, toxic.num_bytes - passed)]
                self._passed[toxic] = passed + len(piece)
                if self._passed[toxic] >= toxic.num_bytes:
                    self._link.close()
        return piece
