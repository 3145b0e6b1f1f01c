"""When a second attempt is sent beside one that is late with its first token.

"The Tail at Scale" (Dean and Barroso, 2013): most of a tail is bad luck of one server, and a second request sent only
when the first is later than most costs a few percent and takes the tail away. As in tower's hedge, *later than most*
is a quantile of what this upstream lately took for prompts of this length (`policies.length_class`).

The wait is `stretch` × the quantile, 1.5 × p90 by default. A bare p95 fails just where hedging helps most: with one
call in twenty slow, the p95 lies on the edge between fast and slow, and falls among the slow ones half of the time. The
stretched p90 lies between the two up to one slow call in ten, and for the usual shapes of a single mode (exponential,
log-normal) is exceeded by 2 to 4 % of calls.

At once, without any wait, where the time to the first token is *predicted* (an engine knows its queue) and later than
the objective, and the other upstream is not predicted to be later still.

Never for a request whose tools act: two models would act twice. Never more than `share` of all requests, whatever the
quantile says, and besides that each hedge is paid from the budget that retries live on (`RetryBudget`).

What loses a race is cancelled, and its first token never seen. It is to be observed all the same, with the time it had
waited: that is longer than the quantile, so it stands on the right side of it, and leaving it out would teach the
histogram that this upstream is never slow.
"""

from dataclasses import dataclass

from msgspec import Struct

from policies.histogram import RotatingHistogram
from policies.length_class import NUM_CLASSES, length_class


@dataclass(frozen=True, slots=True)
class HedgeTerms:
    """`objective_s` is the first token's, None for none; `share` of requests are hedged at most, `burst` at once.

    The quantile needs `min_points` first tokens of the prompt's class in the last one to two periods.
    """

    quantile: float = 0.9
    stretch: float = 1.5
    least_s: float = 0.02
    objective_s: float | None = None
    min_points: int = 50
    period_s: float = 60.0
    share: float = 0.05
    burst: float = 10.0

    def __post_init__(self) -> None:
        if not (0 < self.quantile < 1 and self.stretch > 0 and self.min_points > 0 and self.period_s > 0):
            raise ValueError(f"{self}; expected a quantile within 0 to 1 and positive numbers")
        if not 0 <= self.share <= 1 or self.burst < 1:
            raise ValueError(f"{self}; expected a share of 0 to 1 and a burst of at least 1")


class HedgeSnapshot(Struct, frozen=True):
    """`waits_s`: for each class of prompt lengths, when a hedge would be sent; None while too little is known."""

    waits_s: tuple[float | None, ...]
    hedged: int
    refused: int


class HedgePolicy:
    """The policy for one upstream (of one model) as the first choice. Not for several threads."""

    __slots__ = ("_credit", "_hedged", "_histograms", "_refused", "terms")

    def __init__(self, terms: HedgeTerms | None = None) -> None:
        self.terms = terms = terms or HedgeTerms()
        self._histograms = [
            RotatingHistogram(terms.quantile, min_points=terms.min_points, period_s=terms.period_s)
            for _ in range(NUM_CLASSES)
        ]
        self._credit = 1.0
        self._hedged = 0
        self._refused = 0

    def observe(self, now: float, prompt_tokens: int, first_event_s: float) -> None:
        """An attempt's first token came after so long, or it was cancelled by then as the loser of a race."""
        self._histograms[length_class(prompt_tokens)].add(now, first_event_s)

    def delay(
        self,
        now: float,
        prompt_tokens: int,
        remaining_s: float,
        *,
        acts: bool,
        predicted_s: float | None = None,
        rival_s: float | None = None,
    ) -> float | None:
        """How long after the first attempt a second one shall be sent; None: never. Called once for each request.

        `acts`: the request has tools that change something. `predicted_s` and `rival_s`: when the first token is
        predicted at this upstream and at the one a hedge would go to, None where nobody can tell.
        """
        terms = self.terms
        self._credit = min(self._credit + terms.share, terms.burst)
        if acts:
            return None
        objective_s = terms.objective_s
        if objective_s is not None and predicted_s is not None and predicted_s > objective_s:
            return 0.0 if rival_s is None or rival_s < predicted_s else None
        late_s = self._histograms[length_class(prompt_tokens)].quantile(now)
        if late_s is None:
            return None
        wait_s = max(late_s * terms.stretch, terms.least_s)
        return wait_s if wait_s < remaining_s else None

    def take(self) -> bool:
        """Whether the share has room for one more hedge, and count it. Asked when its time has come, not before."""
        if self._credit < 1.0:
            self._refused += 1
            return False
        self._credit -= 1.0
        self._hedged += 1
        return True

    def snapshot(self, now: float) -> HedgeSnapshot:
        """What stands, for metrics."""
        late = [histogram.quantile(now) for histogram in self._histograms]
        waits = [None if late_s is None else max(late_s * self.terms.stretch, self.terms.least_s) for late_s in late]
        return HedgeSnapshot(tuple(waits), self._hedged, self._refused)
