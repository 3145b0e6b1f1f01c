"""Contract (to be implemented): one sequence's token ids into text that is safe to emit."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that became safe to emit, how many further tokens are wholly out with it, and the stop string that was hit."""

    text: str
    num_tokens: int
    stop: str | None = None


class TextStream:
    """Detokenises one sequence incrementally: never half a character, never the beginning of a stop string.

    `push` gets newly generated ids and gives what is safe; `finish` gives what was withheld (a stop token or the length
    limit ended the sequence). After a `Piece` with `stop` nothing more may be pushed.
    """

    def push(self, token_ids: Sequence[int]) -> Piece: ...

    def finish(self) -> Piece: ...
