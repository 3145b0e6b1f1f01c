"""One sequence's token ids into text that is safe to emit.

Three positions in the text, in characters, tell the whole story:

    ........... out ........... held ........... decoded
    emitted        | withheld: may begin a stop string |   + open bytes of an unfinished character

and each token has one more: where its last byte stands. A token is out when that position is.
"""

from codecs import utf_8_decode
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from engine.text.stops import StopStrings
from engine.text.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that became safe to emit, how many further tokens are wholly out with it, and the stop string that was hit.

    `num_read` counts the tokens of this push that were looked at: all, or those up to the one that completed `stop`.
    """

    text: str
    num_tokens: int
    stop: str | None = None
    num_read: int = 0


class TextStream:
    """Detokenises one sequence incrementally: never half a character, never the beginning of a stop string.

    `push` gets newly generated ids and gives what is safe; `finish` gives what was withheld (a stop token or the length
    limit ended the sequence). After a `Piece` with `stop` nothing more may be pushed. Tokens come out in order, each
    with the `Piece` that holds its last byte; tokens that overlap what a stop string cut off never come out. The texts
    of all pieces together are what `Tokenizer.decode` gives for prompt and answer, less the prompt's. Constant work
    per token.
    """

    __slots__ = ("_decoded", "_ends", "_held", "_include_stop", "_open", "_out", "_said", "_state", "_stops", "_strip")

    def __init__(
        self,
        vocabulary: Vocabulary,
        prompt_ids: Sequence[int] = (),
        stops: StopStrings | None = None,
        *,
        include_stop: bool = False,
        skip_special: bool = True,
    ) -> None:
        self._said = vocabulary.spoken if skip_special else vocabulary.exact
        self._strip = vocabulary.strips_leading_space and vocabulary.begins_text(prompt_ids)
        self._open = vocabulary.open_character(prompt_ids)
        self._stops = stops if stops else None
        self._state = StopStrings.ROOT
        self._include_stop = include_stop
        self._held = ""
        self._out = 0
        self._decoded = 0
        self._ends: deque[int] = deque()

    def push(self, token_ids: Sequence[int], *, scan: bool = True) -> Piece:
        """Read tokens in order. With `scan` false a stop string does not end the text (`min_tokens` is not reached
        yet), though one that only begins there and is completed later still does, and is cut whole.
        """
        said = self._said
        read = 0
        for token_id in token_ids:
            read += 1
            data = said[token_id]
            if data:
                if self._open:
                    data = self._open + data
                text, used = utf_8_decode(data, "replace", False)
                self._open = data[used:]
                if text and (stop := self._take(text, scan)):
                    self._ends.append(self._decoded + bool(self._open))
                    return self._cut(stop, read)
            self._ends.append(self._decoded + bool(self._open))
        keep = 0 if self._stops is None else self._stops.withheld(self._state)
        return self._release(len(self._held) - keep, read)

    def finish(self) -> Piece:
        """Give everything that was withheld; a character that stayed unfinished becomes U+FFFD, which may end a stop
        string.
        """
        text = self._open.decode("utf-8", "replace")
        self._open = b""
        if text and (stop := self._take(text, True)):
            return self._cut(stop, 0)
        return self._release(len(self._held), 0)

    def _take(self, text: str, scan: bool) -> str | None:
        """Append decoded text to what is held; give the stop string that it completed, with the text cut behind it."""
        if self._strip:
            text = text.removeprefix(" ")
            self._strip = False
        if self._stops is not None:
            state = self._state
            for place, character in enumerate(text):
                state = self._stops.step(state, character)
                if scan and (stop := self._stops.hit(state)):
                    self._held += text[: place + 1]
                    self._decoded += len(text)
                    return stop
            self._state = state
        self._held += text
        self._decoded += len(text)
        return None

    def _cut(self, stop: str, read: int) -> Piece:
        piece = self._release(len(self._held) - (0 if self._include_stop else len(stop)), read)
        self._held = ""
        self._ends.clear()
        return Piece(piece.text, piece.num_tokens, stop, read)

    def _release(self, length: int, read: int) -> Piece:
        text = self._held[:length]
        self._held = self._held[length:]
        self._out += length
        count = 0
        ends = self._ends
        while ends and ends[0] <= self._out:
            ends.popleft()
            count += 1
        return Piece(text, count, None, read)
