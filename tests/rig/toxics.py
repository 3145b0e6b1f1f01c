"""What can be wrong with a network, in Toxiproxy's words and units, and when what passes through it arrives."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import TypeAlias


class Direction(StrEnum):
    """Which way a toxic acts."""

    UP = "upstream"
    DOWN = "downstream"


@dataclass(frozen=True, slots=True)
class Latency:
    """Everything arrives so much later, in order; one byte after another is not slower for it."""

    latency_ms: float
    jitter_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """So many kB/s pass."""

    rate_kb_s: float


@dataclass(frozen=True, slots=True)
class Slicer:
    """What was one piece arrives as several, of a size around the average, the delay between them."""

    average_bytes: int
    variation_bytes: int = 0
    delay_us: int = 0


@dataclass(frozen=True, slots=True)
class LimitData:
    """After so many bytes of a connection have passed, it is closed."""

    num_bytes: int


@dataclass(frozen=True, slots=True)
class Timeout:
    """Nothing passes; after the timeout, or with 0 when the toxic is removed, the connection is closed."""

    timeout_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class ResetPeer:
    """The connection is reset, with RST, at once or after the timeout."""

    timeout_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class SlowClose:
    """The end of the stream arrives so much later than what was before it."""

    delay_ms: float


@dataclass(frozen=True, slots=True)
class Held:
    """Nothing passes until the toxic is removed; then everything does."""


Toxic: TypeAlias = Latency | Bandwidth | Slicer | LimitData | Timeout | ResetPeer | SlowClose | Held


class Schedule:
    """When what passes in one direction arrives, and in which pieces."""

    def __init__(self, toxics: Mapping[str, Toxic], chance: Random, clock: Callable[[], float]) -> None:
        self.clock = clock
        self._toxics = toxics
        self._chance = chance
        self._last_due = 0.0
        self._line_free = 0.0

    def pieces(self, data: bytes) -> Iterator[tuple[float, bytes]]:
        """Give what data becomes now: pieces with their times, which never go back. Nothing where it is swallowed."""
        toxics = tuple(self._toxics.values())
        if any(isinstance(toxic, Timeout) for toxic in toxics):
            return
        slicer = next((toxic for toxic in toxics if isinstance(toxic, Slicer)), None)
        begin = self.clock()
        for piece in self._slices(data, slicer):
            due = begin
            for toxic in toxics:
                match toxic:
                    case Bandwidth(rate_kb_s):
                        self._line_free = due = max(self._line_free, due) + len(piece) / (rate_kb_s * 1000)
                    case Latency(latency_ms, jitter_ms):
                        due += max(0.0, latency_ms + self._chance.uniform(-jitter_ms, jitter_ms)) / 1000
            self._last_due = max(self._last_due, due)
            yield self._last_due, piece
            if slicer is not None:
                begin += slicer.delay_us / 1_000_000

    def _slices(self, data: bytes, slicer: Slicer | None) -> Iterator[bytes]:
        if slicer is None:
            yield data
            return
        at = 0
        while at < len(data):
            size = slicer.average_bytes + self._chance.randint(-slicer.variation_bytes, slicer.variation_bytes)
            yield data[at : at + max(1, size)]
            at += max(1, size)
