"""A circuit breaker: stops sending to an upstream that fails, and finds out by single probes when it is well again.

                 too many failures, too many slow calls, a cause
        CLOSED ────────────────────────────────────────────────────► OPEN ◄──┐
          ▲                                                            │      │ the probe failed:
          │                                                   its time │      │ longer this time
          │  enough probes succeeded                           is over ▼      │
          └──────────────────────────────────────────────────────── HALF_OPEN ┘

The words are resilience4j's: *closed* means that traffic flows. One for each upstream and model. It opens when, within
a sliding window and from `min_calls` on, the share of failures or of slow calls reaches its threshold; or when
`consecutive` calls fail in a row; or when an engine says so itself (`trip`). What is IGNORED (the caller's mistake, the
caller who left) never counts, in no state.

A slow call is one whose *first event* took longer than `slow_s`: the length of an answer says nothing about health.
For the same reason a probe proves itself with its first event, and need not be over before anybody else is let in.

Every attempt gets a *pass* when it begins and shows it when it ends. A pass from before the breaker opened is out of
date, so that what was under way in bad times does not decide about good ones. Of probes there is never more than one
under way and never more than one begun within `probe_interval_s`. A probe that ends IGNORED (its caller left) frees its
place and decides nothing; hence whoever got a pass must `record` it on every path.

The time in OPEN grows with each failed probe by `growth` up to `max_open_s`, and is jittered so that replicas do not
probe in step. The longest is short on purpose: it is how much later than necessary an upstream is found well, and one
request every few seconds is what that costs.

**What other replicas say is a hint and never truth.** A hint cannot open, keep open, close or probe: a replica may see
an upstream through a broken network, or be broken itself, and one liar must not take an upstream from all. While a
hint is fresh, `hinted_consecutive` failures of our own in a row suffice to open, instead of `consecutive`. A hint that
an upstream is well again is not taken at all: every replica would probe it at that moment.
"""

from dataclasses import dataclass
from enum import Enum, StrEnum
from random import Random

from msgspec import Struct

from policies.outcome import Outcome
from policies.window import Window

CALLS, FAILURES, SLOW = range(3)  # columns of the window


class State(Enum):
    """Traffic flows; nothing does; one probe at a time."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Cause(StrEnum):
    """Why a breaker opened. The last five are an engine's own report."""

    FAILURE_RATE = "failure_rate"
    SLOW_RATE = "slow_rate"
    CONSECUTIVE = "consecutive_failures"
    PROBE = "probe_failed"
    DEVICE_ERROR = "device_error"
    NON_FINITE = "non_finite_logits"
    OUT_OF_MEMORY = "out_of_memory"
    PREEMPTION_STORM = "preemption_storm"
    STALLED = "stalled_step"


@dataclass(frozen=True, slots=True)
class BreakerTerms:
    """Rates are shares of 1; a rate above 1 is never reached. `slow_s` None: no call is slow. Times in seconds.

    The defaults are for what is down, not for what is unwell: where half of all attempts fail, retries save half of the
    rest, while a breaker lets one probe through and calls it well or not by the toss of a coin (simulated with a single
    upstream: 58 % of calls served without a breaker, 8 % with one that opens at half or at 5 in a row).
    """

    window_s: float = 10.0
    min_calls: int = 20
    failure_rate: float = 0.75
    slow_rate: float = 0.8
    slow_s: float | None = None
    consecutive: int = 10
    hinted_consecutive: int = 3
    hint_s: float = 10.0
    open_s: float = 1.0
    max_open_s: float = 3.0
    growth: float = 1.5
    jitter: float = 0.2
    probe_interval_s: float = 1.0
    probes_to_close: int = 1

    def __post_init__(self) -> None:
        positive = (self.window_s, self.failure_rate, self.slow_rate, self.open_s, self.probe_interval_s)
        counts = (self.min_calls, self.consecutive, self.hinted_consecutive, self.probes_to_close)
        if min(positive) <= 0 or min(counts) < 1:
            raise ValueError(f"{self}; expected positive times, rates and counts")
        if self.max_open_s < self.open_s or self.growth < 1 or not 0 <= self.jitter < 1:
            raise ValueError(f"{self}; expected max_open_s >= open_s, growth >= 1, 0 <= jitter < 1")


class BreakerSnapshot(Struct, frozen=True):
    """`cause` is that of the latest opening. The counts are the window's; `opened` counts since the start."""

    state: State
    cause: Cause | None
    calls: int
    failures: int
    slow: int
    consecutive: int
    retry_in_s: float
    opened: int


class CircuitBreaker:
    """The breaker of one upstream. Not for several threads."""

    __slots__ = (
        *("_cause", "_consecutive", "_era", "_hinted_until", "_last_probe", "_open_s", "_opened", "_probe", "_proofs"),
        *("_rng", "_until", "_window", "state", "terms"),
    )

    def __init__(self, terms: BreakerTerms | None = None, *, rng: Random) -> None:
        self.terms = terms = terms or BreakerTerms()
        self.state = State.CLOSED
        self._rng = rng
        self._window = Window(terms.window_s, columns=3)
        self._consecutive = 0
        self._era = 1  # passes of another era are out of date; a probe's pass begins one
        self._probe: int | None = None  # the pass of the probe under way
        self._last_probe = float("-inf")
        self._proofs = 0  # probes that succeeded since the breaker was open
        self._open_s = terms.open_s  # for how long it opens the next time
        self._until = 0.0
        self._hinted_until = float("-inf")
        self._cause: Cause | None = None
        self._opened = 0

    def wait_s(self, now: float) -> float:
        """How long until `admit` may succeed, at the earliest: 0 if it would now. Changes nothing."""
        if self.state is State.CLOSED:
            return 0.0
        soonest = max(self._until, self._last_probe + self.terms.probe_interval_s)
        if self._probe is not None:  # nobody can know when it ends
            return max(soonest - now, self.terms.probe_interval_s)
        return max(soonest - now, 0.0)

    def admit(self, now: float) -> int | None:
        """Give a pass to an attempt that is about to be sent; None if it must not be. Each pass is to be recorded."""
        if self.state is State.CLOSED:
            return self._era
        if self.wait_s(now) > 0.0:
            return None
        self.state = State.HALF_OPEN
        self._last_probe = now
        self._era += 1
        self._probe = self._era
        return self._era

    def record(self, now: float, passed: int, outcome: Outcome, first_event_s: float | None = None) -> None:
        """Take note of how an attempt ended; `first_event_s` is how long its first event took, if one came.

        A probe is to be recorded as SUCCESS with its first event, and once more at its end, which then counts like
        anybody's. To record IGNORED is right wherever nothing was learnt.
        """
        if passed == self._probe:
            self._probe = None
            if passed == self._era:
                self._judge_probe(now, outcome, self._is_slow(first_event_s))
        elif passed == self._era and self.state is State.CLOSED and outcome is not Outcome.IGNORED:
            self._count(now, outcome, self._is_slow(first_event_s))

    def trip(self, now: float, cause: Cause) -> None:
        """Open at once, because the engine itself reports what is wrong. Open already, it stays so from now on."""
        self._open(now, cause)

    def hint(self, now: float) -> None:
        """Another replica's breaker for this upstream opened: be quicker to believe the next failures."""
        self._hinted_until = now + self.terms.hint_s

    def snapshot(self, now: float) -> BreakerSnapshot:
        """What stands, for metrics and for telling other replicas."""
        self._window.advance(now)
        calls, failures, slow = self._window.totals
        return BreakerSnapshot(
            self.state, self._cause, calls, failures, slow, self._consecutive, self.wait_s(now), self._opened
        )

    def _is_slow(self, first_event_s: float | None) -> bool:
        slow_s = self.terms.slow_s
        return slow_s is not None and first_event_s is not None and first_event_s > slow_s

    def _count(self, now: float, outcome: Outcome, slow: bool) -> None:
        window, terms = self._window, self.terms
        window.add(now, CALLS, 1)
        failed = outcome is Outcome.DROPPED
        if failed:
            self._consecutive += 1
            window.add(now, FAILURES, 1)
        else:
            self._consecutive = 0
        if slow:
            window.add(now, SLOW, 1)
        if not (failed or slow):
            return
        calls, failures, num_slow = window.totals
        if self._consecutive >= (terms.hinted_consecutive if now < self._hinted_until else terms.consecutive):
            self._open(now, Cause.CONSECUTIVE)
        elif calls >= terms.min_calls and failures >= terms.failure_rate * calls:
            self._open(now, Cause.FAILURE_RATE)
        elif calls >= terms.min_calls and num_slow >= terms.slow_rate * calls:
            self._open(now, Cause.SLOW_RATE)

    def _judge_probe(self, now: float, outcome: Outcome, slow: bool) -> None:
        if outcome is Outcome.IGNORED:
            return
        if outcome is Outcome.DROPPED or slow:
            self._open_s = min(self._open_s * self.terms.growth, self.terms.max_open_s)
            self._open(now, Cause.PROBE)
            return
        self._proofs += 1
        if self._proofs >= self.terms.probes_to_close:
            self.state = State.CLOSED
            self._open_s = self.terms.open_s
            self._window.clear()
            self._consecutive = 0

    def _open(self, now: float, cause: Cause) -> None:
        self.state = State.OPEN
        self._cause = cause
        self._opened += 1
        self._era += 1
        self._proofs = 0
        self._until = now + self._open_s * (1.0 + self.terms.jitter * (2.0 * self._rng.random() - 1.0))
