"""How many requests an HTTP upstream is given at a time: a fixed number, or one that is found out.

After Netflix's concurrency-limits: a *limit* is an algorithm that computes a number from samples, the *limiter* counts
who is in flight and holds them to it. A sample is SUCCESS with a time, DROPPED, or IGNORED and then no sample at all.

- `FixedLimit`: what the operator said.
- `AimdLimit`: one more per round trip while things go well and the limit is used, a tenth less when something is
  dropped. Reacts to refusals only; needs an upstream that refuses (429, 503) or times out.
- `Gradient2Limit`: compares the present time with its long average, and gives way as the present one grows.

**Why these mislead for language models.** They take a longer round trip for a longer queue. Here a round trip is long
because the answer is long, and the first token late because the prompt is: the quotient measures who asks, not how
full the upstream is. What would tell, free KV blocks, tokens waiting for prefill, the time of a step, only an engine
knows, and ours is asked for it instead (`Room`). For a stranger behind HTTP this is done about it:

- What is timed is the *first event*, not the answer. So the limit learns when the first event comes and not minutes
  later when the stream ends and its slot is free (`sample` and `release` are two calls).
- Each class of prompt lengths (`policies.length_class`) has averages of its own, and a sample is compared with its like
  only. What remains is the factor of four within a class, and prefix hits at the upstream, which nobody sees from here.
- The present time is that of a window of samples and not of one, or the spread alone would hold the limit down: with
  single samples of a log-normal (σ 0.5) and no queue anywhere it falls to 17, where it should rise to its most
  (measured). A window begins when the limit was last changed and takes only attempts that began since: those before
  tell of the limit before, and a limit that follows them swings: 9 to 31 at 20 slots, where it now holds 21 to 24
  (simulated, five times as much offered).
- A long average that learns while the limit is exhausted learns our own queue, and the limit creeps upwards (Netflix's
  does). Under pressure it therefore learns by the clock, with a time constant of `drift_s`: as fast as is needed for an
  upstream that has become slower for good, and too slow to matter in an overload of minutes.
- Many are dropped by one event. All that were in flight then count as one: after a cut, only what began later may cut
  again, as TCP halves once a window.
"""

from dataclasses import dataclass
from typing import Protocol

from msgspec import Struct

from policies.length_class import NUM_CLASSES, length_class
from policies.outcome import Outcome

WARM_UP = 10  # samples that a long average is a plain mean of
NEVER = float("-inf")


class Limit(Protocol):
    """A number that changes with what is sampled. `bound` is at least one, and counts down to whole requests."""

    bound: float

    def update(
        self,
        now: float,
        started: float,
        in_flight: int,
        outcome: Outcome,
        first_event_s: float | None,
        prompt_tokens: int,
    ) -> None:
        """Learn from an attempt that began at `started`. Outcome is SUCCESS or DROPPED.

        `first_event_s` is None where nobody knows it: for what was dropped, and for an answer that came whole.
        """
        ...


class FixedLimit:
    """The same number always."""

    __slots__ = ("bound",)

    def __init__(self, bound: int) -> None:
        if bound < 1:
            raise ValueError(f"a limit of {bound}; expected at least 1")
        self.bound: float = bound

    def update(
        self,
        now: float,
        started: float,
        in_flight: int,
        outcome: Outcome,
        first_event_s: float | None,
        prompt_tokens: int,
    ) -> None:
        """Learn nothing."""


@dataclass(frozen=True, slots=True)
class AimdTerms:
    """`backoff` multiplies the limit at a drop. A first event later than `slow_s` is one, None: none is."""

    initial: int = 20
    least: int = 1
    most: int = 200
    backoff: float = 0.9
    slow_s: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.initial <= self.most or not 0 < self.backoff < 1:
            raise ValueError(f"{self}; expected 1 <= least <= initial <= most and a backoff within 0 to 1")


class AimdLimit:
    """Additive increase, multiplicative decrease."""

    __slots__ = ("_cut_at", "bound", "terms")

    def __init__(self, terms: AimdTerms | None = None) -> None:
        self.terms = terms or AimdTerms()
        self.bound: float = self.terms.initial
        self._cut_at = NEVER

    def update(
        self,
        now: float,
        started: float,
        in_flight: int,
        outcome: Outcome,
        first_event_s: float | None,
        prompt_tokens: int,
    ) -> None:
        """Cut at a drop, once for all that were in flight; else grow, if the limit is used at all."""
        terms = self.terms
        slow = terms.slow_s is not None and first_event_s is not None and first_event_s > terms.slow_s
        if slow or outcome is Outcome.DROPPED:
            if started >= self._cut_at:
                self.bound = max(self.bound * terms.backoff, terms.least)
                self._cut_at = now
        elif in_flight * 2 >= self.bound:
            self.bound = min(self.bound + 1.0 / self.bound, terms.most)


@dataclass(frozen=True, slots=True)
class GradientTerms:
    """`queue`: how many may wait at the upstream. `tolerance`: what factor over the long average is no queue yet.

    A window takes `samples` and `window_s` at least, and then the limit goes the share `smoothing` of the way. `long`
    is how many samples the long average reaches back, `drift_s` how many seconds it does under pressure.
    """

    initial: int = 20
    least: int = 4
    most: int = 200
    queue: float = 4.0
    tolerance: float = 1.5
    smoothing: float = 0.2
    samples: int = 10
    window_s: float = 0.25
    long: int = 600
    drift_s: float = 1800.0

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.initial <= self.most or min(self.samples, self.long) < 1:
            raise ValueError(f"{self}; expected 1 <= least <= initial <= most and positive windows")
        if not (0 < self.smoothing <= 1 and self.drift_s > 0 and self.tolerance >= 1 and self.queue >= 0):
            raise ValueError(f"{self}; expected smoothing within 0 to 1, a tolerance of at least 1, positive times")


class Gradient2Limit:
    """Netflix's Gradient2 on the time to the first event, class by class."""

    __slots__ = (
        "_actual",
        "_changed",
        "_count",
        "_expected",
        "_kinds",
        "_long",
        "_num",
        "_seen",
        "_used",
        "bound",
        "terms",
    )

    def __init__(self, terms: GradientTerms | None = None) -> None:
        self.terms = terms or GradientTerms()
        self.bound: float = self.terms.initial
        self._long = [0.0] * NUM_CLASSES
        self._count = [0] * NUM_CLASSES
        self._seen = [0.0] * NUM_CLASSES  # when the last sample came
        self._open_window(NEVER)

    def update(
        self,
        now: float,
        started: float,
        in_flight: int,
        outcome: Outcome,
        first_event_s: float | None,
        prompt_tokens: int,
    ) -> None:
        """Follow the gradient at a window's end; a drop is the steepest one, and ends it."""
        if outcome is Outcome.DROPPED:
            if started >= self._changed:
                self._follow(0.5)
                self._open_window(now)
            return
        if first_event_s is None:
            return
        kind = length_class(prompt_tokens)
        usual = self._long[kind] or first_event_s
        self._learn(now, first_event_s, kind, pressed=in_flight >= 0.9 * self.bound)
        if started < self._changed:
            return
        self._num += 1
        self._kinds.add(kind)
        self._expected += usual
        self._actual += first_event_s
        if in_flight * 2 >= self.bound:
            self._used = True
        if self._num >= self.terms.samples and now - self._changed >= self.terms.window_s:
            if self._expected > 2.0 * self._actual:
                # A load is over: back to what is usual sooner than the average would get there.
                for each in self._kinds:
                    self._long[each] *= 0.9
            if self._used:  # else it is not the limit that binds
                self._follow(self.terms.tolerance * self._expected / self._actual if self._actual else 1.0)
            self._open_window(now)

    def _learn(self, now: float, seconds: float, kind: int, *, pressed: bool) -> None:
        self._count[kind] += 1
        count = self._count[kind]
        share = 1.0 / count if count <= WARM_UP else 2.0 / (self.terms.long + 1)
        if pressed and count > WARM_UP:
            share = min(share, (now - self._seen[kind]) / self.terms.drift_s)
        self._seen[kind] = now
        self._long[kind] += (seconds - self._long[kind]) * share

    def _follow(self, gradient: float) -> None:
        terms = self.terms
        target = self.bound * min(max(gradient, 0.5), 1.0) + terms.queue
        bound = self.bound + (target - self.bound) * terms.smoothing
        self.bound = min(max(bound, terms.least), terms.most)

    def _open_window(self, now: float) -> None:
        self._changed = now
        self._num = 0
        self._expected = self._actual = 0.0  # sums of what the samples would usually have taken, and of what they took
        self._kinds: set[int] = set()
        self._used = False  # whether the limit bound anybody


class ConcurrencySnapshot(Struct, frozen=True):
    """`limit` in whole requests."""

    limit: int
    in_flight: int
    dropped: int


class ConcurrencyLimiter:
    """Counts who is in flight at one upstream, and tells whether one more may go. Not for several threads.

    A limit that falls below what is in flight takes nothing away: it lets nobody in until enough have left.
    """

    __slots__ = ("_dropped", "_limit", "in_flight")

    def __init__(self, limit: Limit) -> None:
        self._limit = limit
        self.in_flight = 0
        self._dropped = 0

    @property
    def free(self) -> int:
        """How many more may go now."""
        return max(int(self._limit.bound) - self.in_flight, 0)

    def acquire(self) -> bool:
        """Take a slot if one is free. Whoever got one must `release` it."""
        if self.in_flight >= int(self._limit.bound):
            return False
        self.in_flight += 1
        return True

    def sample(
        self,
        now: float,
        started: float,
        outcome: Outcome,
        prompt_tokens: int,
        first_event_s: float | None = None,
    ) -> None:
        """Learn from an attempt, once: SUCCESS when its first event is there, DROPPED when it failed before that.

        To be called while its slot is still taken. IGNORED says nothing, and is not learnt from. An answer that came
        whole has no first event (None): it tells `AimdLimit` that all is well, and `Gradient2Limit`, which lives on
        times, nothing.
        """
        if outcome is Outcome.IGNORED:
            return
        if outcome is Outcome.DROPPED:
            self._dropped += 1
        self._limit.update(now, started, self.in_flight, outcome, first_event_s, prompt_tokens)

    def release(self) -> None:
        """Give a slot back."""
        assert self.in_flight > 0, "more slots were released than taken"
        self.in_flight -= 1

    def snapshot(self) -> ConcurrencySnapshot:
        """What stands, for metrics."""
        return ConcurrencySnapshot(int(self._limit.bound), self.in_flight, self._dropped)
