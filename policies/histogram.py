"""A rotating histogram of durations with one quantile that is cheap to ask for.

Two histograms take turns, as in tower's hedge: one fills for `period_s`, then it becomes the past and the older past is
forgotten. Both are read together, so that what is known is between one and two periods old and never starts from
nothing. Buckets grow by 2^(1/8) (9 %) from 1 ms to 17 minutes; a quantile is its bucket's upper bound, hence up to 9 %
too high and never too low. Adding costs O(1); the quantile is looked up at most once a second.
"""

from bisect import bisect_left
from itertools import accumulate
from math import log2
from operator import add

OCTAVES, PARTS = 20, 8
NUM_BUCKETS = OCTAVES * PARTS
LEAST_S = 0.001
REFRESH_S = 1.0


class RotatingHistogram:
    """Durations in seconds, and the quantile `q` of them, from `min_points` durations on."""

    __slots__ = (
        *("_asked_at", "_known", "_min_points", "_num_past", "_num_present"),
        *("_past", "_period", "_period_s", "_present", "_q"),
    )

    def __init__(self, q: float, *, min_points: int, period_s: float) -> None:
        self._q = q
        self._min_points = min_points
        self._period_s = period_s
        self._period = 0
        self._past, self._present = [0] * NUM_BUCKETS, [0] * NUM_BUCKETS
        self._num_past = self._num_present = 0
        self._known: float | None = None
        self._asked_at = float("-inf")

    def add(self, now: float, seconds: float) -> None:
        """Count a duration."""
        self._rotate(now)
        bucket = int(log2(seconds / LEAST_S) * PARTS) if seconds > LEAST_S else 0
        self._present[min(bucket, NUM_BUCKETS - 1)] += 1
        self._num_present += 1

    def num_points(self, now: float) -> int:
        """How many durations are remembered."""
        self._rotate(now)
        return self._num_past + self._num_present

    def quantile(self, now: float) -> float | None:
        """Give the quantile as of the last second; None while too little is known."""
        if now - self._asked_at >= REFRESH_S or self._known is None:
            self._known = self._look(now)
            self._asked_at = now
        return self._known

    def _look(self, now: float) -> float | None:
        num_points = self.num_points(now)
        if num_points < self._min_points:
            return None
        up_to = list(accumulate(map(add, self._past, self._present)))
        bucket = bisect_left(up_to, self._q * num_points)
        return float(LEAST_S * 2.0 ** ((bucket + 1) / PARTS))

    def _rotate(self, now: float) -> None:
        period = int(now / self._period_s)
        gone = period - self._period
        if gone <= 0:
            return
        self._period = period
        if gone == 1:
            self._past, self._num_past = self._present, self._num_present
        else:
            self._past, self._num_past = [0] * NUM_BUCKETS, 0
        self._present, self._num_present = [0] * NUM_BUCKETS, 0
