"""What happened, told by those who saw it: callers, upstreams, whoever planted faults, the gateway's own access log.

Each adds events to one file, a line each, so that an hour of them costs nobody's memory and a failed run can be read
afterwards. What must hold of them together is judged when all is over, in `tests/rig/invariants.py`.
"""

from collections import Counter
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias, TypeVar

import msgspec


class End(StrEnum):
    """How an exchange ended, as one of its two sides saw it."""

    WHOLE = "whole"  # the answer's framing was complete
    LEFT = "left"  # a caller left, as it meant to; at an upstream: the gateway did
    BROKEN = "broken"  # the connection ended inside of the answer; at an upstream: by its script
    UNHEARD = "unheard"  # it ended before the answer began
    HUNG = "hung"  # nothing more came for longer than anybody waits


class Asked(msgspec.Struct, frozen=True, tag=True):
    """A caller sends a request. It may `leave` before the end, or read so slowly that it may be `cut` off."""

    id: str
    tenant: str  # `organisation/tenant`; empty where no valid key is shown
    model: str = ""
    stream: bool = False
    leaves: bool = False
    may_be_cut: bool = False


class Told(msgspec.Struct, frozen=True, tag=True):
    """What that caller was told in the end. `pieces` are events with content; `foreign` what is somebody else's."""

    id: str
    end: End
    status: int = 0
    done: int = 0  # terminal events
    errors: int = 0  # error events
    code: str | None = None  # of the error, wherever it stood
    pieces: int = 0
    prompt: int | None = None  # tokens, as the usage says
    completion: int | None = None
    foreign: tuple[str, ...] = ()


class Attempted(msgspec.Struct, frozen=True, tag=True):
    """What an upstream did for a request: how many tokens it wrote, whether or not they arrived."""

    id: str
    upstream: str
    end: End
    tokens: int = 0
    fault: str = ""


class Meddled(msgspec.Struct, frozen=True, tag=True):
    """A tenant tried to end a request by its id, and was answered so."""

    id: str
    by: str
    status: int


class Listed(msgspec.Struct, frozen=True, tag=True):
    """A tenant asked for its requests under way, and was shown these."""

    by: str
    ids: tuple[str, ...]


class Faulted(msgspec.Struct, frozen=True, tag=True):
    """Something was broken on purpose."""

    kind: str


class Logged(msgspec.Struct, frozen=True, tag=True):
    """A line of the gateway's access log."""

    line: dict[str, Any]


Happening: TypeAlias = Asked | Told | Attempted | Meddled | Listed | Faulted | Logged
Kind = TypeVar("Kind", bound=Happening)


class EventLog:
    """An append-only file of events. Enter it to write; what was written may be read at any time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab")
        self._encoder = msgspec.json.Encoder()

    def __enter__(self) -> "EventLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, event: Happening) -> None:
        """Write one event down."""
        self._file.write(self._encoder.encode(event) + b"\n")

    def read(self) -> "History":
        """Give everything so far."""
        self._file.flush()
        decode = msgspec.json.Decoder(Happening).decode
        with self.path.open("rb") as lines:
            return History([decode(line) for line in lines])


class History:
    """Events, by their kind and by the request that they belong to."""

    def __init__(self, events: Iterable[Happening]) -> None:
        self.events = list(events)
        self.asked = {event.id: event for event in self.of(Asked)}
        self.told = grouped(self.of(Told))
        self.attempted = grouped(self.of(Attempted))
        self.lines: dict[str, list[dict[str, Any]]] = {}
        for event in self.of(Logged):
            self.lines.setdefault(event.line["id"], []).append(event.line)

    def of(self, kind: type[Kind]) -> list[Kind]:
        """Give the events of one kind, in their order."""
        return [event for event in self.events if isinstance(event, kind)]

    def faults(self) -> Counter[str]:
        """Count what was broken, by its kind."""
        return Counter(event.kind for event in self.of(Faulted))


Named = TypeVar("Named", Told, Attempted)


def grouped(events: Iterable[Named]) -> dict[str, list[Named]]:
    """Give events by their request."""
    groups: dict[str, list[Named]] = {}
    for event in events:
        groups.setdefault(event.id, []).append(event)
    return groups
