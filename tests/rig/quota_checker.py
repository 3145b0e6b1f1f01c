"""Judges from outside whether limits were held: from what was used, by whom, and when it surely happened.

A `Use` says that so many tokens were used at some moment between two times. A window [a, b] surely holds the uses that
began no earlier than a and were over no later than b; if those are more than capacity + rate x time, the limit was
broken, whatever the true moments were. So a finding is a proof, and with calls that are short beside the windows little
is missed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from policies.bucket import Kind, Limit, window


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
    """Look at every window from the begin of one use to the end of another."""
    ordered = sorted((use for use in uses if use.tokens), key=lambda use: use.until)
    since = np.array([use.since for use in ordered], np.int64)
    until = np.array([use.until for use in ordered], np.int64)
    tokens = np.array([use.tokens for use in ordered], np.int64)
    worst: Excess | None = None
    for begin in np.unique(since):
        used = np.cumsum(np.where(since >= begin, tokens, 0))
        # One tick more than was seen: where within a tick a window began cannot be known.
        flowed = ((until - begin) // limit.tick_us + 1) * limit.rate // limit.unit
        over = np.where(since >= begin, used - limit.capacity - flowed, 0)
        at = int(np.argmax(over)) if len(over) else 0
        if len(over) and over[at] > 0 and (worst is None or over[at] > worst.used - worst.allowed):
            allowed = limit.capacity + int(flowed[at])
            worst = Excess(limit, int(begin), int(until[at]), int(used[at]), allowed)
    return worst


def budget_excess(limit: Limit, kind: Kind, uses: Iterable[Use]) -> Excess | None:
    """Look at each day or month."""
    spent: dict[tuple[int, int], int] = {}
    for use in uses:
        begin, finish = window(kind, use.since)
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
