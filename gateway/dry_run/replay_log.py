"""A recorded access log, read line by line and put in the order of arrival.

Lines are written as requests end, so that a long answer stands far behind its arrival. They are sorted in pieces that
fit the memory, each kept in a file of its own, and merged as they are read back.
"""

import heapq
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from datetime import datetime
from typing import IO

import msgspec

PIECE = 100_000  # entries that are sorted in memory, some 50 MB
SHOWN = 20  # broken lines that are named; all are counted


class QuotaPart(msgspec.Struct):
    """What of the limits' word is read."""

    refused: str | None = None
    ended: str | None = None


class Line(msgspec.Struct):
    """A line of `gateway.telemetry.access_log`, as far as it is read; what it leaves out is zero or unknown."""

    time: datetime
    path: str
    status: int
    ms: float
    first_event_ms: float | None = None
    model: str | None = None
    organisation: str | None = None
    team: str | None = None
    tenant: str | None = None
    key: str | None = None
    engine: bool = False
    stream: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    input_tokens: int | None = None
    asked_output: int | None = None
    max_output: int | None = None
    choices: int = 1
    bytes_in: int = 0
    quota: QuotaPart | None = None


class Entry(msgspec.Struct, array_like=True):
    """One call of a log. Times are µs since 1970; `input` is what was counted before it ran, None where nothing was."""

    arrived: int
    number: int  # of its line
    ended: int
    first_event: int | None
    organisation: str
    team: str | None
    tenant: str
    key: str | None
    model: str
    engine: bool
    stream: bool
    refused: bool  # by a limit, then
    cut: bool  # short, by a limit, then
    prompt: int
    completion: int
    cached: int
    input: int | None
    asked_output: int | None
    max_output: int | None
    choices: int
    bytes_in: int


class LogReader:
    """Reads lines. `lines` counts them all, `others` those of no tenant's call, `broken` names some of the bad."""

    def __init__(self) -> None:
        self.lines = 0
        self.others = 0
        self.num_broken = 0
        self.broken: list[tuple[int, str]] = []
        self._decode = msgspec.json.Decoder(Line).decode

    def entries(self, lines: Iterable[bytes]) -> Iterator[Entry]:
        """Give the calls, in the order of the log."""
        for line in lines:
            self.lines += 1
            if not line.strip():
                self.others += 1
                continue
            try:
                entry = entry_of(self._decode(line), self.lines)
            except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
                self.num_broken += 1
                if len(self.broken) < SHOWN:
                    self.broken.append((self.lines, str(error)))
                continue
            if entry is None:
                self.others += 1
            else:
                yield entry


def entry_of(line: Line, number: int) -> Entry | None:
    """Give the call that a line tells of; None for a list of models, a stranger, a model that is not there."""
    if line.model is None or line.tenant is None or line.organisation is None:
        return None
    if line.time.tzinfo is None or line.ms < 0:
        raise ValueError("no time with a zone, or a negative duration")
    arrived = round(line.time.timestamp() * 1e6)
    first = line.first_event_ms
    return Entry(
        arrived,
        number,
        arrived + round(line.ms * 1e3),
        None if first is None else arrived + round(first * 1e3),
        line.organisation,
        line.team,
        line.tenant,
        line.key,
        line.model,
        line.engine,
        line.stream,
        line.quota is not None and line.quota.refused is not None,
        line.quota is not None and line.quota.ended is not None,
        line.prompt_tokens,
        line.completion_tokens,
        line.cached_tokens,
        line.input_tokens,
        line.asked_output,
        line.max_output,
        line.choices,
        line.bytes_in,
    )


def by_arrival(entries: Iterable[Entry], piece: int = PIECE) -> Iterator[Entry]:
    """Give entries in the order of arrival, holding at most `piece` of them in memory."""
    pieces: list[IO[bytes]] = []
    held: list[Entry] = []
    with ExitStack() as stack:
        for entry in entries:
            held.append(entry)
            if len(held) >= piece:
                pieces.append(stack.enter_context(tempfile.TemporaryFile(prefix="penstock-replay-")))
                _spill(sorted(held, key=_place), pieces[-1])
                held = []
        yield from heapq.merge(sorted(held, key=_place), *map(_read_back, pieces), key=_place)


def _place(entry: Entry) -> tuple[int, int]:
    return entry.arrived, entry.number


def _spill(entries: Iterable[Entry], file: IO[bytes]) -> None:
    encode = msgspec.json.Encoder().encode
    file.writelines(encode(entry) + b"\n" for entry in entries)
    file.seek(0)


def _read_back(file: IO[bytes]) -> Iterator[Entry]:
    decode = msgspec.json.Decoder(Entry).decode
    for line in file:
        yield decode(line)
