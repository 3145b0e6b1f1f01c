"""A caller that notes when what happened, and that leaves when it is told to: for load and for proofs.

It speaks HTTP/1.1 with bytes of its own and keeps its connection for the next call. Times are µs of the machine's
wall clock, the one that Redis tells the time by.
"""

import asyncio
import json
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Ask:
    """One call. `leave_after`: hang up after so many events of the answer, 0 before the first byte, None never.

    `linger_s` is how long one that leaves before the first byte waits until it does.
    """

    id: str
    key: str
    model: str
    prompt: str = "The quick brown fox"
    max_tokens: int | None = 16
    stream: bool = True
    leave_after: int | None = None
    linger_s: float = 0.0
    extra: dict[str, Any] = field(default_factory=dict)

    def body(self) -> bytes:
        fields: dict[str, Any] = {"model": self.model, "messages": [{"role": "user", "content": self.prompt}]}
        if self.max_tokens is not None:
            fields["max_tokens"] = self.max_tokens
        if self.stream:
            fields |= {"stream": True, "stream_options": {"include_usage": True}}
        return json.dumps(fields | self.extra).encode()


@dataclass(slots=True)
class Told:
    """What came of it. `ending`: "whole", "left" (by us), "broken" (no end came), "unheard" (no answer came)."""

    ask: Ask
    sent: int = 0
    ended: int = 0
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    heard: list[int] = field(default_factory=list)  # when each event with content came, or the whole answer
    listed: int = 0  # tokens whose log-probabilities came, where they were asked for
    finish: str | None = None
    limit: str | None = None
    usage: dict[str, int] | None = None
    error: dict[str, Any] | None = None
    ending: str = "unheard"

    @property
    def completion(self) -> int:
        """Tokens of the answer, as the usage says."""
        return 0 if self.usage is None else self.usage["completion_tokens"]


class ChatClient:
    """One caller of one gateway; one call at a time."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, ask: Ask) -> Told:
        """Make one call. What goes wrong on the way stands in `ending`; only cancellation is raised."""
        told = Told(ask)
        try:
            await self._ask(ask, told)
        except (OSError, EOFError):
            told.ending = "broken" if told.status else "unheard"
        finally:
            told.ended = now_us()
            if told.ending != "whole":
                self.hang_up()
        return told

    def hang_up(self) -> None:
        """Break the connection off."""
        if self._writer is not None:
            self._writer.transport.abort()
        self._reader = self._writer = None

    async def _ask(self, ask: Ask, told: Told) -> None:
        if self._writer is None or self._writer.transport.is_closing():
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self._reader, self._writer
        assert reader is not None
        body = ask.body()
        told.sent = now_us()
        writer.write(
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {ask.key}\r\n"
            f"x-request-id: {ask.id}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        if ask.leave_after == 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(reader.read(1), ask.linger_s)
            told.ending = "left"
            return
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        told.status = int(head[0].split(" ")[1])
        told.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])}
        if told.headers.get("transfer-encoding") == "chunked":
            await self._stream(reader, told)
        else:
            self._whole(json.loads(await reader.readexactly(int(told.headers["content-length"]))), told)

    def _whole(self, answer: dict[str, Any], told: Told) -> None:
        told.ending = "whole"
        if told.status != 200:
            told.error = answer.get("error", answer)
            return
        told.heard.append(now_us())
        told.usage = answer["usage"]
        told.finish = answer["choices"][0]["finish_reason"]
        told.limit = limit_of(answer)

    async def _stream(self, reader: asyncio.StreamReader, told: Told) -> None:
        pending, done, count = b"", False, 0
        while size := int(await reader.readuntil(b"\r\n"), 16):
            pending += (await reader.readexactly(size + 2))[:-2]
            *events, pending = pending.split(b"\n\n")
            for event in events:
                if not event.startswith(b"data: "):
                    continue
                count += 1
                if event == b"data: [DONE]":
                    done = True
                else:
                    self._event(json.loads(event[6:]), told)
                if told.ask.leave_after is not None and count >= told.ask.leave_after:
                    told.ending = "left"
                    return
        await reader.readexactly(2)
        told.ending = "whole" if done or told.error is not None else "broken"

    def _event(self, event: dict[str, Any], told: Told) -> None:
        if "error" in event:
            told.error = event["error"]
        told.usage = event.get("usage") or told.usage
        told.limit = limit_of(event) or told.limit
        for choice in event.get("choices", ()):
            told.finish = choice.get("finish_reason") or told.finish
            if choice["delta"].get("content"):
                told.heard.append(now_us())
            told.listed += len((choice.get("logprobs") or {}).get("content") or ())


def limit_of(answer: dict[str, Any]) -> str | None:
    """Give the limit that an answer, or an event of it, names as its end: beside the finish reason."""
    for place in (answer, *answer.get("choices", ())):
        told = place.get("penstock")
        if isinstance(told, dict) and isinstance(told.get("limit"), str):
            limit: str = told["limit"]
            return limit
    return None


def now_us() -> int:
    """Tell the machine's time in µs."""
    return time.time_ns() // 1000
