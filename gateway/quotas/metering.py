"""Counting what an HTTP upstream produces, as it passes, and stopping it at the edge of a quota.

Nobody tells how many tokens an event holds. Where usage comes along, it is believed; where log-probabilities do, there
is one entry a token; else, where the model has a tokenizer, its text is counted, and without one an event that brings
anything counts as one token, which is what servers send. All of it is an estimate until the end, when the upstream's
usage settles it (`policies.holder`).

Bytes pass untouched as long as their tokens fit. The first event whose tokens do not is held back with all behind it,
the upstream is closed, and the stream is ended in its place: `finish_reason` `length`, the limit's name, usage. What
had been produced past the edge by then is charged all the same, and reported as overshoot.
"""

import re
from collections.abc import Iterator
from math import ceil

import msgspec

from cache.reservation import Reservation
from gateway.call import Call, Event, Events, FinishReason, Model, Usage
from gateway.quotas.quota import num_choices
from gateway.upstreams.event_stream import DONE, data_of
from gateway.upstreams.splice import put_field
from gateway.upstreams.supply import STORE

SHORT_CHARS = 4096  # what the event loop may tokenise in passing
_AFTER_EVENT = re.compile(rb"(?<=\n\n)|(?<=\r\r)|(?<=\n\r\n)")


def settlement(call: Call, reservation: Reservation) -> Usage:
    """Tell what a call has used in the end.

    Nothing, where no upstream began to work on it: it was never sent, or refused before its first event. Else what the
    upstream says, and without its word what was counted: an answer that broke off is charged its input and what came.
    However many attempts it took, it is charged once; what came of one that lost a race is charged besides.
    """
    if not begun(call):
        return Usage()
    generation, holder = call.generation, reservation.holder
    usage = generation.usage or Usage(prompt=holder.input, completion=holder.output, cached=holder.cached)
    if generation.lost:
        return Usage(usage.prompt, usage.completion + generation.lost, usage.cached)
    return usage


def begun(call: Call) -> bool:
    """Whether some upstream may have begun to work on a call that has ended."""
    return any(not attempt.refused for attempt in call.attempts)


class Function(msgspec.Struct):
    """A tool call's function, or a piece of it."""

    name: str | None = None
    arguments: str | None = None


class ToolPiece(msgspec.Struct):
    """A piece of a tool call."""

    function: Function | None = None


class Delta(msgspec.Struct):
    """What a choice gains, or has: text of any kind."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolPiece] | None = None


class Logprobs(msgspec.Struct):
    """One entry a token, in a chat's words and a completion's."""

    content: list[msgspec.Raw] | None = None
    tokens: list[msgspec.Raw] | None = None


class Piece(msgspec.Struct):
    """One choice of an event, or of a whole answer."""

    index: int = 0
    delta: Delta | None = None
    message: Delta | None = None
    text: str | None = None
    logprobs: Logprobs | None = None
    finish_reason: str | None = None


class Pieces(msgspec.Struct):
    """The choices of an event, or of a whole answer."""

    choices: list[Piece] = []


_decode = msgspec.json.Decoder(Pieces).decode


class Tally:
    """Counts events' tokens. `finished` are the choices that have ended, `finishes` the reasons that were given."""

    def __init__(self, model: Model, *, streamed: bool) -> None:
        self._encoder = model.encoder
        self._bytes_per_token = model.bytes_per_token
        self._streamed = streamed
        self.finished: list[int] = []
        self.finishes: set[str] = set()

    def count(self, data: bytes) -> int:
        """Tell the tokens of an event's data, or of a whole answer; what cannot be read counts as one."""
        if data == DONE:
            return 0
        try:
            pieces = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return 1
        tokens = 0
        for piece in pieces.choices:
            if piece.finish_reason is not None:
                self.finished.append(piece.index)
                self.finishes.add(piece.finish_reason)
            tokens += self._tokens(piece)
        return tokens

    def _tokens(self, piece: Piece) -> int:
        told = piece.logprobs
        if told is not None and (entries := told.content or told.tokens):
            return len(entries)
        texts = [text for text in _texts(piece) if text]
        if not texts:
            return 0
        if self._encoder is not None and sum(map(len, texts)) <= SHORT_CHARS:
            return sum(max(1, len(self._encoder.tokenize(text, special=False))) for text in texts)
        if self._streamed:
            return len(texts)
        return sum(ceil(len(text.encode()) / self._bytes_per_token) for text in texts)


def _texts(piece: Piece) -> Iterator[str | None]:
    yield piece.text
    said = piece.delta or piece.message
    if said is not None:
        yield from (said.content, said.reasoning_content, said.reasoning, said.refusal)
        for call in said.tool_calls or ():
            if call.function is not None:
                yield (call.function.name or "") + (call.function.arguments or "")


async def take(reservation: Reservation, tokens: int) -> int:
    """Count tokens, asking for more where they do not fit; tell how many found no room, which are counted too."""
    # An upstream was told how much it may bring: where an estimate says that it has brought more, that is wrong.
    tokens = min(tokens, max(0, reservation.max_output - reservation.holder.output))
    while tokens > (room := reservation.room()):
        reservation.count(room)
        tokens -= room
        if not await reservation.more(tokens):
            reservation.count(tokens)
            return tokens
    reservation.count(tokens)
    return 0


async def take_whole(call: Call, reservation: Reservation, event: Event, body: bytes) -> None:
    """Count an answer that came whole, and name the limit in it, if one kept it from going on."""
    tally = Tally(call.model, streamed=False)
    generation, tight = call.generation, reservation.tight
    seen = call.model.encoder is not None and len(body) <= SHORT_CHARS  # as exactly as a text tells
    counted = tally.count(body) if seen or tight is not None or generation.usage is None else 0
    if generation.usage is None:
        generation.usage = Usage(prompt=reservation.holder.input, completion=counted)
    elif seen:
        generation.counted = counted
    completion = generation.usage.completion
    granted = reservation.granted  # what the upstream was told; counting asks for more
    await take(reservation, completion)
    if tight is not None and FinishReason.LENGTH in tally.finishes and completion >= granted:
        generation.limit = tight.key
        event.raw = put_field(body, "penstock", {"limit": tight.key})


class Metered:
    """The events of an HTTP upstream's stream, counted against a reservation, and ended where that ends."""

    __slots__ = ("_call", "_cut", "_events", "_reservation", "_tally")

    def __init__(self, events: Events, call: Call, reservation: Reservation) -> None:
        self._events = events
        self._call = call
        self._reservation = reservation
        self._tally = Tally(call.model, streamed=True)
        self._cut: Iterator[Event] | None = None

    def __aiter__(self) -> "Metered":
        return self

    async def __anext__(self) -> Event:
        if self._cut is not None:
            event = next(self._cut, None)
            if event is None:
                raise StopAsyncIteration
            return event
        event = await self._events.__anext__()
        ended = len(self._tally.finished)
        counts = self._count(event)
        tokens = sum(counts)
        if event.usage is not None:
            said = event.usage.completion - self._reservation.holder.output
            if not tokens or said < 0:  # the word of the end: nothing is left that could be held back
                await take(self._reservation, max(0, said))
                return event
            tokens = said
        missing = await take(self._reservation, tokens)
        if not missing:
            return event
        del self._tally.finished[ended:]
        return await self._end(event.raw or b"", counts, sum(counts) - missing)

    async def aclose(self) -> None:
        """Close the upstream's answer."""
        await self._events.aclose()

    def _count(self, event: Event) -> list[int]:
        """Tell the tokens of each piece that came together."""
        raw = event.raw
        if raw is not None:
            return [self._tally.count(data) if (data := data_of(piece)) else 0 for piece in events_in(raw)]
        if event.finish is not None:
            self._tally.finished.append(event.index)
        return [len(event.token_ids) or bool(event.text)]

    async def _end(self, raw: bytes, counts: list[int], fit: int) -> Event:
        """End the stream in the upstream's place."""
        await self._events.aclose()
        edge = self._reservation.edge
        key = STORE if edge is None else edge.key
        generation, holder = self._call.generation, self._reservation.holder
        generation.limit = key
        cached = 0 if generation.usage is None else generation.usage.cached
        generation.usage = Usage(prompt=holder.input, completion=holder.output, cached=cached)
        self._cut = self._ends(key)
        kept = bytearray()
        for event, count in zip(events_in(raw), counts, strict=False):
            fit -= count
            if fit < 0:
                break
            kept += event
        self._count(Event(raw=bytes(kept)))  # for the choices that it ends
        return Event(raw=bytes(kept)) if kept else next(self._cut)

    def _ends(self, key: str) -> Iterator[Event]:
        """Give the last event of each choice that has not ended; the very last tells the usage."""
        left = [index for index in range(num_choices(self._call)) if index not in self._tally.finished]
        left = left or [0]  # of an upstream that goes on behind its own end
        for index in left:
            usage = self._call.generation.usage if index == left[-1] else None
            yield Event(index=index, finish=FinishReason.LENGTH, limit=key, usage=usage)


def events_in(raw: bytes) -> list[bytes]:
    """Take apart what came together: whole events, each with its end."""
    if raw.endswith(b"\n\n") and raw.count(b"\n\n") == 1:
        return [raw]
    return [event for event in _AFTER_EVENT.split(raw) if event]
