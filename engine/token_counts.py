"""What sequences have said already, and what of their parameters changes the law before temperature."""

from dataclasses import dataclass, field

from engine.params import SamplingParams
from engine.sequence import Sequence


@dataclass(slots=True)
class Counts:
    """How often each token occurred in the answer, kept up with a sequence as it grows; and the prompt's tokens."""

    prompt: frozenset[int]
    answer: dict[int, int] = field(default_factory=dict)
    num_seen: int = 0


class TokenCounts:
    """Counts of the sequences that it was asked for, until they are forgotten."""

    def __init__(self) -> None:
        self._counts: dict[Sequence, Counts] = {}

    def of(self, sequence: Sequence) -> Counts:
        """Give a sequence's counts, up to its last token."""
        counts = self._counts.get(sequence)
        if counts is None:
            counts = Counts(frozenset(sequence.token_ids[: sequence.num_prompt]), num_seen=sequence.num_prompt)
            self._counts[sequence] = counts
        answer = counts.answer
        for token in sequence.token_ids[counts.num_seen :]:
            answer[token] = answer.get(token, 0) + 1
        counts.num_seen = len(sequence.token_ids)
        return counts

    def forget(self, sequence: Sequence) -> None:
        """Drop what is kept for a sequence. It is made again when needed, and comes out the same."""
        self._counts.pop(sequence, None)


def is_penalised(params: SamplingParams) -> bool:
    """Whether what was said counts."""
    return bool(params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1.0)


def is_plain(params: SamplingParams) -> bool:
    """Whether the raw logits are the law's: no penalty, no bias, no forbidden token at any time."""
    return not (params.logit_bias or params.min_tokens or is_penalised(params))


def forbidden(sequence: Sequence, vocab_size: int) -> list[int]:
    """Give the stop tokens that may not come yet; none where nothing else could."""
    params = sequence.params
    if sequence.num_generated >= params.min_tokens:
        return []
    stops = [token for token in params.stop_token_ids if 0 <= token < vocab_size]
    return stops if len(stops) < vocab_size else []
