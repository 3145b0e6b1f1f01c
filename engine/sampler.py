"""Logits to tokens, one row a sequence.

The law of a row is made in this order: the three penalties, then logit_bias, then the stop tokens that min_tokens
still forbids; temperature; min_p against the likeliest; top_k; top_p over what top_k left, renormalised. One draw,
the uniform number that belongs to (seed, choice, position), is then looked up in the cumulative law *in the order of
token ids*, not of probability: so a rounding difference in the logits moves the borders by as much and no more, and
batch-mates, which change the rounding, do not change the token.

Log-probabilities are those of the raw logits, before all of this.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.batch import Logprobs, Sampled
from engine.params import SamplingParams
from engine.philox import uniforms
from engine.sequence import Sequence
from engine.token_counts import TokenCounts, forbidden, is_penalised, is_plain

DRAWS_AHEAD = 64
"""How many positions' draws are made at once: Philox over an array costs the same as over one number."""

CANDIDATES = 256
"""How many of the likeliest tokens are sorted out for top_p before the whole vocabulary is."""


@dataclass(slots=True)
class _Draws:
    start: int
    values: NDArray[np.float64]


class Sampler:
    """Draws the next token of each row. Keeps counts and draws of the sequences it serves until `forget`."""

    def __init__(self) -> None:
        self._counts = TokenCounts()
        self._draws: dict[Sequence, _Draws] = {}

    def forget(self, sequence: Sequence) -> None:
        """Drop what is kept for a sequence. It is made again when needed, and comes out the same."""
        self._counts.forget(sequence)
        self._draws.pop(sequence, None)

    def sample(self, logits: Tensor, sequences: Seq[Sequence]) -> list[Sampled]:
        """`logits: [rows, vocab]` float32 on the CPU, overwritten. The token drawn for a row follows its last one.

        A row whose logits are not all finite comes back with `error` and no token.
        """
        failed = {}
        if not bool(logits.sum().isfinite()):  # every NaN and infinity shows in the sum
            finite = logits.isfinite().all(-1)
            failed = dict.fromkeys((~finite).nonzero()[:, 0].tolist(), "the model gave logits that are not finite")
            logits[~finite] = 0.0
        logprobs = self._logprobs_of_raw(logits, sequences)
        params = [sequence.params for sequence in sequences]
        for row, sequence in enumerate(sequences):
            if not is_plain(params[row]) and row not in failed:
                self._edit(logits[row].numpy(), sequence)
        tokens = logits.numpy().argmax(-1).tolist()  # the lowest id among equals; numpy's is several times faster
        drawn = [row for row, param in enumerate(params) if param.temperature > 0 and row not in failed]
        if drawn:
            for row, token in zip(drawn, self._draw(logits, sequences, drawn), strict=True):
                tokens[row] = token
        return [
            Sampled((), error=failed[row])
            if row in failed
            else Sampled((token,), None if row not in logprobs else (_logprobs(*logprobs[row], token),))
            for row, token in enumerate(tokens)
        ]

    def _logprobs_of_raw(self, logits: Tensor, sequences: Seq[Sequence]) -> dict[int, tuple[Tensor, int]]:
        asked = [(row, s.params.logprobs) for row, s in enumerate(sequences) if s.params.logprobs is not None]
        if not asked:
            return {}
        laws = torch.log_softmax(logits[[row for row, _ in asked]], -1)
        return {row: (law, number) for (row, number), law in zip(asked, laws, strict=True)}

    def _edit(self, logits: NDArray[np.float32], sequence: Sequence) -> None:
        """Apply penalties, bias and min_tokens to one row, in place."""
        params = sequence.params
        if is_penalised(params):
            counts = self._counts.of(sequence)
            answer = np.fromiter(counts.answer, dtype=np.int64, count=len(counts.answer))
            if params.repetition_penalty != 1.0:
                seen = np.fromiter(counts.prompt.union(counts.answer), dtype=np.int64)
                raw = logits[seen]
                logits[seen] = np.where(raw > 0, raw / params.repetition_penalty, raw * params.repetition_penalty)
            if len(answer):
                number = np.fromiter(counts.answer.values(), dtype=np.float32, count=len(counts.answer))
                logits[answer] -= np.float32(params.frequency_penalty) * number + np.float32(params.presence_penalty)
        if params.logit_bias:
            ids = np.fromiter(params.logit_bias, dtype=np.int64)
            logits[ids] += np.fromiter(params.logit_bias.values(), dtype=np.float32)
        logits[forbidden(sequence, len(logits))] = -np.inf

    def _uniform(self, sequence: Sequence) -> float:
        """The draw for the position behind the sequence's last token."""
        position = len(sequence.token_ids)
        draws = self._draws.get(sequence)
        if draws is None or not 0 <= position - draws.start < DRAWS_AHEAD:
            values = uniforms(sequence.params.seed, sequence.index, position, DRAWS_AHEAD)
            draws = self._draws[sequence] = _Draws(position, values)
        return float(draws.values[position - draws.start])

    def _draw(self, logits: Tensor, sequences: Seq[Sequence], rows: list[int]) -> list[int]:
        """Draw from the laws of `rows`. Rows are treated alike whoever stands beside them."""
        temperatures = torch.tensor([[sequences[row].params.temperature] for row in rows])
        laws = torch.softmax(logits[rows] / temperatures.clamp(min=1e-5), -1)
        tokens = []
        for law, row in zip(laws, rows, strict=True):
            params, draw = sequences[row].params, self._uniform(sequences[row])
            tokens.append(_look_up(*_filtered(law, params), draw))
        return tokens


def _filtered(law: Tensor, params: SamplingParams) -> tuple[NDArray[np.int64] | None, NDArray[np.float64]]:
    """Apply min_p, top_k and top_p: the ids that are left, ascending (None: all of them), and their masses."""
    if params.top_k == 0 and params.top_p >= 1.0:
        masses = law.numpy().astype(np.float64)
        if params.min_p > 0:
            masses[masses < masses.max() * params.min_p] = 0.0
        return None, masses
    size = len(law)
    wanted = min(params.top_k or CANDIDATES, size)
    while True:
        top = torch.topk(law, wanted)
        masses = top.values.double().numpy()
        if params.min_p > 0:
            masses = masses[: int((masses >= masses[0] * params.min_p).sum())]
        if params.top_p >= 1.0:
            break
        # What top_k and min_p left is the whole that top_p is a share of; without them it is the whole vocabulary.
        cut_short = params.top_k == 0 and len(masses) == wanted < size
        whole = masses.sum() if not cut_short else 1.0
        if params.top_k == 0 and params.min_p == 0:
            whole = float(law.sum(dtype=torch.float64))
        cumulative = np.cumsum(masses)
        kept = int(np.searchsorted(cumulative, params.top_p * whole)) + 1
        if kept <= len(masses) or not cut_short:
            masses = masses[: min(kept, len(masses))]
            break
        wanted = size
    ids = top.indices[: len(masses)].numpy()
    order = np.argsort(ids)
    return ids[order], masses[order]


def _look_up(ids: NDArray[np.int64] | None, masses: NDArray[np.float64], draw: float) -> int:
    cumulative = np.cumsum(masses)
    place = int(np.searchsorted(cumulative, draw * cumulative[-1], side="right"))
    if place == len(cumulative):  # draw * total rounded up to the total
        place = int(np.flatnonzero(masses)[-1])
    return place if ids is None else int(ids[place])


def _logprobs(law: Tensor, number: int, token: int) -> Logprobs:
    top = torch.topk(law, min(number, len(law)))
    return Logprobs(float(law[token]), tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True)))
