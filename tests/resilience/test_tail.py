"""One call in twenty is slow: what hedges make of the tail, and what they cost. In virtual time."""

import asyncio
from collections.abc import Callable
from random import Random

import pytest

from gateway.attempts.recovery import Recovery
from policies.hedge import HedgeTerms
from policies.retry_budget import BudgetTerms
from tests.rig.simulated import Simulated, World
from tests.rig.virtual_time import START, run_virtually

RATE, SECONDS, LEARNT = 50, 120, START + 10


def bimodal(seed: int) -> Callable[[], float]:
    """First events after 40 to 60 ms, one in twenty after 2 s."""
    rng = Random(seed)
    return lambda: 2.0 if rng.random() < 0.05 else rng.uniform(0.04, 0.06)


def tail(*, hedge: HedgeTerms | None, budget: BudgetTerms | None = None) -> tuple[World, Simulated, Simulated]:
    first, second = (Simulated(first_event_s=bimodal(seed), name=str(seed)) for seed in (1, 2))
    world = World(Recovery((first, second), hedge=hedge, budget=budget, rng=Random(1)), (first, second))
    run_virtually(world.offer(RATE, SECONDS))
    return world, first, second


def quantile(world: World, share: float) -> float:
    firsts = sorted(each.first_event_s for each in world.answered if each.first_event_s and each.arrived > LEARNT)
    return firsts[int(share * len(firsts))]


@pytest.mark.fault_row(20)
def test_hedges_halve_the_tail_for_a_twentieth_more_attempts() -> None:
    plain, _, _ = tail(hedge=None)
    hedged, first, second = tail(hedge=HedgeTerms())

    assert quantile(hedged, 0.99) <= quantile(plain, 0.99) / 2
    assert quantile(hedged, 0.5) == pytest.approx(quantile(plain, 0.5), rel=0.05)
    calls = RATE * SECONDS
    assert len(first.sent) == calls
    assert len(second.sent) <= 0.05 * calls + 10  # the share, and what may be saved up
    assert [each for each in hedged.answered if each.error] == []


@pytest.mark.fault_row(20)
def test_each_call_is_used_once_and_each_loser_is_gone_when_the_winner_begins() -> None:
    world, first, second = tail(hedge=HedgeTerms())

    hedged = [each for each in world.answered if len(each.attempts) > 1]
    assert hedged
    assert all(each.usage is not None and each.usage.completion == 1 for each in world.answered)
    began = {
        attempt.first_event for each in hedged for attempt in each.attempts if not attempt.lost and attempt.first_event
    }
    assert {*first.left, *second.left} <= began
    assert (first.running, second.running) == (0, 0)


@pytest.mark.fault_row(20)
@pytest.mark.parametrize("defended", [True, False])
def test_with_an_empty_budget_nothing_is_hedged(defended: bool) -> None:
    empty = BudgetTerms(ratio=0.0, floor_per_s=0.0) if defended else None
    _, _, second = tail(hedge=HedgeTerms(), budget=empty)

    assert (second.sent == []) is defended


@pytest.mark.fault_row(20)
@pytest.mark.parametrize("defended", [True, False])
def test_where_all_become_slow_at_once_the_share_holds(defended: bool) -> None:
    """The quantile is of a minute, and everything is late for it."""
    loop_time = asyncio.get_running_loop
    first = Simulated(first_event_s=lambda: 0.05 if loop_time().time() < START + 30 else 0.5)
    second = Simulated(first_event_s=lambda: 0.5)
    terms = HedgeTerms() if defended else HedgeTerms(share=1.0, burst=10_000.0)
    budget = None if defended else BudgetTerms(ratio=1000.0)
    world = World(Recovery((first, second), hedge=terms, budget=budget, rng=Random(1)), (first, second))
    run_virtually(world.offer(RATE, 60))

    assert (len(second.sent) <= 0.05 * RATE * 60 + 10) is defended
