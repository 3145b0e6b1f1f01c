"""Judges from outside whether limits were held: from what was used, by whom, and when it surely happened.

A `Use` says that so many tokens were used at some moment between two times. A window [a, b] surely holds the uses that
began no earlier than a and were over no later than b; if those are more than capacity + rate x time, the limit was
broken, whatever the true moments were. So a finding is a proof, and with calls that are short beside the windows little
is missed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from policies.bucket import Kind, Limit
from policies.bucket import window as window_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK = 256
LEAST = -(1 << 60)


@dataclass(frozen=True, slots=True)
class Use:
    """So many tokens, used in [since, until], µs since 1970."""

    since: int
    until: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Excess:
    """A window in which more was used than the limit allows."""

    limit: Limit
    since: int
    until: int
    used: int
    allowed: int

    def __str__(self) -> str:
        seconds = (self.until - self.since) / 1e6
        return f"{self.limit.key}: {self.used} used within {seconds:.3f} s, allowed {self.allowed}"


def worst_excess(limit: Limit, uses: Sequence[Use]) -> Excess | None:
    """Give the window in which a limit was exceeded most, None if it never was."""
    match limit.kind:
        case Kind.BUCKET:
            return bucket_excess(limit, uses)
        case Kind.GAUGE:
            return gauge_excess(limit, uses)
        case kind:
            return budget_excess(limit, kind, uses)


def bucket_excess(limit: Limit, uses: Sequence[Use]) -> Excess | None:
    """Look at every window from the begin of one use to the end of another.

    Over windows [a, b], used x unit - rate x (b - a) in ticks is greatest where most is over. The beginnings are taken
    from the last to the first: each adds its tokens to all ends from its own on, so ends are kept in blocks.
    """
    used = [use for use in uses if use.tokens]
    if not used:
        return None
    zero = min(use.since for use in used)
    untils = np.unique(np.array([use.until - zero for use in used], np.int64))
    ends = Ends(-untils * limit.rate)
    worst, window = 0, (0, 0)
    by_since = sorted(used, key=lambda use: use.since, reverse=True)
    for since, group in groupby(by_since, lambda use: use.since - zero):
        for use in group:
            ends.add(int(np.searchsorted(untils, use.until - zero)), use.tokens * limit.unit * limit.tick_us)
        place, value = ends.greatest(int(np.searchsorted(untils, since)))
        # One tick more than was seen: where within a tick a window began cannot be known.
        over = value + since * limit.rate - (limit.capacity * limit.unit + limit.rate) * limit.tick_us
        if over > worst:
            worst, window = over, (since + zero, int(untils[place]) + zero)
    if not worst:
        return None
    within = sum(use.tokens for use in used if use.since >= window[0] and use.until <= window[1])
    flowed = ((window[1] - window[0]) // limit.tick_us + 1) * limit.rate // limit.unit
    return Excess(limit, *window, within, limit.capacity + flowed)


class Ends:
    """Numbers in a row, to whose tails is added, and of whose tails the greatest is asked."""

    def __init__(self, values: "NDArray[np.int64]") -> None:
        self._values = np.full(-(-len(values) // BLOCK) * BLOCK, LEAST, np.int64)
        self._values[: len(values)] = values
        self._blocks = self._values.reshape(-1, BLOCK)
        self._added = np.zeros(len(self._blocks), np.int64)
        self._greatest = self._blocks.max(axis=1)

    def add(self, place: int, amount: int) -> None:
        """Add to every number from a place on."""
        block = place // BLOCK
        self._blocks[block, place % BLOCK :] += amount
        self._greatest[block] = self._blocks[block].max()
        self._added[block + 1 :] += amount

    def greatest(self, place: int) -> tuple[int, int]:
        """Give the place and the value of the greatest number from a place on."""
        block = place // BLOCK
        tops = self._greatest[block:] + self._added[block:]
        tops[0] = self._blocks[block, place % BLOCK :].max() + self._added[block]
        best = block + int(np.argmax(tops))
        first = place % BLOCK if best == block else 0
        within = first + int(np.argmax(self._blocks[best, first:]))
        return best * BLOCK + within, int(self._blocks[best, within] + self._added[best])


def budget_excess(limit: Limit, kind: Kind, uses: Iterable[Use]) -> Excess | None:
    """Look at each day or month."""
    spent: dict[tuple[int, int], int] = {}
    for use in uses:
        begin, finish = window_of(kind, use.since)
        if use.until < finish:
            spent[begin, finish] = spent.get((begin, finish), 0) + use.tokens
    over = [
        Excess(limit, begin, finish, used, limit.capacity)
        for (begin, finish), used in spent.items()
        if used > limit.capacity
    ]
    return max(over, key=lambda excess: excess.used, default=None)


def gauge_excess(limit: Limit, uses: Iterable[Use]) -> Excess | None:
    """Look at every moment; of a gauge, a use says that it surely lasted from `since` until `until`."""
    changes = sorted(
        change for use in uses for change in ((use.since, use.tokens), (use.until, -use.tokens)) if use.tokens
    )
    running, worst = 0, None
    for at, change in changes:
        running += change
        if running > limit.capacity and (worst is None or running > worst.used):
            worst = Excess(limit, at, at, running, limit.capacity)
    return worst
