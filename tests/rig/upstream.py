"""A scripted OpenAI-compatible server on a real socket, which does to each request what the request says.

The script rides in the body's `script` field, an extension that the gateway passes through untouched; or the server has
a plan of its own, so that the attempts of one request fare differently. It speaks HTTP/1.1 with bytes of its own, so
that it can break every rule of it. What it saw and what became of it stands in `seen`.
"""

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

REASONS = {200: "OK", 400: "Bad Request", 429: "Too Many Requests", 500: "Internal Server Error"}


@dataclass(slots=True)
class Script:
    """What to do with one request. Positions count events of the stream, from 0."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: str | None = None  # an answer, whatever was asked
    content_type: str | None = None
    pieces: list[str] | None = None  # latin-1: the raw bytes of a chunked body, one HTTP chunk each
    words: list[str] = field(default_factory=lambda: ["Hello", " from", " up", "stream", "."])
    head_delay_s: float = 0.0
    chunk_delay_s: float = 0.0
    hang_at: str | int | None = None  # "accept": before the head; "head": after it; k: before event k
    reset_at: str | int | None = None  # the same places: the connection is reset
    close_at: str | int | None = None  # the same places: closed in order, with the body not ended
    error_at: int | None = None  # an error event in place of event k
    cut_bytes: int | None = None  # write the stream in pieces of that many bytes
    done: bool = True
    finish: bool = True
    usage: bool = True
    linger: bool = False  # never end the body after the terminal event
    obey: bool = False  # bring no more words than `max_tokens`, and say so


@dataclass(slots=True)
class Seen:
    """One request and its fate: `ending` is "whole", "left" (the gateway closed first) or "broken" (as scripted)."""

    path: str
    headers: dict[str, str]
    body: bytes
    ending: str | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    ended_at: float = 0.0  # loop seconds
    written: int = 0  # pieces of a chunked body

    @property
    def fields(self) -> dict[str, Any]:
        decoded: dict[str, Any] = json.loads(self.body)
        return decoded


class Broken(Exception):
    """The script broke the connection."""


class Upstream:
    """The server. `connections` are the open ones."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.plan: Callable[[int], dict[str, Any]] | None = None  # gives the n-th request's script, from 0
        self.connections: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def active(self) -> int:
        """How many requests have not ended."""
        return sum(seen.ending is None for seen in self.seen)

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in tuple(self.connections):
            writer.transport.abort()
        while self.connections:  # their handlers end within the loop's next rounds
            await asyncio.sleep(0.001)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.add(writer)
        try:
            while (seen := await read_request(reader)) is not None:
                self.seen.append(seen)
                await self._run(seen, reader, writer)
                if seen.ending != "whole":
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.connections.discard(writer)
            writer.close()

    async def _run(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer, and notice when the client leaves first."""
        script = seen.fields.get("script", {}) if self.plan is None else self.plan(len(self.seen) - 1)
        answering = asyncio.ensure_future(Answer(seen, writer, Script(**script)).write())
        leaving = asyncio.ensure_future(reader.read(1))  # nobody pipelines
        try:
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
            if answering.done() and answering.exception() is None:
                seen.ending = "whole"
            elif answering.done() and isinstance(answering.exception(), Broken):
                seen.ending = "broken"
            else:
                seen.ending = "left"
        finally:
            seen.ended_at = asyncio.get_running_loop().time()
            answering.cancel()
            leaving.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)
            seen.ended.set()


class Answer:
    """Writes one answer as its script says."""

    def __init__(self, seen: Seen, writer: asyncio.StreamWriter, script: Script) -> None:
        self._writer = writer
        self._seen = seen
        fields = seen.fields
        self._fields = fields
        self._chat = seen.path.endswith("/chat/completions")
        self._script = script
        most = fields.get("max_tokens") if script.obey else None
        self._finish = "stop"
        if most is not None and most < len(script.words):
            script.words, self._finish = script.words[:most], "length"

    async def write(self) -> None:
        script = self._script
        await self._at("accept")
        if script.head_delay_s:
            await asyncio.sleep(script.head_delay_s)
        streamed = bool(self._fields.get("stream")) and script.status == 200 and script.body is None
        if script.pieces is not None:
            await self._chunked([piece.encode("latin-1") for piece in script.pieces])
        elif streamed:
            await self._chunked(list(self._events()))
        else:
            body = script.body.encode("latin-1") if script.body is not None else json.dumps(self._whole()).encode()
            self._head(script.content_type or "application/json", f"content-length: {len(body)}\r\n")
            await self._at("head")
            self._writer.write(body)
            await self._writer.drain()

    async def _chunked(self, pieces: list[bytes]) -> None:
        script = self._script
        self._head(script.content_type or "text/event-stream", "transfer-encoding: chunked\r\n")
        await self._writer.drain()
        await self._at("head")
        if script.cut_bytes:
            whole = b"".join(pieces)
            pieces = [whole[at : at + script.cut_bytes] for at in range(0, len(whole), script.cut_bytes)]
        for index, piece in enumerate(pieces):
            await self._at(index)
            self._writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            self._seen.written += 1
            await self._writer.drain()
            if script.chunk_delay_s:
                await asyncio.sleep(script.chunk_delay_s)
        if script.linger:
            await asyncio.Event().wait()
        self._writer.write(b"0\r\n\r\n")
        await self._writer.drain()

    def _head(self, content_type: str, framing: str) -> None:
        script = self._script
        lines = [f"HTTP/1.1 {script.status} {REASONS.get(script.status, 'Scripted')}", f"content-type: {content_type}"]
        lines += [f"{name}: {value}" for name, value in script.headers.items()]
        self._writer.write(("\r\n".join(lines) + "\r\n" + framing + "\r\n").encode("latin-1"))

    async def _at(self, place: str | int) -> None:
        script = self._script
        if script.hang_at == place:
            await asyncio.Event().wait()
        if script.reset_at == place:
            sock = self._writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._writer.transport.abort()
            raise Broken
        if script.close_at == place:
            raise Broken

    def _events(self) -> list[bytes]:
        """The stream's events: a role, the words, an end, usage where asked, the terminal event."""
        script, n = self._script, self._fields.get("n") or 1
        told: list[dict[str, Any]] = []
        if self._chat:
            told += [self._chunk(index, {"role": "assistant", "content": ""}) for index in range(n)]
        for word in script.words:
            told += [self._chunk(index, {"content": word}) for index in range(n)]
        if script.finish:
            told += [self._chunk(index, {}, self._finish) for index in range(n)]
        wants_usage = (self._fields.get("stream_options") or {}).get("include_usage")
        if wants_usage:
            for each in told:
                each["usage"] = None
            if script.usage:
                told.append({**self._envelope(".chunk"), "choices": [], "usage": self._usage()})
        if script.error_at is not None:
            told[script.error_at :] = [{"error": {"message": "scripted", "type": "server_error", "code": None}}]
        events = [b"data: " + json.dumps(each, separators=(",", ":")).encode() + b"\n\n" for each in told]
        return [*events, b"data: [DONE]\n\n"] if script.done and script.error_at is None else events

    def _chunk(self, index: int, delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "logprobs": None, "finish_reason": finish}
        choice |= {"delta": delta} if self._chat else {"text": delta.get("content", "")}
        return {**self._envelope(".chunk"), "choices": [choice]}

    def _whole(self) -> dict[str, Any]:
        if self._script.status >= 400:
            error = {"message": "scripted failure", "type": "scripted_error", "param": None, "code": "scripted"}
            return {"error": error}
        text, n = "".join(self._script.words), self._fields.get("n") or 1
        choices = []
        for index in range(n):
            choice: dict[str, Any] = {"index": index, "logprobs": None, "finish_reason": self._finish}
            choice |= {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
            choices.append(choice)
        return {**self._envelope(""), "choices": choices, "usage": self._usage()}

    def _envelope(self, suffix: str) -> dict[str, Any]:
        kind = f"chat.completion{suffix}" if self._chat else "text_completion"
        return {"id": "scripted-1", "object": kind, "created": 1, "model": self._fields["model"]}

    def _usage(self) -> dict[str, int]:
        completion = len(self._script.words) * (self._fields.get("n") or 1)
        return {"prompt_tokens": 7, "completion_tokens": completion, "total_tokens": 7 + completion}


async def read_request(reader: asyncio.StreamReader) -> Seen | None:
    """Read one request with its body; None when the connection ends instead."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")[:-2]
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Seen(first.split(" ")[1], headers, body)


@asynccontextmanager
async def scripted_upstream() -> AsyncIterator[Upstream]:
    """Run a server for the length of a block."""
    upstream = Upstream()
    await upstream.start()
    try:
        yield upstream
    finally:
        await upstream.stop()


async def eventually(holds: Callable[[], bool], within_s: float = 5.0) -> None:
    """Wait until something holds; fail when it never does."""
    async with asyncio.timeout(within_s):
        while not holds():
            await asyncio.sleep(0.002)
