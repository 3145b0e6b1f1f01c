"""A wire between a client and a server's unix socket that can be slow, silent, or cut between question and answer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path


class BadWire:
    """Set `delay_s`, `silent` or `cut_replies` at any time; what passes from then on fares accordingly."""

    def __init__(self, target: Path, path: Path) -> None:
        self.target = target
        self.path = path
        self.delay_s = 0.0
        self.silent = False  # nothing passes, either way, until it does: bytes of a stream come late, or never
        self.cut_replies = 0  # so many replies are swallowed, and their connections cut
        self._tasks: set[asyncio.Task[None]] = set()
        self.connections = 0

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Connect through."""
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        far_reader, far_writer = await asyncio.open_unix_connection(str(self.target))
        back = asyncio.create_task(self._back(far_reader, writer))
        try:
            while data := await reader.read(1 << 16):
                await self._silence()
                far_writer.write(data)
        except OSError:
            pass
        finally:
            back.cancel()
            await asyncio.gather(back, return_exceptions=True)
            for end in (writer, far_writer):
                end.transport.abort()
            self._tasks.discard(task)

    async def _back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            await asyncio.sleep(self.delay_s)
            if self.cut_replies:
                self.cut_replies -= 1
                writer.transport.abort()
                return
            await self._silence()
            writer.write(data)

    async def _silence(self) -> None:
        while self.silent:
            await asyncio.sleep(0.01)

    async def gone(self) -> None:
        """End every connection."""
        for task in list(self._tasks):
            task.cancel()
        while self._tasks:
            await asyncio.wait(self._tasks)
        await asyncio.sleep(0.01)  # the transports' own closing


@asynccontextmanager
async def bad_wire(target: Path, path: Path) -> AsyncIterator[BadWire]:
    """Lay a wire to `target` that begins at `path`."""
    wire = BadWire(target, path)
    server = await asyncio.start_unix_server(wire.accept, str(path))
    try:
        yield wire
    finally:
        server.close()
        await wire.gone()
