"""What one step runs, and what comes back: the contract between the brain and the hands.

`Row` and `Sampled` are never changed after they were made, but not frozen: a frozen dataclass costs several times as
much to make, and there are as many of them a step as there are sequences.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Protocol

from engine.sequence import Sequence


@dataclass(slots=True)
class Row:
    """A contiguous range of one sequence's tokens to compute: positions `start` to `start + count - 1`.

    `samples` is true when the range reaches the sequence's last token, so that its last logits give the next one.
    """

    sequence: Sequence
    start: int
    count: int
    samples: bool


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of one step: decodes (count 1, sampling) first, prefill chunks behind them."""

    rows: tuple[Row, ...]
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Log-probabilities at one position, of the law the token was drawn from before temperature and filters.

    `top` holds the asked number of likeliest (token id, log-probability), likeliest first.
    """

    chosen: float
    top: tuple[tuple[int, float], ...]


@dataclass(slots=True)
class Sampled:
    """What a sampling row brought: one token, or several when drafts were accepted; logprobs run parallel if asked.

    Of several, the keys and values of all but the last are in the blocks already. `error` is set, and `token_ids`
    empty, when this row alone failed (its logits were not finite): the scheduler ends the sequence with ERROR, nothing
    of it stays in the prefix index, and the rest of the batch goes on.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[Logprobs, ...] | None = None
    error: str | None = None


class Runner(Protocol):
    """The hands: computes a batch and holds the KV blocks. The brain sees no more of a device than this."""

    num_blocks: int
    block_size: int
    max_model_len: int
    vocab_size: int

    def run(self, batch: Batch) -> Seq[Sampled]:
        """Compute every row and sample; one `Sampled` for each row with `samples`, in the batch's order.

        Reads the sequences (`token_ids`, `block_table`, `params`, `num_prompt`, `index`), mutates only the KV blocks of
        the rows, so that rows can be run again after it raised. Raises `MemoryError` where the device has none left.
        """
        ...

    def forget(self, sequence: Sequence) -> None:
        """Drop what the runner keeps for a sequence that finished or was preempted. Idempotent."""
        ...
