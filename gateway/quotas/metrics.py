"""What is counted of limits: who was refused, what was promised, what was used, and how the store of it all stands.

A limit is told by what it counts and by the level of its scope, never by its name: tenants come and go, series stay.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from gateway.telemetry.record import LimitHit, RequestRecord

LIMIT = ("measure", "scope")

Hits = dict[tuple[str, str], int]


@dataclass(slots=True)
class ModelQuota:
    """What was promised and used of one model under limits on tokens."""

    reservations: int = 0
    estimated: int = 0
    reserved: int = 0
    overshoot: int = 0
    prompt: int = 0
    cached: int = 0
    completion: int = 0


@dataclass(frozen=True, slots=True)
class StoreState:
    """How the store stands: whether it is asked, why not, how long it was not in all, and what it has forgotten."""

    up: bool
    reason: str
    degraded_s: float
    forgotten: int


@dataclass(slots=True)
class QuotaNumbers:
    """All numbers of limits; a request without any costs one look."""

    refusals: Hits = field(default_factory=dict)
    shadow_refusals: Hits = field(default_factory=dict)
    ended: Hits = field(default_factory=dict)
    degraded: int = 0
    models: dict[str, ModelQuota] = field(default_factory=dict)
    store: Callable[[], StoreState] | None = None

    def count(self, record: RequestRecord) -> None:
        """Take a finished request."""
        quota = record.quota
        if quota is None:
            return
        if quota.refused is not None:
            _hit(self.refusals, quota.refused)
        if quota.ended is not None:
            _hit(self.ended, quota.ended)
        for limit in quota.shadowed:
            _hit(self.shadow_refusals, limit)
        self.degraded += quota.degraded
        if quota.reserved is None:
            return
        model = record.model or ""
        numbers = self.models.get(model)
        if numbers is None:
            numbers = self.models[model] = ModelQuota()
        numbers.reservations += 1
        numbers.estimated += not quota.exact
        numbers.reserved += quota.reserved
        numbers.overshoot += quota.overshoot
        numbers.prompt += record.usage.prompt
        numbers.cached += record.usage.cached
        numbers.completion += record.usage.completion

    def families(self) -> Iterator[Metric]:
        """Yield what there is to tell."""
        yield _limits("quota_refusals", "Requests that a limit answered with 429.", self.refusals)
        yield _limits(
            "quota_shadow_refusals", "Refusals and cut answers, had a shadow limit counted.", self.shadow_refusals
        )
        yield _limits("quota_ended", "Answers that a limit cut short.", self.ended)
        yield CounterMetricFamily(
            "penstock_quota_degraded", "Requests under shares of this process alone.", value=self.degraded
        )
        yield from self._model_families()
        if self.store is not None:
            yield from _store_families(self.store())

    def _model_families(self) -> Iterator[Metric]:
        reservations = CounterMetricFamily(
            "penstock_quota_reservations", "Reservations of tokens.", labels=["model", "counted"]
        )
        reserved = CounterMetricFamily(
            "penstock_quota_reserved_tokens", "Tokens promised, input and output.", labels=["model"]
        )
        settled = CounterMetricFamily(
            "penstock_quota_settled_tokens",
            "Tokens charged; `cached` is a part of `prompt`.",
            labels=["model", "kind"],
        )
        overshoot = CounterMetricFamily(
            "penstock_quota_overshoot_tokens", "Output tokens that nobody had granted.", labels=["model"]
        )
        for model, numbers in self.models.items():
            reservations.add_metric([model, "exactly"], numbers.reservations - numbers.estimated)
            reservations.add_metric([model, "estimated"], numbers.estimated)
            reserved.add_metric([model], numbers.reserved)
            settled.add_metric([model, "prompt"], numbers.prompt)
            settled.add_metric([model, "cached"], numbers.cached)
            settled.add_metric([model, "completion"], numbers.completion)
            overshoot.add_metric([model], numbers.overshoot)
        yield from (reservations, reserved, settled, overshoot)


def _store_families(state: StoreState) -> Iterator[Metric]:
    yield GaugeMetricFamily("penstock_store_up", "Whether the store of the limits is asked.", value=state.up)
    down = GaugeMetricFamily("penstock_store_down", "1 while it is not, by the reason.", labels=["reason"])
    if not state.up:
        down.add_metric([state.reason], 1)
    yield down
    yield CounterMetricFamily(
        "penstock_store_degraded_seconds", "Time without the store of the limits.", value=state.degraded_s
    )
    yield CounterMetricFamily(
        "penstock_store_forgotten", "Times that the store came back with another memory.", value=state.forgotten
    )


def _limits(name: str, about: str, hits: Hits) -> CounterMetricFamily:
    family = CounterMetricFamily(f"penstock_{name}", about, labels=LIMIT)
    for key, count in hits.items():
        family.add_metric(key, count)
    return family


def _hit(hits: Hits, limit: LimitHit) -> None:
    key = (limit.measure, limit.level)
    hits[key] = hits.get(key, 0) + 1
