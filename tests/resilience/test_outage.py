"""An upstream that fails for a minute: what it is sent meanwhile, and how soon it is used again. In virtual time."""

from random import Random

import pytest

from gateway.attempts.recovery import Recovery
from gateway.errors import UpstreamFailure
from policies.breaker import BreakerTerms
from policies.retry import Failure, RetryPolicy, RetryTerms
from policies.retry_budget import BudgetTerms
from tests.rig.simulated import UNAVAILABLE, Simulated, World
from tests.rig.virtual_time import START, run_virtually

RATE, DOWN, HEALED, OVER = 50, START + 10, START + 70, START + 90
NEVER_OPENS = BreakerTerms(consecutive=10**9, min_calls=10**9)
REFUSED = (UpstreamFailure.CONNECT, None)
UNBOUNDED = BudgetTerms(ratio=1000.0, floor_per_s=10_000.0)


def outage(
    *,
    breaker: BreakerTerms | None = None,
    budget: BudgetTerms | None = None,
    retry: RetryTerms | None = None,
    share: float = 1.0,
    failure: tuple[UpstreamFailure, int | None] = UNAVAILABLE,
    seed: int = 1,
) -> tuple[World, Simulated]:
    """Run 90 s of calls to an upstream of which `share` fails from the 10th to the 70th."""
    rng = Random(seed)
    upstream = Simulated(failing=lambda at: DOWN <= at < HEALED and rng.random() < share, failure=failure)
    terms = {upstream: breaker or BreakerTerms()}
    world = World(Recovery((upstream,), breakers=terms, budget=budget, retry=retry, rng=Random(seed)), (upstream,))
    run_virtually(world.offer(RATE, OVER - START))
    return world, upstream


def sent(upstream: Simulated, begin: float, end: float) -> int:
    return sum(begin <= at < end for at in upstream.sent)


@pytest.mark.fault_row(17)
def test_an_outage_is_noticed_within_two_seconds_probed_once_a_second_and_over_within_five() -> None:
    world, upstream = outage()

    assert sent(upstream, DOWN, HEALED) <= 1.2 * RATE * 60 + 3 * 60
    assert max(sent(upstream, DOWN + at / 4, DOWN + at / 4 + 0.999) for at in range(8, 4 * 59)) <= 1
    assert world.good(HEALED + 5, OVER) >= 0.95
    assert world.good(START, DOWN - 1) == 1.0
    assert (upstream.leased, upstream.running) == (0, 0)


def test_who_is_turned_away_meanwhile_learns_at_once_when_to_come_again() -> None:
    world, _ = outage()

    told = [each.error for each in world.answered if DOWN + 2 <= each.arrived < HEALED and not each.attempts]
    assert len(told) > 0.9 * RATE * 58
    assert {error.status for error in told if error is not None} == {503}
    waits = [int(error.headers["retry-after-ms"]) for error in told if error is not None]
    assert 0 < min(waits) <= max(waits) <= 4000


@pytest.mark.fault_row(10)
@pytest.mark.parametrize("defended", [True, False])
def test_who_finds_a_closed_door_is_at_the_next_one_in_the_same_moment(
    defended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The defence: no pause before another upstream."""
    if not defended:
        delay = RetryPolicy.delay

        def hesitant(
            self: RetryPolicy, failure: Failure, made: int, remaining_s: float, *, elsewhere: bool, client_retries: int
        ) -> float | None:
            return delay(self, failure, made, remaining_s, elsewhere=False, client_retries=client_retries)

        monkeypatch.setattr(RetryPolicy, "delay", hesitant)
    down = Simulated(failing=lambda _: True, failure=REFUSED, fails_after_s=0.001)
    well = Simulated()
    world = World(Recovery((down, well), rng=Random(1)), (down, well))
    run_virtually(world.offer(1, 20))

    assert all(each.error is None for each in world.answered)
    assert (max(each.first_event_s or 0.0 for each in world.answered) < 0.0511) is defended  # 1 ms more than a good one


@pytest.mark.fault_row(11, 17)
@pytest.mark.parametrize("failure", [UNAVAILABLE, (UpstreamFailure.RESET, None)])
@pytest.mark.parametrize("defended", [True, False])
def test_without_a_breaker_the_budget_holds_the_attempts(
    defended: bool, failure: tuple[UpstreamFailure, int | None]
) -> None:
    _, upstream = outage(breaker=NEVER_OPENS, budget=None if defended else UNBOUNDED, failure=failure)

    attempts = sent(upstream, DOWN, HEALED)
    assert (attempts <= 1.2 * RATE * 60 + 3 * 60) is defended
    assert defended or attempts > 2.5 * RATE * 60


@pytest.mark.fault_row(17)
@pytest.mark.parametrize("defended", [True, False])
def test_the_breaker_keeps_all_but_probes_away(defended: bool) -> None:
    _, upstream = outage(breaker=None if defended else NEVER_OPENS)

    assert (sent(upstream, DOWN + 2, HEALED) <= 60) is defended


@pytest.mark.parametrize("defended", [True, False])
def test_where_half_fails_retries_save_what_the_budget_pays_for_and_no_more_is_sent(defended: bool) -> None:
    world, upstream = outage(share=0.5, retry=None if defended else RetryTerms(max_attempts=1))

    assert sent(upstream, DOWN, HEALED) <= 1.5 * RATE * 60
    assert (world.good(DOWN, HEALED) > 0.53) is defended


@pytest.mark.fault_row(16)
def test_a_storm_of_429_is_cooled_down_and_its_retry_after_reaches_the_caller() -> None:
    """Every answer a 429 that asks for two minutes: nobody waits so long, and nobody asks again at once."""
    world, upstream = storm(BreakerTerms(), retry_after_s=110.0)

    assert sent(upstream, DOWN, DOWN + 60) <= 60 + 20
    assert all(len(each.attempts) <= 1 for each in world.answered)


def storm(
    breaker: BreakerTerms, budget: BudgetTerms | None = None, *, retry_after_s: float | None
) -> tuple[World, Simulated]:
    """Run 70 s of calls to an upstream that answers 429 from the 10th on."""
    refusal = (UpstreamFailure.STATUS, 429)
    upstream = Simulated(failing=lambda at: at >= DOWN, failure=refusal, retry_after_s=retry_after_s)
    world = World(Recovery((upstream,), breakers={upstream: breaker}, budget=budget, rng=Random(1)), (upstream,))
    run_virtually(world.offer(RATE, 70))
    return world, upstream


@pytest.mark.fault_row(16)
@pytest.mark.parametrize("retry_after_s", [None, 0.05])
@pytest.mark.parametrize("defended", [True, False])
def test_a_storm_of_429_is_no_storm_of_attempts(defended: bool, retry_after_s: float | None) -> None:
    """With the budget alone, and without it."""
    _, upstream = storm(NEVER_OPENS, None if defended else UNBOUNDED, retry_after_s=retry_after_s)

    assert (sent(upstream, DOWN, DOWN + 60) <= 1.2 * RATE * 60 + 3 * 60) is defended


@pytest.mark.parametrize("defended", [True, False])
def test_where_another_upstream_is_well_its_callers_notice_nothing(defended: bool) -> None:
    down = Simulated(failing=lambda _: True, name="down")
    well = Simulated(name="well")
    breakers = {down: BreakerTerms(), well: BreakerTerms()}
    budget = None if defended else BudgetTerms(ratio=0.0, floor_per_s=0.0)
    world = World(Recovery((down, well), breakers=breakers, budget=budget, rng=Random(1)), (down, well))
    run_virtually(world.offer(RATE, 30))

    assert (world.good(START, START + 30) > 0.99) is defended
    assert sent(down, START + 2, START + 30) <= 28
