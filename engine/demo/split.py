"""Decide, by a value's own name, whether training may ever see it.

A value (a name, a town, a pair of summands) belongs to one split for good: the hash of its label says which.
So no list has to be kept, and the splits are disjoint by construction, also for values that a rule makes up.
`VALIDATION` is for watching a run and choosing between runs; `HELD_OUT` is measured once and never tuned on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from enum import Enum
from random import Random


class Split(Enum):
    TRAIN = "train"
    VALIDATION = "validation"
    HELD_OUT = "held_out"


def split_of(label: str) -> Split:
    """The split of a value; `label` is `sort:value`. Text goes by its hash, lower-cased: 80 % train, 8 % and 12 %.

    A plain number goes by its remainder by eight, shifted by the sort, so that even a short range reaches every split.
    """
    sort, _, value = label.lower().partition(":")
    if value.isdecimal():
        return {0: Split.HELD_OUT, 4: Split.VALIDATION}.get((int(value) + sum(sort.encode())) % 8, Split.TRAIN)
    share = int.from_bytes(hashlib.sha256(label.lower().encode()).digest()[:4], "big") / 2**32
    if share < 0.80:
        return Split.TRAIN
    return Split.VALIDATION if share < 0.88 else Split.HELD_OUT


def draw(rng: Random, split: Split, sort: str, make: Callable[[Random], str]) -> str:
    """Make values until one belongs to the split. Raises LookupError when `make` does not reach it."""
    for _ in range(2000):
        value = make(rng)
        if split_of(f"{sort}:{value}") is split:
            return value
    raise LookupError(f"no {sort} in 2000 belongs to {split.value}")
