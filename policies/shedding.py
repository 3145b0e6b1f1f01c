"""Whether a call that finds no room shall wait at all, or be told at once when to come back.

To let a call wait that cannot be served in time is the dearest way to refuse it: it fills the room, its caller learns
late, and what is served then has run out of time. So the wait is predicted when a call arrives, and the call is shed
there and then if it would exceed what the call may wait.

By Little's law, with `slots` taken and each held for `hold_s` on average, one becomes free every hold_s / slots, so
that whoever has `ahead` others before it waits (ahead + 1) × hold_s / slots. That holds from the first moment of an
overload, where a rate of departures would still show how little was asked before. Where nothing has become free for
longer than a hold, every slot has been held for that long at least, and this is the better estimate: so an upstream
that hangs is known before the first of its clocks runs out. (A silence shorter than a hold says nothing: slots that
were taken together become free together.) While nothing is known nobody is shed. An engine's own prediction is better
where there is one and can be given instead.

`Retry-After` is how long the whole room would take to empty, plus up to `spread` of that by chance: whoever comes back
then is served at once if nobody else came, and not all come back at the same moment.
"""

from dataclasses import dataclass
from random import Random

from msgspec import Struct


@dataclass(frozen=True, slots=True)
class SheddingTerms:
    """`max_wait_s`: nobody waits longer. `smoothing`: what a slot's hold counts against the mean of the earlier ones.

    `margin` × the allowed wait is shed; above 1 for the doubt in the prediction.
    """

    max_wait_s: float = 10.0
    smoothing: float = 0.05
    margin: float = 1.0
    spread: float = 0.25
    least_retry_s: float = 0.1
    most_retry_s: float = 120.0

    def __post_init__(self) -> None:
        if not (self.max_wait_s > 0 and 0 < self.smoothing <= 1 and self.margin > 0 and self.spread >= 0):
            raise ValueError(f"{self}; expected positive times, smoothing within 0 to 1")
        if not 0 < self.least_retry_s <= self.most_retry_s:
            raise ValueError(f"{self}; expected 0 < least_retry_s <= most_retry_s")


class SheddingSnapshot(Struct, frozen=True):
    """`hold_s` is None while nothing is known."""

    hold_s: float | None
    shed: int


class Shedder:
    """Predicts waits at one group of upstreams that share a room. Times in seconds."""

    __slots__ = ("_freed_at", "_hold_s", "_num", "_rng", "_shed", "terms")

    def __init__(self, terms: SheddingTerms | None = None, *, rng: Random) -> None:
        self.terms = terms or SheddingTerms()
        self._rng = rng
        self._hold_s = 0.0
        self._num = 0
        self._freed_at = 0.0
        self._shed = 0

    def freed(self, now: float, hold_s: float) -> None:
        """A slot became free that was held for so long."""
        self._num += 1
        self._hold_s += (hold_s - self._hold_s) * max(self.terms.smoothing, 1.0 / self._num)
        self._freed_at = now

    @property
    def hold_s(self) -> float:
        """How long a slot is held on average; 0 while nothing is known."""
        return self._hold_s

    def had_room(self, now: float) -> None:
        """There was a free slot: however long nothing has become free by then, nobody has waited for it."""
        if now > self._freed_at:
            self._freed_at = now

    def predict(self, now: float, ahead: int, slots: int) -> float | None:
        """How long somebody waits who has `ahead` others before it, at `slots` slots that are all taken."""
        if not self._num or not slots:
            return None
        return (ahead + 1) * max(self._hold_s, now - self._freed_at) / slots

    def shed(self, now: float, remaining_s: float, wait_s: float | None, drain_s: float | None = None) -> float | None:
        """Tell how many seconds later to come back; None: wait.

        `wait_s` is the predicted wait and `drain_s` that of the last in the room (None: the same); `remaining_s` is
        what the call's deadline leaves, or its tenant's queue deadline if that is sooner.
        """
        if wait_s is None or wait_s <= self.terms.margin * min(remaining_s, self.terms.max_wait_s):
            return None
        self._shed += 1
        return self.retry_after_s(wait_s if drain_s is None else max(drain_s, wait_s))

    def retry_after_s(self, drain_s: float | None) -> float:
        """What to tell whoever is refused for other reasons: the room is full, or nothing became free in time."""
        terms = self.terms
        later_s = (terms.least_retry_s if drain_s is None else drain_s) * (1.0 + terms.spread * self._rng.random())
        return min(max(later_s, terms.least_retry_s), terms.most_retry_s)

    def snapshot(self) -> SheddingSnapshot:
        """What stands, for metrics."""
        return SheddingSnapshot(self._hold_s if self._num else None, self._shed)
