"""How many attempts more than one a request may cause, for all requests together: one budget for retries, hedges and
fallbacks.

A bound per request does not bound the whole: with three attempts each, an upstream that fails under its load gets three
times that load, and each layer that retries multiplies again. A budget ties the extra attempts to what succeeds. After
Finagle's `RetryBudget` and tower's `TpsBudget`: each success deposits `ratio` of an attempt, each extra attempt
withdraws one, and both are forgotten after `ttl_s`, so that nothing is saved up for a bad day.

Two things are otherwise than there. Deposits are made by successes and not by requests, so that in a full outage
nothing is left but the floor. And the floor, which lets those retry who send little or have just begun, flows in with
time (`floor_per_s`, at most one second's worth at once, but never less than one attempt) instead of standing ready as
`floor × ttl` attempts at the worst moment.

So between any two moments a and b at most this many extra attempts are let through, and a property test holds it:

    ratio × successes in [a − ttl, b]  +  floor × (b − a)  +  max(1, floor × 1 s)
"""

from dataclasses import dataclass

from msgspec import Struct

from policies.window import Window

MILLIS = 1000  # a deposit is a whole number of thousandths of an attempt, so that nothing is rounded twice


@dataclass(frozen=True, slots=True)
class BudgetTerms:
    """`ratio`: extra attempts a success pays for, in thousandths; `floor_per_s` are allowed whatever succeeds."""

    ratio: float = 0.2
    floor_per_s: float = 3.0
    ttl_s: float = 10.0

    def __post_init__(self) -> None:
        if not (0 <= self.ratio <= 1000 and self.floor_per_s >= 0 and 1 <= self.ttl_s <= 60):
            raise ValueError(f"{self}; expected a ratio of 0 to 1000, a floor of 0 or more, a ttl of 1 to 60 s")


class BudgetSnapshot(Struct, frozen=True):
    """`balance`: extra attempts that deposits pay for now, may be negative; the others count since the start."""

    balance: float
    withdrawn: int
    refused: int


class RetryBudget:
    """Lets extra attempts through or not. One for each model, or one for the whole gateway."""

    __slots__ = ("_burst", "_deposit", "_floor", "_floor_at", "_refused", "_window", "_withdrawn", "terms")

    def __init__(self, terms: BudgetTerms | None = None) -> None:
        self.terms = terms = terms or BudgetTerms()
        self._deposit = round(terms.ratio * MILLIS)
        self._window = Window(terms.ttl_s)  # deposits less withdrawals, in thousandths
        self._burst = max(1.0, terms.floor_per_s)
        self._floor = self._burst if terms.floor_per_s else 0.0
        self._floor_at = 0.0
        self._withdrawn = 0
        self._refused = 0

    def deposit(self, now: float) -> None:
        """A call succeeded."""
        self._window.add(now, 0, self._deposit)

    def withdraw(self, now: float) -> bool:
        """Pay for one extra attempt; false if there is nothing to pay it from, and then it must not be sent."""
        if self._take_floor(now):
            self._withdrawn += 1
            return True
        self._window.advance(now)
        if self._window.totals[0] >= MILLIS:
            self._window.add(now, 0, -MILLIS)
            self._withdrawn += 1
            return True
        self._refused += 1
        return False

    def snapshot(self, now: float) -> BudgetSnapshot:
        """What stands, for metrics."""
        self._window.advance(now)
        return BudgetSnapshot(self._window.totals[0] / MILLIS, self._withdrawn, self._refused)

    def _take_floor(self, now: float) -> bool:
        """Take from the floor, which would be lost otherwise, before the deposits."""
        rate = self.terms.floor_per_s
        if not rate:
            return False
        if now > self._floor_at:
            self._floor = min(self._burst, self._floor + (now - self._floor_at) * rate)
            self._floor_at = now
        if self._floor < 1.0:
            return False
        self._floor -= 1.0
        return True
