"""What the gateway counts, and how Prometheus reads it.

prometheus-client's own counters lock, and its histograms walk their bounds: about 2 µs a touch, and a request touches
eight. All of ours are written by the event loop alone, so they are plain numbers in a dict keyed by their labels, and
become metric families only when somebody scrapes. Label values come from the configuration and from closed enums,
never from callers: the number of series is bounded.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from types import MappingProxyType

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from gateway.call import AttemptKind
from gateway.quotas.metrics import QuotaNumbers
from gateway.telemetry.record import RequestRecord

BATCH = 64  # requests counted in a row

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

# Seconds. Time to first token: OpenTelemetry's GenAI bounds, with longer queues on top. Between tokens: a small model
# on a fast device is below a millisecond.
FIRST_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30, 60)
PER_TOKEN_S = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.5,
    1,
    2.5,
)
DURATION_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)


@dataclass(slots=True)
class Histogram:
    """Counts below each bound of `bounds`, not yet accumulated, with one more place for what is above the last."""

    bounds: tuple[float, ...]
    total: float = 0.0
    counts: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Accumulated, as Prometheus wants them."""
        names = [*(repr(float(bound)) for bound in self.bounds), "+Inf"]
        return list(zip(names, accumulate(self.counts), strict=True))


@dataclass(slots=True)
class ModelNumbers:
    """What is counted for one model and operation."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    first_token: Histogram = field(default_factory=lambda: Histogram(FIRST_TOKEN_S))
    per_token: Histogram = field(default_factory=lambda: Histogram(PER_TOKEN_S))
    duration: Histogram = field(default_factory=lambda: Histogram(DURATION_S))


class Metrics:
    """All numbers of one process. Written on the event loop; `exposition` is what `/metrics` answers.

    `in_flight` is raised and lowered by the `Record` stage; `quota` is what was counted of limits. Engines and other
    sources of gauges are read when scraped.
    """

    def __init__(self, version: str) -> None:
        self.in_flight = 0
        self._finished: list[RequestRecord] = []  # not yet counted
        self._requests: dict[tuple[str, str, int, str], int] = {}
        self._errors: dict[str, int] = {}
        self._models: dict[tuple[str, str], ModelNumbers] = {}
        self._attempts: dict[tuple[str, str, str], int] = {}
        self._extra: dict[tuple[str, str, str], int] = {}  # attempts beyond a request's first
        self._departures: dict[str, int] = {}
        self._engines: dict[str, Callable[[], Mapping[str, float]]] = {}
        self._gauges: dict[str, tuple[str, Callable[[], float]]] = {}
        self._counters: dict[str, tuple[str, str, Callable[[], Mapping[str, int]]]] = {}
        self._families: list[Callable[[], Iterable[Metric]]] = []
        self.quota = QuotaNumbers()
        self._version = version
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def observe(self, record: RequestRecord) -> None:
        """Take a finished request. It is counted with others, in a row, or when somebody looks: that costs a third."""
        self._finished.append(record)
        if len(self._finished) == BATCH:
            self._count_finished()

    def _count_finished(self) -> None:
        finished, self._finished = self._finished, []
        for record in finished:
            self._count(record)

    def _count(self, record: RequestRecord) -> None:
        model = record.model or ""
        operation = record.operation or ""
        key = (model, operation, record.status, record.ending)
        self._requests[key] = self._requests.get(key, 0) + 1
        if record.error is not None:
            self._errors[record.error] = self._errors.get(record.error, 0) + 1
        if record.quota is not None:
            self.quota.count(record)
        for attempt in record.attempts:
            outcome = attempt.outcome.value if attempt.outcome is not None else "ignored"
            attempted = (attempt.upstream, outcome, attempt.error or "")
            self._attempts[attempted] = self._attempts.get(attempted, 0) + 1
            if attempt.kind is not AttemptKind.FIRST or attempt.lost:
                further = (attempt.upstream, attempt.kind.value, "lost" if attempt.lost else outcome)
                self._extra[further] = self._extra.get(further, 0) + 1
            if attempt.departure is not None:
                self._departures[attempt.upstream] = self._departures.get(attempt.upstream, 0) + 1
        if not model:
            return
        numbers = self._models.get((model, operation))
        if numbers is None:
            numbers = self._models[model, operation] = ModelNumbers()
        usage = record.usage
        numbers.prompt_tokens += usage.prompt
        numbers.cached_tokens += usage.cached
        numbers.completion_tokens += usage.completion
        numbers.duration.observe(record.duration_s)
        first = record.first_event_s
        if first is not None and record.stream:
            numbers.first_token.observe(first)
            if usage.completion > 1:
                numbers.per_token.observe((record.duration_s - first) / (usage.completion - 1))

    def watch_engine(self, model: str, stats: Callable[[], Mapping[str, float]]) -> None:
        """Report an engine's numbers (the fields of its `EngineStats`) under the name of the model that it serves."""
        self._engines[model] = stats

    def watch(self, name: str, about: str, read: Callable[[], float]) -> None:
        """Report one gauge that somebody else keeps. `name` without the prefix `penstock_`."""
        self._gauges[name] = (about, read)

    def watch_counts(self, name: str, about: str, label: str, read: Callable[[], Mapping[str, int]]) -> None:
        """Report a counter that somebody else keeps, by one label. `name` without the prefix `penstock_`."""
        self._counters[name] = (about, label, read)

    def watch_families(self, read: Callable[[], Iterable[Metric]]) -> None:
        """Report whole families that somebody else keeps."""
        self._families.append(read)

    def exposition(self) -> bytes:
        """Give everything in Prometheus' text format."""
        self._count_finished()
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yield the metric families; the registry calls this at each scrape."""
        build = GaugeMetricFamily("penstock_build_info", "The version that runs.", labels=["version"])
        build.add_metric([self._version], 1)
        yield build
        yield GaugeMetricFamily("penstock_requests_in_flight", "Requests under way.", value=self.in_flight)
        for name, (about, read) in self._gauges.items():
            yield GaugeMetricFamily(f"penstock_{name}", about, value=read())
        for name, (about, label, counts) in self._counters.items():
            yield _counter(name, about, (label,), (((value,), count) for value, count in counts().items()))
        requests, attempts = self._requests.items(), self._attempts.items()
        errors = (((label,), count) for label, count in self._errors.items())
        yield _counter("requests", "Requests by how they ended.", ("model", "operation", "status", "ending"), requests)
        yield _counter("errors", "Error answers by their label.", ("error",), errors)
        yield _counter("attempts", "Sendings to upstreams.", ("upstream", "outcome", "error"), attempts)
        extra = self._extra.items()
        yield _counter(
            "further_attempts", "Retries and hedges, and who lost to one.", ("upstream", "kind", "end"), extra
        )
        departures = (((upstream,), count) for upstream, count in self._departures.items())
        yield _counter("usage_departures", "Answers whose usage is not what we counted.", ("upstream",), departures)
        yield from self._model_families()
        yield from self._engine_families()
        yield from self.quota.families()
        for families in self._families:
            yield from families()

    def _model_families(self) -> Iterator[Metric]:
        labels = ("model", "operation")
        tokens = CounterMetricFamily(
            "penstock_tokens", "Tokens; `cached` is a part of `prompt`.", labels=[*labels, "kind"]
        )
        first = HistogramMetricFamily(
            "penstock_time_to_first_token_seconds", "Arrival to the first event of a stream.", labels=labels
        )
        between = HistogramMetricFamily(
            "penstock_time_per_output_token_seconds", "Mean time between a stream's tokens.", labels=labels
        )
        duration = HistogramMetricFamily("penstock_request_duration_seconds", "Arrival to the end.", labels=labels)
        for key, numbers in self._models.items():
            tokens.add_metric([*key, "prompt"], numbers.prompt_tokens)
            tokens.add_metric([*key, "cached"], numbers.cached_tokens)
            tokens.add_metric([*key, "completion"], numbers.completion_tokens)
            first.add_metric(key, numbers.first_token.buckets(), numbers.first_token.total)
            between.add_metric(key, numbers.per_token.buckets(), numbers.per_token.total)
            duration.add_metric(key, numbers.duration.buckets(), numbers.duration.total)
        yield from (tokens, first, between, duration)

    def _engine_families(self) -> Iterator[Metric]:
        stats = [(model, read()) for model, read in self._engines.items()]
        families: list[GaugeMetricFamily | CounterMetricFamily] = []
        for field_name, (name, about) in ENGINE_GAUGES.items():
            families.append(GaugeMetricFamily(f"penstock_engine_{name}", about, labels=["model"]))
            for model, numbers in stats:
                families[-1].add_metric([model], numbers[field_name])
        for field_name, about in ENGINE_COUNTERS.items():
            families.append(CounterMetricFamily(f"penstock_engine_{field_name}", about, labels=["model"]))
            for model, numbers in stats:
                families[-1].add_metric([model], numbers[field_name])
        yield from families


# Fields of the engine's `EngineStats`, with the metric's name where it says more than the field's.
ENGINE_GAUGES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "running": ("sequences_running", "Sequences in the running batch."),
        "waiting": ("sequences_waiting", "Sequences that wait for room."),
        "waiting_prefill_tokens": ("waiting_prefill_tokens", "Prompt tokens not yet computed."),
        "free_blocks": ("blocks_free", "KV blocks that hold nothing."),
        "cached_blocks": ("blocks_cached", "KV blocks kept for prefix hits, free for taking."),
        "total_blocks": ("blocks", "KV blocks in all."),
        "step_s": ("step_seconds", "Duration of a step, smoothed."),
        "step_share_outside_model": ("step_share_outside_model", "Part of a step outside the forward pass."),
    }
)
ENGINE_COUNTERS: Mapping[str, str] = MappingProxyType(
    {
        "steps": "Steps run.",
        "prompt_tokens": "Prompt tokens admitted.",
        "cached_tokens": "Prompt tokens found in the prefix index.",
        "generated_tokens": "Tokens generated.",
        "preemptions": "Sequences that lost their blocks and were recomputed.",
        "aborts": "Sequences ended from outside.",
        "failed_steps": "Steps that raised.",
        "memory_shortages": "Steps that found no memory.",
        "row_errors": "Answers that ended because their logits were not finite.",
        "stalls": "Steps that took longer than they may.",
        "preemption_storms": "Times when preemptions became as many as steps.",
    }
)


def _counter(
    name: str, about: str, labels: tuple[str, ...], series: Iterable[tuple[tuple[object, ...], int]]
) -> CounterMetricFamily:
    family = CounterMetricFamily(f"penstock_{name}", about, labels=labels)
    for key, count in series:
        family.add_metric([str(part) for part in key], count)
    return family
