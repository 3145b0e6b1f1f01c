"""When a second attempt is sent beside a late one, and that it takes the tail away at a price of one in twenty."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.hedge import HedgePolicy, HedgeTerms
from policies.histogram import RotatingHistogram
from policies.length_class import length_class
from policies.retry_budget import BudgetTerms, RetryBudget

START = 1000.0


def taught(*seconds: float, prompt_tokens: int = 100, **terms: float) -> HedgePolicy:
    policy = HedgePolicy(HedgeTerms(**terms))  # type: ignore[arg-type]
    for each in seconds:
        policy.observe(START, prompt_tokens, each)
    return policy


def ask(policy: HedgePolicy, tokens: int = 100, **more: float | None) -> float | None:
    return policy.delay(START, tokens, 60.0, acts=False, **more)


def test_a_hedge_waits_for_one_and_a_half_times_what_nine_of_ten_took() -> None:
    policy = taught(*[0.1] * 90, *[0.2] * 10)

    assert ask(policy) == pytest.approx(0.15, rel=0.095)


def test_nothing_is_hedged_while_too_little_is_known() -> None:
    policy = taught(*[0.1] * 49)

    assert ask(policy) is None
    policy.observe(START, 100, 0.1)
    assert ask(policy) is not None


def test_prompts_are_compared_with_their_like() -> None:
    policy = taught(*[0.1] * 50)

    assert ask(policy, 100) is not None
    assert ask(policy, 10_000) is None


@given(st.integers(0, 2_000_000))
def test_a_class_of_lengths_spans_the_factor_four(tokens: int) -> None:
    kind = length_class(tokens)

    assert tokens <= 256 * 4**kind or kind == 5
    assert kind == 0 or tokens > 64 * 4**kind


def test_a_late_prediction_is_hedged_at_once_unless_the_other_is_later() -> None:
    policy = taught(objective_s=1.0)

    assert ask(policy, predicted_s=1.1) == 0.0
    assert ask(policy, predicted_s=1.1, rival_s=0.5) == 0.0
    assert ask(policy, predicted_s=1.1, rival_s=1.2) is None
    assert ask(policy, predicted_s=0.9) is None


def test_tools_that_act_are_never_called_by_two() -> None:
    policy = taught(*[0.1] * 100, objective_s=1.0)

    assert policy.delay(START, 100, 60.0, acts=True) is None
    assert policy.delay(START, 100, 60.0, acts=True, predicted_s=9.0) is None


def test_nothing_is_hedged_that_the_deadline_would_cut_off_first() -> None:
    policy = taught(*[1.0] * 100)

    assert policy.delay(START, 100, 1.0, acts=False) is None
    assert policy.delay(START, 100, 2.0, acts=False) is not None


def test_what_was_slow_two_periods_ago_is_forgotten() -> None:
    policy = taught(*[5.0] * 100, period_s=60)

    assert policy.delay(START + 61, 100, 60.0, acts=False) is not None
    assert policy.delay(START + 130, 100, 60.0, acts=False) is None


@given(st.lists(st.floats(0, 2000), min_size=1, max_size=300), st.sampled_from([0.1, 0.5, 0.9, 0.99]))
def test_a_quantile_is_its_own_value_or_up_to_a_tenth_more(durations: list[float], q: float) -> None:
    histogram = RotatingHistogram(q, min_points=1, period_s=60)
    for duration in durations:
        histogram.add(START, duration)
    exact = sorted(durations)[max(-(-int(q * 1000) * len(durations) // 1000) - 1, 0)]
    known = histogram.quantile(START)

    assert known is not None
    assert min(exact, 1000) * (1 - 1e-9) <= known <= max(exact, 0.001) * 1.0906


@given(st.lists(st.integers(0, 9), max_size=400), st.sampled_from([0.0, 0.05, 0.3]))
def test_no_more_are_hedged_than_the_share_of_requests_and_the_burst(asked: list[int], share: float) -> None:
    policy = HedgePolicy(HedgeTerms(share=share))
    taken = 0
    for number, times in enumerate(asked, 1):
        ask(policy)
        taken += sum(policy.take() for _ in range(times))

        assert taken <= share * number + 1 + 1e-9
    assert policy.snapshot(START).hedged == taken


def race(*, paid: bool = True, hedged: bool = True, calls: int = 4000) -> tuple[float, float]:
    """Give the p99 of the first token and the extra load, one in twenty calls slow, the first quarter left out."""
    rng, policy = Random(5), HedgePolicy()
    budget = RetryBudget(BudgetTerms() if paid else BudgetTerms(ratio=0.0, floor_per_s=0.0))

    def draw() -> float:
        return rng.uniform(1.5, 2.5) if rng.random() < 0.05 else rng.lognormvariate(-2.3, 0.3)

    waits, extra = [], 0
    for number in range(calls):
        now = START + number / 50
        first = draw()
        wait = policy.delay(now, 300, 60.0, acts=False) if hedged else None
        if wait is not None and first > wait and policy.take() and budget.withdraw(now + wait):
            extra += number >= calls // 4
            second = wait + draw()
            policy.observe(now, 300, min(first, second))  # a loser by what it had waited
            first = min(first, second)
        else:
            policy.observe(now, 300, first)
        budget.deposit(now)
        waits.append(first)
    kept = sorted(waits[calls // 4 :])
    return kept[int(0.99 * len(kept))], extra / len(kept)


def test_a_bimodal_tail_is_halved_at_one_in_twenty_more() -> None:
    alone, _ = race(hedged=False)
    together, extra = race()

    assert together <= alone / 2
    assert extra <= 0.05


def test_with_an_empty_budget_nothing_is_hedged() -> None:
    alone, _ = race(hedged=False)
    p99, extra = race(paid=False)

    assert (p99, extra) == (alone, 0.0)


@pytest.mark.parametrize("wrong", [{"quantile": 1.0}, {"share": 1.5}, {"burst": 0}, {"min_points": 0}])
def test_terms_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        HedgeTerms(**wrong)  # type: ignore[arg-type]
