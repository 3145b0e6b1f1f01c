"""The arithmetic of limits: exact at every value, honest in every interval, true about when to come back."""

from calendar import monthrange
from datetime import UTC, datetime
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.bucket import EXACT, NEVER, Kind, Level, Limit
from policies.period import DAY_US, day, month

START = 1_790_000_000_000_000
SECOND, MINUTE, HOUR = 1_000_000, 60_000_000, 3_600_000_000
PERIODS = st.sampled_from([SECOND, MINUTE, HOUR, DAY_US])
ARRIVALS = st.lists(st.tuples(st.integers(0, 90 * SECOND), st.integers(1, 300)), min_size=1, max_size=60)


def take(level: Level, tokens: int, now: int) -> bool:
    """Spend at once if that many are free."""
    level.advance(now)
    if tokens > level.free():
        return False
    level.spent += tokens * level.terms.unit
    return True


@given(st.integers(1, 10**6), PERIODS, st.integers(1, 400) | st.none(), ARRIVALS)
def test_no_interval_admits_more_than_capacity_and_refill(
    amount: int, period: int, capacity: int | None, arrivals: list[tuple[int, int]]
) -> None:
    limit = Limit.bucket("b", amount, period, capacity=capacity)
    level, now = Level(limit, START), START
    admitted: list[tuple[int, int]] = []
    for gap, tokens in arrivals:
        now += gap
        if take(level, tokens, now):
            admitted.append((now, tokens))

    for first, (begin, _) in enumerate(admitted):
        total = 0
        for end, tokens in admitted[first:]:
            total += tokens
            assert total <= limit.capacity + Fraction(amount * (end - begin), period)


@given(st.integers(1, 10**6), PERIODS, ARRIVALS)
def test_a_bucket_is_what_fractions_say_it_is(amount: int, period: int, arrivals: list[tuple[int, int]]) -> None:
    limit = Limit.bucket("b", amount, period, capacity=500)
    level, now = Level(limit, START), START
    spent = Fraction(0)
    for gap, tokens in arrivals:
        now += gap
        spent = max(Fraction(0), spent - Fraction(gap * amount, period))
        admits = spent + tokens <= 500

        assert take(level, tokens, now) is admits
        if admits:
            spent += tokens
        if limit.tick_us == 1:
            assert Fraction(level.spent, limit.unit) == spent


@given(st.integers(1, 10**6), PERIODS, st.integers(1, 400), st.integers(0, 400), st.integers(0, 10**7))
def test_whoever_waits_as_long_as_told_is_let_in_and_not_a_tick_earlier(
    amount: int, period: int, capacity: int, spent: int, phase: int
) -> None:
    limit = Limit.bucket("b", amount, period, capacity=capacity)
    level = Level(limit, START)
    take(level, min(spent, capacity), START)
    now = START + phase
    level.advance(now)
    need = level.free() + 1
    if need > capacity:
        return
    wait = level.wait_us(need, now)

    assert wait > 0
    assert not take(level, need, now + wait - limit.tick_us)
    assert take(level, need, now + wait)


@pytest.mark.parametrize("capacity", [1, 2, 7, 1000, 10**9])
def test_a_limit_is_hit_exactly_at_its_value(capacity: int) -> None:
    for limit in (
        Limit.bucket("b", capacity, MINUTE),
        Limit.budget("d", Kind.DAY, capacity),
        Limit.budget("m", Kind.MONTH, capacity),
    ):
        level = Level(limit, START)

        assert not take(level, capacity + 1, START)
        assert take(level, capacity, START)
        assert not take(level, 1, START)


def test_looking_often_changes_nothing() -> None:
    often = Level(Limit.bucket("b", 7, MINUTE), START)
    seldom = Level(Limit.bucket("b", 7, MINUTE), START)
    take(often, 7, START)
    take(seldom, 7, START)
    for now in range(START, START + SECOND, 37):
        often.advance(now)
    often.advance(START + SECOND)
    seldom.advance(START + SECOND)

    assert (often.spent, often.at) == (seldom.spent, seldom.at)


def test_what_is_held_does_not_flow_back() -> None:
    level = Level(Limit.bucket("b", 60, MINUTE), START)
    level.held = 60
    level.advance(START + HOUR)

    assert level.free() == 0


def test_the_need_that_no_wait_can_meet_is_told_so() -> None:
    assert Level(Limit.bucket("b", 60, MINUTE), START).wait_us(61, START) == NEVER


@given(st.integers(1, 10**9), PERIODS, st.integers(1, 10**9))
def test_numbers_stay_within_what_a_double_counts(amount: int, period: int, capacity: int) -> None:
    try:
        limit = Limit.bucket("b", amount, period, capacity=capacity)
    except ValueError:
        return  # refused, with the advice to choose a rounder amount

    assert limit.capacity * limit.unit <= EXACT
    assert Fraction(limit.rate, limit.unit * limit.tick_us) == Fraction(amount, period)


@pytest.mark.parametrize(
    ("amount", "period", "capacity"), [(0, MINUTE, 5), (-1, MINUTE, 5), (5, 0, 5), (5, MINUTE, -1)]
)
def test_a_bucket_of_nonsense_is_refused(amount: int, period: int, capacity: int) -> None:
    with pytest.raises(ValueError, match="expected positive"):
        Limit.bucket("b", amount, period, capacity=capacity)


def test_new_terms_neither_forgive_nor_invent() -> None:
    level = Level(Limit.bucket("b", 100, MINUTE), START)
    take(level, 90, START)
    level.agree(Limit.bucket("b", 7, HOUR, capacity=50), START)

    assert level.free() == -40

    level.agree(Limit.bucket("b", 1000, SECOND, capacity=200), START)

    assert level.free() == 110


@pytest.mark.fault_row(35)
def test_a_clock_set_back_gives_nothing_and_freezes_nothing() -> None:
    level = Level(Limit.bucket("b", 60, MINUTE), START)
    take(level, 60, START)
    level.advance(START - HOUR)

    assert level.free() == 0

    level.advance(START - HOUR + SECOND)

    assert level.free() == 1


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_shares_together_allow_no_more_than_the_whole(parts: int) -> None:
    limit = Limit.bucket("b", 100, MINUTE)
    share = limit.share(parts)

    assert share.capacity * parts <= limit.capacity
    assert Fraction(share.rate * parts, share.unit) == Fraction(limit.rate, limit.unit)


@given(st.integers(0, 10**17))
def test_the_month_is_the_calendars(now: int) -> None:
    at = datetime.fromtimestamp(now // SECOND, UTC)
    start = datetime(at.year, at.month, 1, tzinfo=UTC)
    begin, end = month(now)

    assert begin == int(start.timestamp()) * SECOND
    assert end - begin == monthrange(at.year, at.month)[1] * DAY_US
    assert day(now)[0] <= now < day(now)[1]


@pytest.mark.parametrize("kind", [Kind.DAY, Kind.MONTH])
def test_a_budget_comes_back_when_the_calendar_turns(kind: Kind) -> None:
    level = Level(Limit.budget("b", kind, 10), START)
    take(level, 10, START)
    wait = level.wait_us(1, START)

    assert not take(level, 1, START + wait - 1)
    assert take(level, 10, START + wait)
