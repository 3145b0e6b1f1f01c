"""Retries, budget, breakers and hedges: from the file to the policies, and from the policies to the numbers."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from gateway.app import App
from gateway.assembly import assemble
from gateway.call import Attempt, AttemptKind
from gateway.configuration.config import BreakerConfig, HedgeConfig, RetryBudgetConfig, RetryConfig
from gateway.configuration.loading import load
from gateway.quotas.store import QuotaStore
from gateway.telemetry.log_line import LineWriter
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.record import RequestRecord
from policies.breaker import BreakerTerms, Cause
from policies.hedge import HedgeTerms
from policies.outcome import Outcome
from policies.retry import RetryTerms
from policies.retry_budget import BudgetTerms

FILE = """
models:
  m:
    upstreams: [a, b]
    retry: {max_attempts: 2, base_s: 0.5}
    retry_budget: {ratio: 0.1, floor_per_s: 1}
    hedge: {objective_s: 2.0, tools_act: false}
  plain: {upstreams: [b]}
upstreams:
  a: {url: http://127.0.0.1:1, breaker: {consecutive: 5, slow_s: 3}}
  b: {url: http://127.0.0.1:2, breaker: {enabled: false}}
"""


def test_what_is_left_out_is_what_the_policies_think_best() -> None:
    assert RetryConfig().terms() == RetryTerms()
    assert RetryBudgetConfig().terms() == BudgetTerms()
    assert HedgeConfig().terms() == HedgeTerms()
    assert BreakerConfig().terms() == BreakerTerms()


@asynccontextmanager
async def assembled(folder: Path, metrics: Metrics) -> AsyncIterator[App]:
    """What the file makes."""
    (folder / "penstock.yaml").write_text(FILE)
    loaded = load(folder / "penstock.yaml", environ={})
    quotas = QuotaStore(loaded.config.store, loaded.secrets, say=print)
    app = await assemble(loaded, metrics, [], quotas)
    try:
        yield app
    finally:
        await app.aclose()
        await quotas.aclose()


async def test_a_models_recovery_is_as_the_file_says(tmp_path: Path) -> None:
    async with assembled(tmp_path, Metrics("test")) as app:
        tuned, plain = (model.recovery for model in app._models)
        assert (tuned.retry.terms.max_attempts, tuned.retry.terms.base_s) == (2, 0.5)
        assert (tuned.budget.terms.ratio, tuned.budget.terms.floor_per_s) == (0.1, 1)
        ((upstream, breaker),) = tuned.breakers.items()
        assert (upstream.name, breaker.terms.consecutive, breaker.terms.slow_s) == ("a", 5, 3)
        assert {hedge.terms.objective_s for hedge in tuned.hedges.values()} == {2.0}
        assert len(tuned.hedges) == 2
        assert not tuned.tools_act
        assert (plain.breakers, plain.hedges, plain.tools_act) == ({}, {}, True)


def numbers(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = text_string_to_metric_families(metrics.exposition().decode())
    return {
        (each.name.removeprefix("penstock_"), frozenset(each.labels.items())): each.value
        for family in families
        for each in family.samples
    }


async def test_budget_breakers_and_hedges_are_told(tmp_path: Path) -> None:
    metrics = Metrics("test")
    async with assembled(tmp_path, metrics) as app:
        recovery = app._models[0].recovery
        upstream = next(iter(recovery.breakers))
        recovery.breakers[upstream].trip(1.0, Cause.PROBE)
        assert recovery.hedges[upstream].take()
        assert recovery.budget.withdraw(1.0)
        told = numbers(metrics)

    where = {"model": "m", "upstream": "a"}.items()
    assert told["breaker_state", frozenset([*where, ("state", "open")])] == 1
    assert told["breaker_state", frozenset([*where, ("state", "closed")])] == 0
    assert told["breaker_opened_total", frozenset(where)] == 1
    assert told["hedges_total", frozenset(where)] == 1
    assert told["retry_budget_spent_total", frozenset([("model", "m")])] == 1


def test_retries_hedges_and_losers_are_counted_and_logged() -> None:
    attempts = [
        Attempt("a", 0.0, ended=1.0, outcome=Outcome.IGNORED, lost=True),
        Attempt("b", 0.5, AttemptKind.HEDGE, ended=1.0, outcome=Outcome.SUCCESS),
    ]
    record = RequestRecord("id", 0.0, "/v1/chat/completions", status=200, attempts=attempts)
    metrics = Metrics("test")
    metrics.observe(record)

    told = numbers(metrics)
    for upstream, kind, end in (("a", "first", "lost"), ("b", "hedge", "success")):
        labels = frozenset([("upstream", upstream), ("kind", kind), ("end", end)])
        assert told["further_attempts_total", labels] == 1
    first, hedge = json.loads(LineWriter().write(record))["attempts"]
    assert first == {"upstream": "a", "outcome": "ignored", "lost": True, "ms": 1000.0}
    assert hedge == {"upstream": "b", "outcome": "success", "kind": "hedge", "ms": 500.0}
