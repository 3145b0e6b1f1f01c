"""What a model does about attempts that fail or are late: retries, their budget, breakers and hedges.

One for each model, because models share an upstream and still fail on their own there. The policies are pure and stand
in `policies`; here they are kept together, so that `Choose` and `Dispatch` find them with the call's model.
"""

from collections.abc import Callable, Mapping, Sequence
from math import ceil
from random import Random
from types import MappingProxyType
from typing import TYPE_CHECKING

from gateway.errors import Overloaded
from policies.breaker import BreakerTerms, CircuitBreaker, State
from policies.engine_report import EngineCounts, EngineReport
from policies.hedge import HedgePolicy, HedgeTerms
from policies.retry import RetryPolicy, RetryTerms
from policies.retry_budget import BudgetTerms, RetryBudget

if TYPE_CHECKING:
    from gateway.upstreams.base import Upstream

NO_BREAKERS: "Mapping[Upstream, BreakerTerms]" = MappingProxyType({})
NO_REPORTS: "Mapping[Upstream, Callable[[], EngineCounts]]" = MappingProxyType({})
LONGEST_MS = 120_000  # clients take more for a mistake


class Recovery:
    """Retries and their budget; a breaker for each upstream that `breakers` names; hedges where there is a rival.

    `reports` are what engines count of themselves: a breaker opens for what is wrong there before callers find out.
    """

    __slots__ = ("_reports", "breakers", "budget", "hedges", "retry", "tools_act")

    def __init__(
        self,
        upstreams: "Sequence[Upstream]" = (),
        *,
        retry: RetryTerms | None = None,
        budget: BudgetTerms | None = None,
        breakers: "Mapping[Upstream, BreakerTerms]" = NO_BREAKERS,
        hedge: HedgeTerms | None = None,
        tools_act: bool = True,
        reports: "Mapping[Upstream, Callable[[], EngineCounts]]" = NO_REPORTS,
        rng: Random | None = None,
    ) -> None:
        rng = rng or Random()
        self.retry = RetryPolicy(retry, rng=rng)
        self.budget = RetryBudget(budget)
        self.breakers = {upstream: CircuitBreaker(terms, rng=rng) for upstream, terms in breakers.items()}
        self.tools_act = tools_act  # whether who may call tools changes something by it, so that nobody does it twice
        rivals = hedge is not None and len(upstreams) > 1
        self.hedges = {upstream: HedgePolicy(hedge) for upstream in upstreams} if rivals else {}

        self._reports = [(self.breakers[upstream], EngineReport(), counts) for upstream, counts in reports.items()]

    def listen(self, now: float) -> None:
        """Hear what engines report, and leave alone who is in trouble."""
        for breaker, report, counts in self._reports:
            cause = report.look(now, counts())
            if cause is not None:
                breaker.trip(now, cause)

    def wait_s(self, upstream: "Upstream", now: float) -> float:
        """How long the upstream's breaker lets nothing through; 0 if an attempt may be sent now."""
        breaker = self.breakers.get(upstream)
        return 0.0 if breaker is None else breaker.wait_s(now)

    @property
    def well(self) -> bool:
        """Whether traffic flows to all upstreams."""
        for breaker in self.breakers.values():  # noqa: SIM110 - every call asks, and a generator is half a microsecond
            if breaker.state is not State.CLOSED:
                return False
        return True


def unavailable(wait_s: float) -> Overloaded:
    """Every upstream that could serve a call is being left alone: a 503 that says for how long at least."""
    message = "The model's upstreams are failing; they are being left alone for a moment."
    return Overloaded(message, code="upstreams_unavailable", headers=retry_headers(wait_s))


def retry_headers(wait_s: float) -> dict[str, str]:
    """Say when to come again: in whole seconds, and for those who read it in milliseconds."""
    headers = {"retry-after": str(max(ceil(wait_s), 1))}
    if wait_s * 1000 <= LONGEST_MS:
        headers["retry-after-ms"] = str(ceil(wait_s * 1000))
    return headers
