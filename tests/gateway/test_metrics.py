"""What /metrics tells: every request once, with labels that no caller can make up."""

from dataclasses import asdict

import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine.output import EngineStats
from gateway.call import Attempt, Operation, Usage
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.record import Ending, RequestRecord
from policies.outcome import Outcome


def record(**changes: object) -> RequestRecord:
    made = RequestRecord("id", 0.0, "/v1/chat/completions", status=200, operation=Operation.CHAT, model="demo")
    for field, value in changes.items():
        setattr(made, field, value)
    return made


def samples(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = text_string_to_metric_families(metrics.exposition().decode())
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return samples(metrics)[f"penstock_{name}", frozenset(labels.items())]


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("1.2.3")


def test_a_request_is_counted_by_how_it_ended(metrics: Metrics) -> None:
    metrics.observe(record())
    metrics.observe(record())
    metrics.observe(record(status=499, ending=Ending.LEFT))

    labels = {"model": "demo", "operation": "chat"}
    assert value(metrics, "requests_total", **labels, status="200", ending="ok") == 2
    assert value(metrics, "requests_total", **labels, status="499", ending="left") == 1
    assert value(metrics, "request_duration_seconds_count", **labels) == 3


def test_what_a_caller_asked_for_is_no_label_unless_it_is_served(metrics: Metrics) -> None:
    metrics.observe(record(model=None, asked_model="../../etc/passwd", status=404, error="model_not_found"))

    assert "passwd" not in metrics.exposition().decode()
    assert value(metrics, "errors_total", error="model_not_found") == 1


def test_tokens_are_counted_by_kind(metrics: Metrics) -> None:
    metrics.observe(record(usage=Usage(prompt=10, completion=4, cached=3)))

    counted = {
        kind: value(metrics, "tokens_total", model="demo", operation="chat", kind=kind)
        for kind in ("prompt", "cached", "completion")
    }
    assert counted == {"prompt": 10, "cached": 3, "completion": 4}


def test_a_streams_latencies_are_told_apart(metrics: Metrics) -> None:
    metrics.observe(record(stream=True, first_event_s=0.5, duration_s=2.5, usage=Usage(completion=5)))

    labels = {"model": "demo", "operation": "chat"}
    assert value(metrics, "time_to_first_token_seconds_sum", **labels) == 0.5
    assert value(metrics, "time_per_output_token_seconds_sum", **labels) == 0.5
    assert value(metrics, "time_per_output_token_seconds_bucket", **labels, le="0.3") == 0
    assert value(metrics, "time_per_output_token_seconds_bucket", **labels, le="0.5") == 1
    assert value(metrics, "time_per_output_token_seconds_bucket", **labels, le="+Inf") == 1


def test_attempts_are_counted_by_upstream_and_outcome(metrics: Metrics) -> None:
    failed = Attempt("a", 0.0, ended=1.0, outcome=Outcome.DROPPED, error="reset")
    metrics.observe(record(attempts=[failed, Attempt("b", 1.0, ended=2.0, outcome=Outcome.SUCCESS)]))

    assert value(metrics, "attempts_total", upstream="a", outcome="dropped", error="reset") == 1
    assert value(metrics, "attempts_total", upstream="b", outcome="success", error="") == 1


def test_gauges_of_others_are_read_when_scraped(metrics: Metrics) -> None:
    numbers = [1.0]
    metrics.watch("connections", "Open connections.", lambda: numbers[0])
    metrics.in_flight = 3
    numbers[0] = 7.0

    assert value(metrics, "connections") == 7
    assert value(metrics, "requests_in_flight") == 3


def test_an_engines_numbers_are_reported_under_its_model(metrics: Metrics) -> None:
    metrics.watch_engine("demo", lambda: asdict(EngineStats(running=3, free_blocks=20, total_blocks=64, steps=9)))

    assert value(metrics, "engine_sequences_running", model="demo") == 3
    assert value(metrics, "engine_blocks_free", model="demo") == 20
    assert value(metrics, "engine_blocks", model="demo") == 64
    assert value(metrics, "engine_steps_total", model="demo") == 9


def test_version_and_process_are_told(metrics: Metrics) -> None:
    assert value(metrics, "build_info", version="1.2.3") == 1
    assert "process_resident_memory_bytes" in metrics.exposition().decode()
