"""What an engine counts of its own troubles, and when that is a reason to leave it alone for a moment.

A single failed step is none: the engine runs the step again in parts, and only the answer at fault fails. Nor may a
caller who knows how to make its own answers fail take the engine from everybody. So failed steps, shortages of memory
and rows of bad numbers count by their share of the steps within a window; a storm of preemptions and a step that hangs
count at once, because the engine says so only when they are that.

A cause is reported once, at its onset, and again only after it was over: whether the engine is well again is for the
breaker's probes to find out.
"""

from dataclasses import dataclass

from msgspec import Struct

from policies.breaker import Cause
from policies.window import Window

STEPS, FAILED, SHORTAGES, ROWS = range(4)  # columns of the window
# Causes that are a matter of share, the gravest first.
SHARED = ((Cause.DEVICE_ERROR, FAILED), (Cause.OUT_OF_MEMORY, SHORTAGES), (Cause.NON_FINITE, ROWS))


class EngineCounts(Struct, frozen=True):
    """What has happened since the start; each number only grows."""

    steps: int = 0
    failed_steps: int = 0
    memory_shortages: int = 0
    row_errors: int = 0
    preemption_storms: int = 0
    stalls: int = 0


@dataclass(frozen=True, slots=True)
class ReportTerms:
    """`share` of the steps within `window_s`, and `least` of them, make a cause."""

    window_s: float = 5.0
    share: float = 0.5
    least: int = 3

    def __post_init__(self) -> None:
        if self.window_s <= 0 or not 0 < self.share <= 1 or self.least < 1:
            raise ValueError(f"{self}; expected a positive window, a share within 0 to 1 and at least one")


class EngineReport:
    """Turns one engine's counts into causes. Not for several threads."""

    __slots__ = ("_known", "_raised", "_window", "terms")

    def __init__(self, terms: ReportTerms | None = None) -> None:
        self.terms = terms = terms or ReportTerms()
        self._window = Window(terms.window_s, columns=4)
        self._known = EngineCounts()
        self._raised: set[Cause] = set()

    def look(self, now: float, counts: EngineCounts) -> Cause | None:
        """Tell a cause that has begun since the last look; the gravest, where there are several."""
        known, self._known = self._known, counts
        window = self._window
        window.add(now, STEPS, counts.steps - known.steps)
        window.add(now, FAILED, counts.failed_steps - known.failed_steps)
        window.add(now, SHORTAGES, counts.memory_shortages - known.memory_shortages)
        window.add(now, ROWS, counts.row_errors - known.row_errors)
        begun = [cause for cause, column in SHARED if self._begins(cause, column)]
        if counts.stalls > known.stalls:
            begun.insert(0, Cause.STALLED)
        if counts.preemption_storms > known.preemption_storms:
            begun.append(Cause.PREEMPTION_STORM)
        return begun[0] if begun else None

    def _begins(self, cause: Cause, column: int) -> bool:
        totals, terms = self._window.totals, self.terms
        if totals[column] < max(terms.least, terms.share * totals[STEPS]):
            self._raised.discard(cause)
            return False
        if cause in self._raised:
            return False
        self._raised.add(cause)
        return True
