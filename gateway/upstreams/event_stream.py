"""An upstream's event stream: forwarded as received, looked into only as far as needed.

Nearly every chunk is one or more whole events whose data are JSON objects without usage and without an error. One pass
of the JSON reader over each tells, and the chunk goes out untouched. Every other chunk is read event by event: to take
the usage out, to notice an error inside a 200, to notice the end. An event that is cut by a chunk's border waits for
its rest: no client could use the half, and after it no error event could be told.

Lines end with LF, CR or CRLF, `data` may stand on several lines and without a space, comments and a leading byte order
mark are allowed, as the WHATWG says of event streams.
"""

import re
from collections.abc import Iterator

from gateway.call import Event, Usage
from gateway.errors import UpstreamError
from gateway.upstreams.wire import Peek, malformed, peek_at

MAX_EVENT_BYTES = 1 << 20

BOM = b"\xef\xbb\xbf"
DONE = b"[DONE]"
TERMINAL = b"data: [DONE]\n\n"
_BOUNDARY = re.compile(rb"\n\n|\n\r\n?|\r\r\n?")
_BOUNDARY_BYTES = 3
_LINE_END = re.compile(rb"\r\n|\n|\r")
_HARMLESS = re.compile(rb"(?:(?:(?::|event|id|retry)[^\r\n]*)?(?:\r\n|\n|\r))+")  # comments, and fields without data


class EventStream:
    """Reads one stream.

    `done` says that the terminal event has come; what follows it is dropped. `error` is set when an event was an error
    or no event at all; it comes after what `feed` gave. Comments before the first event with data are dropped, so that
    they commit nobody to a status. With `hide_usage` the chunk that holds nothing but usage is kept from the caller,
    who did not ask for it.
    """

    def __init__(self, *, hide_usage: bool = False) -> None:
        self.done = False
        self.begun = False  # an event with data has come
        self.error: UpstreamError | None = None
        self._hide_usage = hide_usage
        self._held = bytearray()  # the beginning of an event
        self._searched = 0  # how much of it was searched for its end
        self._at_start = True  # before a byte order mark may have come
        self._plain = False  # whether a chunk that looks plain is: nothing is held, and the stream is under way
        self._last = b""  # the last event, or the chunk that ends with it

    @property
    def holding(self) -> bool:
        """Whether part of an event waits for its rest."""
        return bool(self._held)

    def feed(self, chunk: bytes) -> Event | None:
        """Take a chunk; give what can go out."""
        if self._plain and chunk.endswith(b"}\n\n") and is_plain(chunk):
            self._last = chunk
            return Event(raw=chunk)
        if self.done or self.error is not None:
            return None
        if self._plain and chunk == TERMINAL:
            self.done = True
            return Event(raw=chunk, last=True)
        self._held += chunk
        return self._read(final=False)

    def finish(self) -> Event | None:
        """The upstream ended its answer: give what was held, and the terminal event that it owes.

        A stream whose last chunk ended a choice is whole even if the terminal event is missing. Otherwise `done` stays
        false.
        """
        event = None
        if self.done or self.error is not None:
            return None
        if self._held:
            self._held += b"\n\n"  # some leave out the last blank line
            event = self._read(final=True)
        if self.done or self.error is not None or not self._last or not self._ended():
            return event
        self.done = True
        raw = event.raw if event is not None and event.raw else b""
        return Event(raw=raw + TERMINAL, usage=event.usage if event is not None else None, last=True)

    def _read(self, *, final: bool) -> Event | None:
        held = self._held
        if self._at_start:
            if not final and BOM.startswith(held):
                return None
            self._at_start = False
            if held.startswith(BOM):
                del held[: len(BOM)]
        kept: list[bytes] = []
        usage: Usage | None = None
        begin = 0
        for end in self._boundaries(final):
            event = bytes(held[begin:end])
            begin = end
            data = data_of(event)
            if data == DONE:
                self.done = True
                kept.append(event)
                break
            if data is None:
                if self.begun and _HARMLESS.fullmatch(event):
                    kept.append(event)
                continue
            peek = self._peek(data)
            if peek is None:
                break
            self.begun = True
            if peek.usage is not None:
                usage = peek.usage.to_usage()
            self._last = event
            if not (self._hide_usage and peek.usage is not None and not peek.choices):
                kept.append(event)
        self._drop(begin)
        raw = b"".join(kept)
        return Event(raw=raw, usage=usage, last=self.done) if raw or usage is not None else None

    def _boundaries(self, final: bool) -> Iterator[int]:
        """Give where events end. A CR at the very end may be half a CRLF, so what it ends is not over yet."""
        held = self._held
        for boundary in _BOUNDARY.finditer(held, self._searched):
            if boundary[0].endswith(b"\r") and boundary.end() == len(held) and not final:
                return
            yield boundary.end()

    def _peek(self, data: bytes) -> Peek | None:
        """Look into an event; gives None for a bad one, and keeps the error."""
        try:
            return peek_at(data)
        except UpstreamError as error:
            self.error = error
            return None

    def _drop(self, size: int) -> None:
        """Let go what was read, and say how the rest is to be gone on with."""
        held = self._held
        if self.done or self.error is not None:
            held.clear()
        else:
            del held[:size]
            if len(held) > MAX_EVENT_BYTES:
                self.error = malformed(f"an event is larger than {MAX_EVENT_BYTES} bytes")
                held.clear()
        self._searched = max(0, len(held) - _BOUNDARY_BYTES)
        self._plain = self.begun and not held and not self.done and self.error is None

    def _ended(self) -> bool:
        """Whether the last event ends a choice or tells the usage."""
        last = [data for event in re.split(rb"(?<=\n\n)", self._last) if (data := data_of(event)) is not None]
        peek = self._peek(last[-1]) if last else None
        return peek is not None and peek.ends


def is_plain(chunk: bytes) -> bool:
    """Whether a chunk that ends an event is nothing but whole events with an answer's JSON on one line each, and has
    neither usage nor an error in it.
    """
    if b"\r" in chunk:
        return False
    for event in chunk[:-2].split(b"\n\n"):
        if not event.startswith(b"data: {") or b"\n" in event:
            return False
        try:
            peek = peek_at(event[6:])
        except UpstreamError:
            return False
        if peek.usage is not None:
            return False
    return True


def data_of(event: bytes) -> bytes | None:
    """Give an event's data, None where it has none or only white space."""
    if event.startswith(b"data: {") and event.endswith(b"}\n\n") and event.count(b"\n") == 2 and b"\r" not in event:
        return event[6:-2]
    lines = [line[5:].removeprefix(b" ") for line in _LINE_END.split(event) if line.startswith(b"data:")]
    data = b"\n".join(lines)
    return None if not data or data.isspace() else data.strip() if data.strip() == DONE else data
