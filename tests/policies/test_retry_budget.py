"""One budget for retries, hedges and fallbacks: never more than successes and the floor pay for."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.retry_budget import BudgetTerms, RetryBudget

START = 1000.0
STEPS = st.lists(st.tuples(st.floats(0, 4, allow_nan=False), st.booleans(), st.integers(1, 20)), max_size=80)


def budget(ratio: float = 0.2, floor: float = 0.0, ttl: float = 10.0) -> RetryBudget:
    return RetryBudget(BudgetTerms(ratio, floor, ttl))


def test_five_successes_pay_for_one_extra_attempt_and_four_do_not() -> None:
    four, five = budget(), budget()
    for _ in range(4):
        four.deposit(START)
    for _ in range(5):
        five.deposit(START)

    assert [four.withdraw(START), five.withdraw(START), five.withdraw(START)] == [False, True, False]


def test_a_retry_is_not_sent_when_the_budget_is_empty() -> None:
    assert not budget().withdraw(START)


def test_deposits_are_forgotten_after_their_time_to_live() -> None:
    kept, gone = budget(), budget()
    for each in (kept, gone):
        for _ in range(5):
            each.deposit(START)

    assert kept.withdraw(START + 8.9)
    assert not gone.withdraw(START + 10.1)


def test_the_floor_lets_a_beginner_retry_a_second_s_worth_at_once_and_then_as_time_goes() -> None:
    beginner = budget(floor=3)

    assert [beginner.withdraw(START) for _ in range(4)] == [True, True, True, False]
    assert not beginner.withdraw(START + 0.3)
    assert beginner.withdraw(START + 0.34)
    assert [beginner.withdraw(START + 60) for _ in range(4)] == [True, True, True, False]


def test_a_floor_below_one_a_second_still_lets_one_through_in_its_time() -> None:
    slow = budget(floor=0.1)

    assert [slow.withdraw(START + at) for at in (0, 9.9, 10.1, 20.0, 20.2)] == [True, False, True, False, True]


def test_the_floor_is_spent_before_the_deposits() -> None:
    both = budget(floor=1)
    for _ in range(5):
        both.deposit(START)

    assert [both.withdraw(START) for _ in range(3)] == [True, True, False]
    assert both.snapshot(START).balance == 0


@given(st.sampled_from([0.0, 0.1, 0.2, 0.5, 2.0]), st.sampled_from([0.0, 0.3, 3.0, 10.0]), STEPS)
def test_no_interval_lets_through_more_than_its_successes_and_its_floor_pay_for(
    ratio: float, floor: float, steps: list[tuple[float, bool, int]]
) -> None:
    tested, now = budget(ratio, floor), START
    successes: list[float] = []
    extra: list[float] = []
    for gap, success, times in steps:
        now += gap
        for _ in range(times):
            if success:
                tested.deposit(now)
                successes.append(now)
            elif tested.withdraw(now):
                extra.append(now)

    for first, begin in enumerate(extra):
        for last in range(first, len(extra)):
            end = extra[last]
            paid = ratio * sum(begin - 10 <= at <= end for at in successes)
            assert last - first + 1 <= paid + floor * (end - begin) + (max(1.0, floor) if floor else 0) + 1e-6


def test_in_a_full_outage_of_a_minute_attempts_stay_within_a_fifth_and_three_a_second() -> None:
    tested, rng, offered, attempts = RetryBudget(), Random(1), 0, 0
    for tick in range(70 * 50):  # 50 calls a second: 10 s well, 60 s of outage
        now = START + tick / 50
        down = now >= START + 10
        if not down:
            tested.deposit(now)
            continue
        offered += 1
        attempts += 1
        for _ in range(2):
            if not tested.withdraw(now + rng.random() * 0.01):
                break
            attempts += 1

    assert attempts <= 1.2 * offered + 3 * 60


@pytest.mark.parametrize("terms", [(-0.1, 3, 10), (0.2, -1, 10), (0.2, 3, 0.5), (0.2, 3, 61)])
def test_terms_out_of_range_are_refused(terms: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        BudgetTerms(*terms)


def test_the_snapshot_counts_what_was_let_through_and_what_not() -> None:
    tested = budget(1.0)
    tested.deposit(START)
    tested.deposit(START)
    tested.withdraw(START)
    tested.withdraw(START)
    tested.withdraw(START)
    snapshot = tested.snapshot(START)

    assert (snapshot.balance, snapshot.withdrawn, snapshot.refused) == (0, 2, 1)
