"""How much an engine is given at a time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.engine_limit import EngineLimit, EngineLoad, EngineTerms


def load(step: int = 1, free: int = 90, *, waiting: int = 0, pace: float = 1000.0, step_s: float = 0.01) -> EngineLoad:
    return EngineLoad(step, free, 100, 16, waiting, pace, step_s)


def test_a_prompt_that_finds_its_blocks_and_the_reserve_is_let_in() -> None:
    limit = EngineLimit(EngineTerms(reserve=0.1))

    assert limit.fits(load(free=14), 63, 1)  # 64 tokens with the first of the answer: 4 blocks
    assert not limit.fits(load(free=14), 64, 1)


def test_an_engine_without_work_takes_whatever_comes_or_it_would_never_have_any() -> None:
    limit = EngineLimit(EngineTerms(reserve=0.5, first_token_s=0.5))
    limit.pledge(load(), 1500)

    assert limit.fits(load(), 1599, 0)
    assert not limit.fits(load(), 1599, 1)


def test_a_first_token_later_than_the_objective_is_not_begun() -> None:
    limit = EngineLimit(EngineTerms(first_token_s=1.0))

    assert limit.predict(load(waiting=500), 400) == pytest.approx(0.91)
    assert limit.fits(load(waiting=500), 400, 1)
    assert not limit.fits(load(waiting=700), 400, 1)
    assert limit.fits(load(waiting=10**6, pace=0.0), 400, 1)  # nothing is known yet
    assert limit.predict(load(pace=0.0), 400) is None


def test_while_steps_take_too_long_nobody_is_let_in() -> None:
    assert not EngineLimit(EngineTerms(step_s=0.1)).fits(load(step_s=0.2), 10, 1)


def test_a_burst_within_one_step_is_not_measured_against_the_same_emptiness() -> None:
    limit, now, taken = EngineLimit(EngineTerms(reserve=0.1)), load(free=50), 0
    while limit.fits(now, 63, 1):
        limit.pledge(now, 63)
        taken += 1

    assert taken == 10
    assert limit.snapshot().pledged_blocks == 40


def test_what_was_let_in_is_left_to_the_engine_from_the_second_step_on() -> None:
    limit = EngineLimit(EngineTerms(first_token_s=1.0))
    limit.pledge(load(1), 900)

    assert not limit.fits(load(1), 200, 1)
    assert not limit.fits(load(2), 200, 1)
    assert limit.fits(load(3), 200, 1)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 400), st.integers(0, 90)), max_size=60))
def test_no_more_blocks_are_promised_than_the_engine_said_were_free(actions: list[tuple[int, int, int]]) -> None:
    limit, step, free, since = EngineLimit(), 1, 90, 0
    for gone, tokens, left in actions:
        if gone:
            step, free, since = step + gone, left, 0
        now = load(step, free)
        if limit.fits(now, tokens, 1):
            limit.pledge(now, tokens)
            since += -(-(tokens + 1) // 16)

        assert since <= free


@pytest.mark.parametrize("wrong", [{"reserve": 1.0}, {"first_token_s": -1.0}, {"step_s": -1.0}])
def test_terms_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        EngineTerms(**wrong)
