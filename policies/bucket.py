"""What a limit allows, exactly: the arithmetic that every store repeats and the oracle they are all held against.

A bucket of `capacity` tokens refills by `amount` tokens a `period`. What is kept is not how much it holds but how much
of it is gone, in two parts: `spent`, which flows back with time, and `held`, promised to calls that still run, which
does not. A call may take what is neither spent nor held. When it reports what it used, that much moves from held to
spent, and the rest of its hold is dropped. So nothing is ever given back to `spent`, and that is what makes the window
honest: a refund after the refill has already forgiven the charge would be a second credit for the same tokens. With
holds, tokens produced between any two moments are either spent in between or still held at the end, and
spent + held <= capacity, hence at most capacity + rate x time, whatever is reserved, settled or lost.

Everything is an integer. A token is `unit` units, and `rate` units flow back each tick, where rate/unit is the refill
of one tick in lowest terms; no rounding happens, so nothing drifts however often a bucket is looked at. Numbers stay
below 2^53, because Lua counts in doubles; a tick is a microsecond, and coarser only where the numbers would not fit.
A limit that was never touched and one that has flowed back entirely are the same thing, and stores forget the latter.

Budgets (a day, a month) are spent the same way but flow back all at once when the calendar turns; a gauge (calls at the
same time) is held and never spent.
"""

from dataclasses import dataclass
from enum import IntEnum
from math import gcd

from policies.period import day, month

EXACT = 1 << 52  # half of what a double counts exactly: the other half is for debts
TICKS_US = (1, 1_000, 1_000_000)
NEVER = -1
LOOK_AGAIN_US = 1_000_000  # nobody can know when a running call ends


class Kind(IntEnum):
    """How what was spent comes back."""

    BUCKET = 0
    DAY = 1
    MONTH = 2
    GAUGE = 3


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit of one scope. `key` names it among its organisation's; `shadow` counts and reports without refusing."""

    key: str
    kind: Kind
    capacity: int
    unit: int = 1
    rate: int = 0
    tick_us: int = 1
    shadow: bool = False

    @classmethod
    def bucket(
        cls, key: str, amount: int, period_us: int, *, capacity: int | None = None, shadow: bool = False
    ) -> "Limit":
        """Refill `amount` a period, up to `capacity` (by default one period's amount). Raises `ValueError`."""
        capacity = amount if capacity is None else capacity
        if amount < 1 or period_us < 1 or capacity < 0:
            raise ValueError(
                f"a bucket of {capacity} that refills {amount} in {period_us} µs; expected positive numbers"
            )
        for tick_us in TICKS_US:
            if period_us % tick_us:
                break
            ticks = period_us // tick_us
            divisor = gcd(amount, ticks)
            if max(capacity, 1) * (ticks // divisor) <= EXACT and amount // divisor <= EXACT:
                return cls(key, Kind.BUCKET, capacity, ticks // divisor, amount // divisor, tick_us, shadow)
        raise ValueError(
            f"a bucket of {capacity} that refills {amount} in {period_us} µs cannot be counted exactly; "
            "choose a rounder amount or a smaller capacity"
        )

    @classmethod
    def budget(cls, key: str, kind: Kind, capacity: int, *, shadow: bool = False) -> "Limit":
        """Allow `capacity` a UTC day or calendar month. Raises `ValueError`."""
        if kind not in (Kind.DAY, Kind.MONTH) or not 0 <= capacity <= EXACT:
            raise ValueError(f"a budget of {capacity} a {kind.name.lower()}; expected 0 to 2^52 a day or month")
        return cls(key, kind, capacity, shadow=shadow)

    @classmethod
    def gauge(cls, key: str, capacity: int, *, shadow: bool = False) -> "Limit":
        """Allow `capacity` at the same time. Raises `ValueError`."""
        if not 0 <= capacity <= EXACT:
            raise ValueError(f"a gauge of {capacity}; expected 0 to 2^52")
        return cls(key, Kind.GAUGE, capacity, shadow=shadow)

    def share(self, parts: int) -> "Limit":
        """Give one of so many equal parts, rounded down: together they never allow more than the whole."""
        return Limit(
            self.key, self.kind, self.capacity // parts, self.unit * parts, self.rate, self.tick_us, self.shadow
        )


class Level:
    """How much of a limit is gone: `spent` in the units of `terms` as of `at` (µs), `held` in tokens."""

    __slots__ = ("at", "held", "spent", "terms")

    def __init__(self, terms: Limit, now: int) -> None:
        self.terms = terms
        self.spent = 0
        self.held = 0
        self.at = now
        if terms.kind is Kind.DAY or terms.kind is Kind.MONTH:
            self.at = window(terms.kind, now)[0]

    def advance(self, now: int) -> None:
        """Let flow back what has come back by `now`. A clock that was set back gives nothing and takes nothing."""
        terms = self.terms
        if terms.kind is Kind.BUCKET:
            ticks = (now - self.at) // terms.tick_us
            if ticks > 0:
                self.at += ticks * terms.tick_us
                self.spent = max(0, self.spent - ticks * terms.rate)
            if self.spent == 0 or now < self.at:
                self.at = now  # an idle bucket earns nothing: no part of a tick is saved up
        elif terms.kind is not Kind.GAUGE:
            start, _ = window(terms.kind, now)
            if start > self.at:
                self.at = start
                self.spent = 0

    def agree(self, terms: Limit, now: int) -> None:
        """Go on under new terms: what was earned under the old ones stays, part of a token counts as a whole one."""
        old = self.terms
        if (old.kind, old.unit, old.rate, old.tick_us) != (terms.kind, terms.unit, terms.rate, terms.tick_us):
            self.spent = -(-self.spent // old.unit) * terms.unit
            if old.kind is not terms.kind:
                self.at = Level(terms, now).at
        self.terms = terms

    def free(self) -> int:
        """Tokens that are neither spent nor held; below zero after an overshoot or when the limit was lowered."""
        terms = self.terms
        return (terms.capacity * terms.unit - self.spent) // terms.unit - self.held

    def wait_us(self, need: int, now: int) -> int:
        """How long until `need` tokens are free if nobody else comes; holds are taken to be used up.

        NEVER where the limit is smaller than the need. Call only when `need` is not free.
        """
        terms = self.terms
        if need > terms.capacity:
            return NEVER
        if terms.kind is Kind.GAUGE:
            return LOOK_AGAIN_US
        if terms.kind is not Kind.BUCKET:
            return window(terms.kind, now)[1] - now
        missing = self.spent + (self.held + need - terms.capacity) * terms.unit
        return self.at + -(-missing // terms.rate) * terms.tick_us - now

    def reset_us(self, now: int) -> int:
        """How long until nothing of it is spent any more."""
        terms = self.terms
        if terms.kind is Kind.GAUGE:
            return 0
        if terms.kind is not Kind.BUCKET:
            return window(terms.kind, now)[1] - now
        return self.at + -(-self.spent // terms.rate) * terms.tick_us - now if self.spent else 0


def window(kind: Kind, now: int) -> tuple[int, int]:
    """Give the stretch of time that a budget is for, as [start, end)."""
    return day(now) if kind is Kind.DAY else month(now)
