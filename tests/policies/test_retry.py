"""Which failures are followed by another attempt, where, when and how often."""

from email.utils import formatdate
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import UpstreamFailure
from policies.outcome import Outcome
from policies.retry import (
    KINDS,
    Failure,
    RetryPolicy,
    RetryTerms,
    Where,
    advice,
    judge,
    told_wait_s,
)
from policies.retry_budget import RetryBudget

RESET = Failure("reset")
UNAVAILABLE = Failure("status", status=503)
STATUSES = st.integers(400, 599)


def policy(seed: int = 1, **terms: float) -> RetryPolicy:
    return RetryPolicy(RetryTerms(**terms), rng=Random(seed))  # type: ignore[arg-type]


# What may be retried.


def test_every_failure_that_an_attempt_can_meet_is_classified() -> None:
    assert {kind.value for kind in UpstreamFailure} <= set(KINDS)


@pytest.mark.parametrize("status", [400, 404, 413, 415, 422])
def test_what_the_request_is_to_blame_for_is_not_sent_again(status: int) -> None:
    assert judge(Failure("status", status=status)) == (Outcome.IGNORED, Where.NOWHERE)


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529])
def test_what_may_pass_is_retried_anywhere(status: int) -> None:
    assert judge(Failure("status", status=status)).where is Where.ANYWHERE


@pytest.mark.parametrize("status", [401, 403, 501])
def test_what_an_upstream_will_do_again_is_retried_elsewhere_only(status: int) -> None:
    failure = Failure("status", status=status)

    assert policy().delay(failure, 1, 60, elsewhere=False) is None
    assert policy().delay(failure, 1, 60, elsewhere=True) is not None


@given(st.sampled_from(sorted(KINDS)), st.booleans() | st.none())
def test_nothing_is_repeated_once_the_caller_has_seen_a_first_chunk(kind: str, told: bool | None) -> None:
    assert judge(Failure(kind, begun=True, should_retry=told)).where is Where.NOWHERE


@given(STATUSES, st.booleans())
def test_x_should_retry_decides_for_the_upstream_that_says_it_and_leaves_the_outcome(status: int, told: bool) -> None:
    plain, said = judge(Failure("status", status=status)), judge(Failure("status", status=status, should_retry=told))

    assert said.outcome is plain.outcome
    assert said.where is (Where.ANYWHERE if told else min(plain.where, Where.ELSEWHERE))


# When.


def test_another_upstream_is_tried_at_once_and_the_second_time_after_a_pause() -> None:
    tested = policy()

    assert tested.delay(RESET, 1, 60, elsewhere=True) == 0.0
    assert tested.delay(RESET, 2, 60, elsewhere=True) != 0.0


@given(st.integers(0, 2**32), st.integers(1, 40))
def test_a_pause_is_below_what_doubles_with_each_attempt_up_to_its_most(seed: int, made: int) -> None:
    pause = policy(seed, max_attempts=100).delay(RESET, made, 1e9, elsewhere=False)

    assert pause is not None
    assert 0 <= pause < min(2.0, 0.1 * 2 ** (made - 1))


def test_the_jitter_is_full_and_the_generator_decides() -> None:
    pauses = [policy(seed).delay(RESET, 2, 60, elsewhere=False) or 0.0 for seed in range(1000)]

    assert policy(7).delay(RESET, 2, 60, elsewhere=False) == pauses[7]
    assert min(pauses) < 0.01
    assert max(pauses) > 0.19
    assert 0.09 < sum(pauses) / len(pauses) < 0.11


def test_retry_after_is_waited_for_and_not_all_come_back_at_once() -> None:
    failure = Failure("status", status=429, retry_after_s=3.0)
    pauses = {policy(seed).delay(failure, 1, 60, elsewhere=False) for seed in range(10)}

    assert len(pauses) == 10
    assert all(pause is not None and 3.0 <= pause < 3.1 for pause in pauses)


@pytest.mark.parametrize(("told_s", "remaining_s"), [(5.0, 4.9), (31.0, 600.0)])
def test_retry_after_past_the_deadline_or_out_of_proportion_ends_the_attempts_there(
    told_s: float, remaining_s: float
) -> None:
    failure = Failure("status", status=503, retry_after_s=told_s)

    assert policy().delay(failure, 1, remaining_s, elsewhere=False) is None
    assert policy().delay(failure, 1, remaining_s, elsewhere=True) == 0.0


def test_nothing_is_sent_that_could_not_live_long_enough() -> None:
    assert policy().delay(RESET, 1, 0.04, elsewhere=True) is None
    assert policy().delay(RESET, 1, 0.06, elsewhere=True) == 0.0


# How often.


def test_three_attempts_a_request_over_all_upstreams_those_of_the_client_included() -> None:
    tested = policy()

    assert [tested.attempts_left(made) for made in range(1, 5)] == [2, 1, 0, 0]
    assert [tested.attempts_left(1, retries) for retries in range(4)] == [2, 1, 0, 0]
    assert tested.attempts_left(0, 5) == 1
    assert tested.delay(RESET, 3, 60, elsewhere=True) is None
    assert tested.delay(RESET, 1, 60, elsewhere=True, client_retries=2) is None


def test_the_client_is_told_not_to_go_on_where_we_have_given_up() -> None:
    assert advice(UNAVAILABLE, 0, budget_spent=False) is False
    assert advice(UNAVAILABLE, 2, budget_spent=True) is False
    assert advice(Failure("reset", begun=True), 2, budget_spent=False) is False
    assert advice(UNAVAILABLE, 2, budget_spent=False) is None


@pytest.mark.parametrize(
    ("retry_after", "retry_after_ms", "seconds"),
    [
        ("3", None, 3.0),
        ("3", "250", 0.25),
        ("0", None, 0.0),
        ("1.5", None, 1.5),
        ("3", "soon", 3.0),
        (None, None, None),
        ("soon", None, None),
        ("-1", None, None),
        ("nan", None, None),
        ("inf", None, None),
        (formatdate(1_000_090, usegmt=True), None, 90.0),
        (formatdate(999_000, usegmt=True), None, 0.0),
    ],
)
def test_retry_after_is_read_in_all_its_forms(
    retry_after: str | None, retry_after_ms: str | None, seconds: float | None
) -> None:
    assert told_wait_s(retry_after, retry_after_ms, 1_000_000.0) == seconds


@pytest.mark.parametrize("wrong", [{"max_attempts": 0}, {"base_s": -1}, {"least_s": -0.1}])
def test_terms_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        policy(**wrong)


# Together with the budget: 50 % failures, 50 calls a second, a client that makes three attempts of its own.


def simulate(*, defended: bool) -> float:
    """Give upstream attempts for each logical call."""
    rng, tested, budget = Random(3), policy(), RetryBudget()
    calls, attempts = 3000, 0
    for number in range(calls):
        now = 1000 + number / 50
        for client_retries in range(3):
            made, told, succeeded = 0, None, False
            while True:
                made += 1
                attempts += 1
                if rng.random() < 0.5:
                    budget.deposit(now)
                    succeeded = True
                    break
                if not defended:
                    if made == 3:
                        break
                    continue
                pause = tested.delay(UNAVAILABLE, made, 30, elsewhere=False, client_retries=client_retries)
                spent = pause is not None and not budget.withdraw(now)
                if pause is None or spent:
                    left = tested.attempts_left(made, client_retries)
                    told = advice(UNAVAILABLE, left, budget_spent=spent)
                    break
            if succeeded or told is False:
                break
    return attempts / calls


def test_with_half_of_all_attempts_failing_a_call_costs_at_most_one_and_a_half() -> None:
    assert simulate(defended=True) <= 1.5
    assert simulate(defended=False) > 1.9  # the control arm: three attempts here times three there
