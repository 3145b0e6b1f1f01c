"""What is told of retries, their budget, breakers and hedges, for each model; read from the policies when scraped."""

import time
from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from gateway.call import Model
from policies.breaker import State


class RecoveryNumbers:
    """The numbers of all models' recoveries. `clock` is the one that dispatch has."""

    def __init__(self, models: Mapping[str, Model], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._models = {model.name: model for model in models.values()}
        self._clock = clock

    def families(self) -> Iterator[Metric]:
        """Yield what there is to tell."""
        yield from self._budgets()
        yield from self._breakers()
        yield from self._hedges()

    def _budgets(self) -> Iterator[Metric]:
        balance = GaugeMetricFamily(
            "penstock_retry_budget", "Extra attempts that successes pay for now.", labels=["model"]
        )
        spent = CounterMetricFamily("penstock_retry_budget_spent", "Extra attempts let through.", labels=["model"])
        refused = CounterMetricFamily(
            "penstock_retry_budget_refused", "Extra attempts that nothing paid for.", labels=["model"]
        )
        now = self._clock()
        for name, model in self._models.items():
            told = model.recovery.budget.snapshot(now)
            balance.add_metric([name], told.balance)
            spent.add_metric([name], told.withdrawn)
            refused.add_metric([name], told.refused)
        yield from (balance, spent, refused)

    def _breakers(self) -> Iterator[Metric]:
        labels = ["model", "upstream"]
        states = GaugeMetricFamily(
            "penstock_breaker_state", "1 for the state that a breaker is in.", labels=[*labels, "state"]
        )
        opened = CounterMetricFamily("penstock_breaker_opened", "How often it opened.", labels=labels)
        now = self._clock()
        for name, model in self._models.items():
            for upstream, breaker in model.recovery.breakers.items():
                told = breaker.snapshot(now)
                for state in State:
                    states.add_metric([name, upstream.name, state.value], told.state is state)
                opened.add_metric([name, upstream.name], told.opened)
        yield from (states, opened)

    def _hedges(self) -> Iterator[Metric]:
        labels = ["model", "upstream"]
        sent = CounterMetricFamily(
            "penstock_hedges", "Second attempts that were due beside a first one there.", labels=labels
        )
        refused = CounterMetricFamily("penstock_hedges_refused", "Hedges beyond their share.", labels=labels)
        for name, model in self._models.items():
            for upstream, hedge in model.recovery.hedges.items():
                told = hedge.snapshot(self._clock())
                sent.add_metric([name, upstream.name], told.hedged)
                refused.add_metric([name, upstream.name], told.refused)
        yield from (sent, refused)
