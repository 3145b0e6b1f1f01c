"""The access log: one JSON line a request, written beside the event loop and never by it.

Lines are encoded a batch at a time (one among other work costs 5 µs, in a row each costs 3) and join a buffer. A timer,
armed only while something waits, hands the buffer to a thread, so that a slow disk or a full pipe stalls nobody. When
the thread falls behind by more than `max_buffer_bytes`, further lines are dropped and counted. Prompts, answers and
keys are not in a record.
"""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import msgspec

from gateway.call import AttemptKind, Departure, Operation
from gateway.telemetry.record import Ending, QuotaRecord, RequestRecord
from policies.outcome import Outcome

FLUSH_EVERY_S = 0.25
BATCH = 64  # lines encoded in a row, in 0.2 ms
CLOSE_WITHIN_S = 2.0
MAX_FIELD_CHARS = 256


class AttemptLine(msgspec.Struct, omit_defaults=True):
    """One attempt as it stands in the log; times in milliseconds since the request came."""

    upstream: str
    outcome: Outcome | None
    ms: float | None
    kind: AttemptKind = AttemptKind.FIRST
    error: str | None = None
    lost: bool = False
    usage_departure: Departure | None = None


class QuotaLine(msgspec.Struct, omit_defaults=True):
    """What the limits said, by their names: who refused, who cut the answer short, whose shadows would have."""

    refused: str | None = None
    ended: str | None = None
    shadowed: tuple[str, ...] = ()
    reserved_tokens: int | None = None
    overshoot_tokens: int = 0
    estimate: bool = False
    degraded: bool = False


class Line(msgspec.Struct, omit_defaults=True):
    """One line of the log. Fields that are unknown or zero are left out."""

    time: datetime
    id: str
    path: str
    status: int
    ending: Ending
    ms: float
    error: str | None = None
    operation: Operation | None = None
    model: str | None = None
    asked_model: str | None = None
    tenant: str | None = None
    organisation: str | None = None
    team: str | None = None
    key: str | None = None
    engine: bool = False
    stream: bool = False
    first_event_ms: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    input_tokens: int | None = None
    asked_output: int | None = None
    max_output: int | None = None
    choices: int = 1
    cost_nano_usd: int | None = None
    quota: QuotaLine | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    attempts: list[AttemptLine] = []


class AccessLog:
    """Writes records as JSON lines to a file descriptor. `dropped` counts lines that found no room or no disk."""

    def __init__(self, descriptor: int, *, owned: bool = False, max_buffer_bytes: int = 8 << 20) -> None:
        self.dropped = 0
        self._descriptor = descriptor
        self._owned = owned
        self._max_buffer_bytes = max_buffer_bytes
        self._encoder = msgspec.json.Encoder()
        self._records: list[RequestRecord] = []  # not yet encoded
        self._lines: list[bytes] = []
        self._buffered = 0
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Future[tuple[int, int]] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="access-log")

    @classmethod
    def open(cls, path: str) -> "AccessLog":
        """Append to the file at `path`, made if it is missing. Raises `OSError`."""
        return cls(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640), owned=True)

    def write(self, record: RequestRecord) -> None:
        """Take a finished request; its line is on its way within `FLUSH_EVERY_S`. Call on the event loop."""
        self._records.append(record)
        if len(self._records) == BATCH:
            self._encode()
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_EVERY_S, self._flush)

    async def aclose(self) -> None:
        """Write what is buffered, at most for `CLOSE_WITHIN_S`, and close the file if it is ours."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._writing is not None:
            await asyncio.wait([self._writing], timeout=CLOSE_WITHIN_S)
        self._encode()
        if self._writing is None and self._lines:
            self._start_writing()
            assert self._writing is not None
            await asyncio.wait([self._writing], timeout=CLOSE_WITHIN_S)
        stuck = self._writing is not None
        self._thread.shutdown(wait=not stuck, cancel_futures=True)
        if self._owned and not stuck:
            os.close(self._descriptor)

    def _encode(self) -> None:
        records, self._records = self._records, []
        for record in records:
            line = self._encoder.encode(line_of(record))
            if self._buffered + len(line) > self._max_buffer_bytes:
                self.dropped += 1
            else:
                self._lines.append(line)
                self._buffered += len(line) + 1

    def _flush(self) -> None:
        self._timer = None
        self._encode()
        if self._writing is None and self._lines:
            self._start_writing()

    def _start_writing(self) -> None:
        lines, self._lines = self._lines, []
        self._writing = asyncio.get_running_loop().run_in_executor(self._thread, self._write_out, lines)
        self._writing.add_done_callback(self._written)

    def _write_out(self, lines: list[bytes]) -> tuple[int, int]:
        """Write on the thread; gives how many bytes left the buffer, and how many lines did not arrive."""
        data = memoryview(b"\n".join([*lines, b""]))
        size = len(data)
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError:  # disk full, pipe closed: the lines are lost, requests go on
            return size, bytes(data).count(b"\n")
        return size, 0

    def _written(self, writing: "asyncio.Future[tuple[int, int]]") -> None:
        self._writing = None
        if writing.cancelled():
            return
        size, lost = writing.result()
        self._buffered -= size
        self.dropped += lost
        if self._lines and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_EVERY_S, self._flush)


def line_of(record: RequestRecord) -> Line:
    """Turn a record into its line. What callers wrote is cut to `MAX_FIELD_CHARS` and freed of control characters."""
    first = record.first_event_s
    return Line(
        time=datetime.fromtimestamp(record.time, UTC),
        id=printable(record.id),
        path=printable(record.path),
        status=record.status,
        ending=record.ending,
        ms=round(record.duration_s * 1e3, 3),
        error=record.error,
        operation=record.operation,
        model=record.model,
        asked_model=None if record.asked_model in (None, record.model) else printable(record.asked_model or ""),
        tenant=None if record.tenant is None else printable(record.tenant),
        organisation=None if record.organisation is None else printable(record.organisation),
        team=None if record.team is None else printable(record.team),
        key=None if record.key is None else printable(record.key),
        engine=record.engine,
        stream=record.stream,
        first_event_ms=None if first is None else round(first * 1e3, 3),
        prompt_tokens=record.usage.prompt,
        completion_tokens=record.usage.completion,
        cached_tokens=record.usage.cached,
        input_tokens=record.input_tokens,
        asked_output=record.asked_output,
        max_output=record.max_output,
        choices=record.choices,
        cost_nano_usd=record.cost,
        quota=None if record.quota is None else quota_line(record.quota),
        bytes_in=record.bytes_in,
        bytes_out=record.bytes_out,
        attempts=[
            AttemptLine(
                upstream=attempt.upstream,
                outcome=attempt.outcome,
                ms=None if attempt.ended is None else round((attempt.ended - attempt.started) * 1e3, 3),
                kind=attempt.kind,
                error=attempt.error,
                lost=attempt.lost,
                usage_departure=attempt.departure,
            )
            for attempt in record.attempts
        ],
    )


def quota_line(quota: QuotaRecord) -> QuotaLine:
    """Turn what the limits said into its part of the line."""
    return QuotaLine(
        refused=None if quota.refused is None else printable(quota.refused.key),
        ended=None if quota.ended is None else printable(quota.ended.key),
        shadowed=tuple([printable(hit.key) for hit in quota.shadowed]),
        reserved_tokens=quota.reserved,
        overshoot_tokens=quota.overshoot,
        estimate=not quota.exact,
        degraded=quota.degraded,
    )


def printable(text: str) -> str:
    """Escape what a terminal or a log reader might obey: control characters, line separators, lone surrogates."""
    if text.isprintable() and len(text) <= MAX_FIELD_CHARS:
        return text
    if len(text) > MAX_FIELD_CHARS:
        text = text[:MAX_FIELD_CHARS] + "…"
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
