"""Turn numbered documents into ragged batches: about so many tokens a step, short and long conversations together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from engine.demo import corpus
from engine.demo.vocabulary import Marker

NOT_LEARNED = -100
"""The target of a place that only fills up; what `cross_entropy` ignores."""
_ROUND = 256
"""Lines are filled up to a multiple of this: a CPU's matrix library prepares every new shape at a cost."""
_GROUPS = 6
"""Groups a batch is cut into: more means less padding and smaller calls of attention."""


@dataclass(frozen=True, slots=True)
class Batch:
    """`ids, positions: [num_tokens]` as `groups` lay them out; after the places `rows` come the `targets` to learn."""

    ids: Tensor
    positions: Tensor
    groups: tuple[tuple[int, int], ...]
    rows: Tensor
    targets: Tensor
    num_tokens: int
    """Tokens of text, padding not counted."""

    def to(self, device: torch.device) -> Batch:
        moved = (tensor.to(device) for tensor in (self.ids, self.positions, self.rows, self.targets))
        ids, positions, rows, targets = moved
        return Batch(ids, positions, self.groups, rows, targets, self.num_tokens)


class Documents:
    """An endless, seeded row of documents, read in order. `place`, where it stands, may be set to go on there."""

    def __init__(self, tokenizer: Tokenizer, seed: int, max_length: int) -> None:
        self.tokenizer, self.seed, self.max_length = tokenizer, seed, max_length
        self.marker = Marker(tokenizer)
        self.place = 0

    def take(self, num_tokens: int) -> list[list[int]]:
        """The next documents, until they hold `num_tokens`. A document longer than `max_length` is cut."""
        taken: list[list[int]] = []
        held = 0
        while held < num_tokens:
            ids = self.tokenizer.encode(corpus.document(self.seed, self.place)).ids[: self.max_length]
            self.place += 1
            taken.append(ids)
            held += len(ids)
        return taken


def lay_out(documents: list[list[int]], marker: Marker, *, last_turn_only: bool = False) -> Batch:
    """Sort by length, cut into groups, pad each group to its longest row with token 0 (which is never learned from)."""
    documents = sorted(documents, key=len)
    size = -(-len(documents) // _GROUPS)
    ids: list[int] = []
    positions: list[int] = []
    rows: list[int] = []
    targets: list[int] = []
    groups: list[tuple[int, int]] = []
    for start in range(0, len(documents), size):
        group = documents[start : start + size]
        length = len(group[-1])
        groups.append((len(group), length))
        for document in group:
            marks = marker.last_turn(document) if last_turn_only else marker.learned(document)
            offset = len(ids)
            rows.extend(offset + place - 1 for place in range(1, len(document)) if marks[place])
            targets.extend(document[place] for place in range(1, len(document)) if marks[place])
            ids.extend(document + [0] * (length - len(document)))
            positions.extend(range(length))
    if (spare := -len(ids) % _ROUND) > 0:
        groups.append((1, spare))
        ids.extend([0] * spare)
        positions.extend(range(spare))
    spare = -len(rows) % _ROUND
    rows.extend([0] * spare)
    targets.extend([NOT_LEARNED] * spare)
    as_ids = (torch.tensor(values, dtype=torch.long) for values in (ids, positions, rows, targets))
    all_ids, all_positions, all_rows, all_targets = as_ids
    return Batch(all_ids, all_positions, tuple(groups), all_rows, all_targets, sum(map(len, documents)))
