"""Callers of a soak, who read slowly, leave in every way and end each other's requests.

What they hear is searched for what is anybody else's. What they are told, they note down in the event log. Nothing
here judges.
"""

import asyncio
import json
import re
import socket
import struct
from collections.abc import Mapping
from contextlib import suppress
from random import Random
from typing import NamedTuple

from tests.rig.event_log import Asked, End, EventLog, Faulted, Listed, Meddled, Told
from tests.rig.soak_wish import MARKED, TENANTS, Wish, canary_of, draw, key_of

HUNG_S = 150.0  # nothing in the gateway's configuration lasts half as long


class Caller:
    """One caller with one connection, which asks until it is told to stop."""

    def __init__(self, port: int, log: EventLog, rng: Random, name: str) -> None:
        self.texts: dict[str, set[str]] = {}
        self._port = port
        self._log = log
        self._rng = rng
        self._name = name
        self._count = 0
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def call_until(self, stop: asyncio.Event, pause_s: float) -> None:
        """Ask one request after another, with pauses of that length on average."""
        try:
            while not stop.is_set():
                self._count += 1
                await self.ask(draw(self._rng, f"{self._name}.{self._count}"))
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), self._rng.uniform(0, 2 * pause_s))
        finally:
            self.hang_up(reset=True)

    async def ask(self, wish: Wish) -> None:
        """Make one request and note what came of it."""
        log, asked = self._log, wish.asked
        log.add(asked)
        if wish.fault:
            log.add(Faulted(wish.fault))
        hearing = Hearing(asked)
        meddling = None if wish.cancel_s is None else asyncio.create_task(self._meddle(wish, wish.cancel_s))
        try:
            async with asyncio.timeout(HUNG_S):
                await self._exchange(wish, hearing)
        except TimeoutError:
            hearing.end = End.HUNG
        except (OSError, EOFError):
            hearing.end = End.BROKEN if hearing.status else End.UNHEARD
        if hearing.end is not End.WHOLE:
            self.hang_up(reset=wish.reset)
        log.add(hearing.told())
        if meddling is not None:
            await meddling
        if wish.repeatable and hearing.text is not None and wish.fault in ("", "deadline"):
            self.texts.setdefault(wish.body.decode(), set()).add(hearing.text)

    def hang_up(self, *, reset: bool = False) -> None:
        """Close the connection: in order, or with RST."""
        if self._writer is not None:
            if reset:
                sock = self._writer.get_extra_info("socket")
                with suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self._writer.transport.abort()
            else:
                self._writer.close()
        self._reader = self._writer = None

    async def _exchange(self, wish: Wish, hearing: "Hearing") -> None:
        if wish.pause_s:
            self.hang_up()
        if self._writer is None or self._writer.transport.is_closing():
            sock = socket.socket()
            if wish.pause_s:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self._port))
            self._reader, self._writer = await asyncio.open_connection(sock=sock, limit=1 << 16)
        reader, writer = self._reader, self._writer
        assert reader is not None
        lines = "".join(f"{name}: {value}\r\n" for name, value in wish.headers.items())
        head = f"POST {wish.path} HTTP/1.1\r\nhost: gateway\r\nx-request-id: {wish.asked.id}\r\n{lines}"
        head += f"content-type: application/json\r\ncontent-length: {len(wish.body)}\r\n\r\n"
        writer.write(head.encode() + wish.body)
        if wish.leave_after == 0:
            await asyncio.sleep(wish.linger_s)
            hearing.end = End.LEFT
            return
        headers = hearing.head(await reader.readuntil(b"\r\n\r\n"))
        if wish.pause_s:
            await asyncio.sleep(wish.pause_s)
        if headers.get("transfer-encoding") == "chunked":
            if not await self._stream(reader, hearing, wish.leave_after):
                return
        else:
            hearing.whole(await reader.readexactly(int(headers["content-length"])))
        hearing.end = End.WHOLE
        if headers.get("connection") == "close":
            self.hang_up()

    async def _stream(self, reader: asyncio.StreamReader, hearing: "Hearing", leave_after: int | None) -> bool:
        """Read a stream to its end, False where it was left."""
        pending, count = b"", 0
        while size := int(await reader.readuntil(b"\r\n"), 16):
            pending += (await reader.readexactly(size + 2))[:-2]
            *events, pending = re.split(rb"\r?\n\r?\n", pending)
            for event in events:
                hearing.event(event)
                count += 1
                if leave_after is not None and count >= leave_after:
                    hearing.end = End.LEFT
                    return False
        await reader.readexactly(2)
        return True

    async def _meddle(self, wish: Wish, after_s: float) -> None:
        """Have a request ended, by its own tenant or by another, who looks at its list first."""
        await asyncio.sleep(after_s)
        key = {"authorization": f"Bearer {key_of(TENANTS[wish.canceller])}"}
        with suppress(OSError, EOFError, TimeoutError):
            async with asyncio.timeout(HUNG_S):
                told = await ask_plainly(self._port, "GET", "/v1/requests", key)
                shown = tuple([each["id"] for each in json.loads(told.body)["data"]])
                self._log.add(Listed(wish.canceller, shown))
                told = await ask_plainly(self._port, "POST", f"/v1/requests/{wish.asked.id}/cancel", key)
                self._log.add(Meddled(wish.asked.id, wish.canceller, told.status))


class Hearing:
    """What a caller hears of one answer."""

    def __init__(self, asked: Asked) -> None:
        self.end = End.UNHEARD
        self.status = 0
        self.text: str | None = None
        self._asked = asked
        self._done = self._errors = self._pieces = 0
        self._code: str | None = None
        self._usage: Mapping[str, int] | None = None
        self._foreign: set[str] = set()
        self._own = (canary_of(asked.tenant) if asked.tenant else "", f"mark-{asked.id}")

    def head(self, raw: bytes) -> dict[str, str]:
        """Take the answer's head; gives its headers."""
        self._search(raw)
        first, *lines = raw.decode("latin-1").split("\r\n")[:-2]
        self.status = int(first.split(" ")[1])
        return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}

    def whole(self, raw: bytes) -> None:
        """Take a whole body."""
        self._search(raw)
        answer = json.loads(raw)
        if self.status != 200:
            self._code = answer["error"].get("code")
            return
        self._usage = answer["usage"]
        [choice] = answer["choices"]
        self.text = choice["text"] if "text" in choice else choice["message"]["content"]

    def event(self, raw: bytes) -> None:
        """Take one event of a stream; comments and what is no JSON are an upstream's and count for nothing."""
        self._search(raw)
        data = b"\n".join([line[5:].strip() for line in raw.splitlines() if line.startswith(b"data:")])
        if data == b"[DONE]":
            self._done += 1
        elif data:
            try:
                told = json.loads(data)
            except ValueError:
                return
            self._usage = told.get("usage") or self._usage
            if "error" in told:
                self._errors += 1
                self._code = told["error"].get("code")
            for choice in told.get("choices", ()):
                self._pieces += bool(choice.get("text") or choice.get("delta", {}).get("content"))

    def told(self) -> Told:
        """Sum it up."""
        prompt = completion = None
        if self._usage is not None:
            prompt, completion = self._usage["prompt_tokens"], self._usage["completion_tokens"]
        foreign = tuple(sorted(self._foreign))
        counts = (self._done, self._errors, self._code, self._pieces)
        return Told(self._asked.id, self.end, self.status, *counts, prompt, completion, foreign)

    def _search(self, raw: bytes) -> None:
        found = MARKED.findall(raw.decode("utf-8", "replace"))
        self._foreign.update(each for each in found if each not in self._own)


class Answer(NamedTuple):
    """A whole answer."""

    status: int
    head: bytes
    body: bytes


async def ask_plainly(port: int, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> Answer:
    """Make one request on a connection of its own. Raises `OSError` and `EOFError`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"{method} {path} HTTP/1.1\r\nhost: gateway\r\n{lines}content-type: application/json\r\n"
        writer.write(f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body)
        raw = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", raw)
        assert length is not None
        body = await reader.readexactly(int(length[1]))
        return Answer(int(raw.split(b" ")[1]), raw, body)
    finally:
        writer.transport.abort()
