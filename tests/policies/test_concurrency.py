"""How many requests an HTTP upstream is given at a time, and how that number is found out."""

from heapq import heappop, heappush
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.concurrency import (
    AimdLimit,
    AimdTerms,
    ConcurrencyLimiter,
    FixedLimit,
    Gradient2Limit,
    GradientTerms,
    Limit,
)
from policies.outcome import Outcome

START = 1000.0
SUCCESS, IGNORED, DROPPED = Outcome.SUCCESS, Outcome.IGNORED, Outcome.DROPPED


def fill(limiter: ConcurrencyLimiter) -> int:
    taken = 0
    while limiter.acquire():
        taken += 1
    return taken


# Accounting.


def test_no_more_are_in_flight_than_the_limit_and_a_slot_that_is_given_back_is_free() -> None:
    limiter = ConcurrencyLimiter(FixedLimit(3))

    assert (fill(limiter), limiter.free) == (3, 0)
    limiter.release()
    assert (limiter.free, limiter.acquire(), limiter.acquire()) == (1, True, False)


def test_more_cannot_be_given_back_than_was_taken() -> None:
    with pytest.raises(AssertionError):
        ConcurrencyLimiter(FixedLimit(3)).release()


def test_a_limit_that_falls_below_what_is_in_flight_waits_until_enough_have_left() -> None:
    limiter = ConcurrencyLimiter(AimdLimit(AimdTerms(initial=4, backoff=0.5)))
    fill(limiter)
    limiter.sample(START, START, DROPPED, 100)

    assert (limiter.snapshot().limit, limiter.free) == (2, 0)
    limiter.release()
    limiter.release()
    assert not limiter.acquire()
    limiter.release()
    assert limiter.acquire()


@given(st.lists(st.tuples(st.sampled_from(["take", "give", "good", "bad", "none"]), st.floats(0, 5)), max_size=200))
@pytest.mark.parametrize("kind", ["aimd", "gradient"])
def test_a_limit_stays_within_its_bounds_and_what_is_in_flight_is_what_was_taken(
    kind: str, actions: list[tuple[str, float]]
) -> None:
    limit: Limit
    if kind == "aimd":
        limit = AimdLimit(AimdTerms(initial=5, least=2, most=8, slow_s=3.0))
    else:
        limit = Gradient2Limit(GradientTerms(initial=5, least=2, most=8))
    limiter, taken, now = ConcurrencyLimiter(limit), 0, START
    for action, seconds in actions:
        now += seconds
        before = limit.bound
        if action == "take":
            may = limiter.free > 0
            assert limiter.acquire() is may
            taken += may
        elif action == "give" and taken:
            limiter.release()
            taken -= 1
        elif action == "none":
            limiter.sample(now, now - seconds, IGNORED, 100)
            assert limit.bound == before
        elif action in ("good", "bad"):
            limiter.sample(now, now - seconds, SUCCESS if action == "good" else DROPPED, 100, seconds)

        assert 2 <= limit.bound <= 8
        assert limiter.in_flight == taken


# AIMD.


def test_aimd_grows_by_one_a_round_trip_while_it_is_used_and_not_otherwise() -> None:
    used, idle = AimdLimit(AimdTerms(initial=10)), AimdLimit(AimdTerms(initial=10))
    for _ in range(10):
        used.update(START, START, 10, SUCCESS, 0.1, 100)
        idle.update(START, START, 4, SUCCESS, 0.1, 100)

    assert 10.9 < used.bound < 11
    assert idle.bound == 10


def test_many_drops_of_one_event_cut_once() -> None:
    limit = AimdLimit(AimdTerms(initial=100))
    for _ in range(50):
        limit.update(START + 1, START, 100, DROPPED, 0.0, 100)

    assert limit.bound == 90
    limit.update(START + 2, START + 1, 100, DROPPED, 0.0, 100)
    assert limit.bound == 81


def test_a_late_first_event_is_a_drop_where_the_operator_says_so() -> None:
    limit = AimdLimit(AimdTerms(initial=10, slow_s=2.0))
    limit.update(START + 3, START, 10, SUCCESS, 3.0, 100)

    assert limit.bound == 9


# Gradient.


def test_long_prompts_do_not_look_like_a_full_upstream() -> None:
    """Lengths are mixed and their share shifts; the upstream itself takes 1 ms for 8 tokens, whoever else is there."""
    limit, rng = Gradient2Limit(), Random(1)
    for number in range(3000):
        tokens = rng.choice([200, 200, 200, 3_000] if number < 1500 else [200, 3_000, 20_000, 20_000])
        limit.update(START + number, START + number, int(limit.bound), SUCCESS, tokens / 8000, tokens)

        assert limit.bound >= 20
    assert limit.bound == 200


def test_a_limit_does_not_follow_attempts_from_before_it_changed() -> None:
    limit = Gradient2Limit(GradientTerms(initial=20, samples=1))
    limit.update(START, START, 20, SUCCESS, 0.1, 200)
    after = limit.bound
    for number in range(50):
        limit.update(START + 1, START - 1, 20, SUCCESS, 5.0, 200)

        assert limit.bound == after, number
    limit.update(START + 1, START + 0.1, 20, SUCCESS, 5.0, 200)
    assert limit.bound != after


def test_spread_alone_does_not_hold_it_down() -> None:
    limit, rng = Gradient2Limit(), Random(2)
    for number in range(2000):
        limit.update(START + number, START + number, int(limit.bound), SUCCESS, rng.lognormvariate(-1, 0.5), 200)

    assert limit.bound > 150


def overload(limit: Limit, *, slots: int, seconds: int, rate: float) -> tuple[list[float], list[int]]:
    """An upstream with so many slots and a queue: 1 s an answer, its first event after 0.1 s. Gives waits, limits."""
    limiter, rng = ConcurrencyLimiter(limit), Random(3)
    free_at = [START] * slots
    events: list[tuple[float, bool, float, float]] = []  # when, whether it is the end, when it began, the first event
    waits, limits = [], []
    for tick in range(int(seconds * rate)):
        now = START + tick / rate
        while events and events[0][0] <= now:
            at, ended, began, first = heappop(events)
            if ended:
                limiter.release()
            else:
                limiter.sample(at, began, SUCCESS, 200, first)
        if limiter.acquire():
            begin = max(heappop(free_at), now)
            hold = rng.uniform(0.8, 1.2)
            heappush(free_at, begin + hold)
            first = begin - now + 0.1
            waits.append(first)
            heappush(events, (now + first, False, now, first))
            heappush(events, (begin + hold, True, now, first))
        limits.append(limiter.snapshot().limit)
    return waits, limits


def test_an_overloaded_upstream_is_found_out_and_its_slots_stay_busy() -> None:
    waits, limits = overload(Gradient2Limit(), slots=20, seconds=60, rate=100)
    settled = limits[len(limits) // 2 :]

    assert min(settled) >= 20
    assert max(settled) <= 25
    assert sorted(waits[len(waits) // 2 :])[len(waits) // 4] < 0.5
    _, unbound = overload(FixedLimit(200), slots=20, seconds=60, rate=100)
    assert unbound[-1] == 200


def test_with_room_to_spare_the_limit_is_not_what_binds() -> None:
    waits, limits = overload(Gradient2Limit(), slots=100, seconds=30, rate=50)

    assert max(waits) == pytest.approx(0.1)
    assert limits[-1] > 50


@pytest.mark.parametrize("wrong", [{"initial": 0}, {"least": 30}, {"most": 10}])
def test_terms_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        AimdTerms(**wrong)
    with pytest.raises(ValueError, match="expected"):
        GradientTerms(**wrong)
    with pytest.raises(ValueError, match="at least 1"):
        FixedLimit(0)


def test_an_answer_that_came_whole_tells_of_no_time() -> None:
    counted, timed = ConcurrencyLimiter(AimdLimit(AimdTerms(slow_s=1.0))), ConcurrencyLimiter(Gradient2Limit())
    for limiter in (counted, timed):
        fill(limiter)
        for second in range(100):
            limiter.sample(START + second, START + second, SUCCESS, 100, None)

    assert counted.snapshot().limit > 20
    assert timed.snapshot().limit == 20
