"""An HTTP/1.1 client of a few lines that hides nothing: no retry, no second connection, every broken answer is told."""

import asyncio
import json
from types import TracebackType
from typing import Any, NamedTuple, Self


class Answer(NamedTuple):
    """A whole answer. `closes` says that the server announced to close the connection."""

    status: int
    headers: dict[str, str]
    body: bytes
    closes: bool


class PlainClient:
    """One connection at a time, opened when there is none. A request on a connection that breaks raises."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self.opened = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection, if one is open."""
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None

    async def send(
        self, method: str, path: str, fields: dict[str, Any] | None = None, headers: dict[str, str] | None = None
    ) -> None:
        """Send a request, without waiting for its answer."""
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
            self.opened += 1
        body = b"" if fields is None else json.dumps(fields).encode()
        lines = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        head = f"{method} {path} HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\n{lines}"
        self._writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        await self._writer.drain()

    async def receive(self) -> Answer:
        """Read an answer to its end. Raises `IncompleteReadError` or `ConnectionError` where it is not whole."""
        assert self._reader is not None, "nothing was asked"
        head = await self._reader.readuntil(b"\r\n\r\n")
        status_line, *lines = head.decode("latin-1").rstrip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(await self._reader.readuntil(b"\r\n"), 16):
                body += (await self._reader.readexactly(size + 2))[:-2]
            await self._reader.readexactly(2)
        else:
            body = await self._reader.readexactly(int(headers["content-length"]))
        closes = headers.get("connection") == "close"
        if closes:
            self.close()
        return Answer(int(status_line.split()[1]), headers, body, closes)

    async def ask(
        self, method: str, path: str, fields: dict[str, Any] | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        """Send a request and read its answer."""
        await self.send(method, path, fields, headers)
        return await self.receive()
