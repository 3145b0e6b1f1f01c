"""Rates, money and moments mean exactly what is written, or are refused."""

from contextlib import suppress
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.amount import NANO, Amount, Moment, Period, Rate, Spending, TokenPrice
from policies.bucket import EXACT, Kind


@given(st.integers(1, EXACT), st.integers(1, 999), st.sampled_from(["s", "min", "h"]))
def test_a_rate_is_what_is_written(amount: int, count: int, unit: str) -> None:
    seconds = count * {"s": 1, "min": 60, "h": 3600}[unit]
    text = f"{amount}/{count}{unit}"
    if seconds > 31 * 86_400:
        with pytest.raises(ValueError, match="expected so many a period"):
            Rate.from_text(text)
    else:
        rate = Rate.from_text(text)

        assert (rate.amount, rate.period.us) == (amount, seconds * 1_000_000)
        assert Period.from_text(rate.period.name) == rate.period


@pytest.mark.parametrize(
    ("text", "name"),
    [("60s", "min"), ("1min", "min"), ("60min", "h"), ("90s", "90s"), ("120s", "2min"), ("24h", "24h"), ("s", "s")],
)
def test_a_period_has_one_name(text: str, name: str) -> None:
    assert Period.from_text(text).name == name


def test_days_and_months_are_the_calendars() -> None:
    assert Rate.from_text("5_000_000/day") == Rate(5_000_000, Period("day", Kind.DAY))
    assert Spending.from_text("1_000/month") == Spending(1_000 * NANO, Period("month", Kind.MONTH))


@given(st.integers(1, EXACT))
def test_money_is_exact_to_the_billionth(nano: int) -> None:
    whole, fraction = divmod(nano, NANO)

    assert Spending.from_text(f"{whole}.{fraction:09}/day").amount == nano


@given(st.decimals(0, 10_000, places=3))
def test_a_price_is_exact_or_refused(price: object) -> None:
    assert TokenPrice.from_text(str(price)).nano == Fraction(str(price)) * 1000


@pytest.mark.parametrize("text", ["1.0", "1.000000000000", "0001", "1_0"])
def test_zeros_that_say_nothing_may_be_written(text: str) -> None:
    assert Amount.from_text(text).scaled(0) in (1, 10)


@given(st.text(max_size=60))
def test_any_text_is_an_amount_or_is_refused(text: str) -> None:
    for kind in (Rate, Spending, TokenPrice, Amount, Moment):
        with suppress(ValueError):
            kind.from_text(text)


@pytest.mark.parametrize(
    ("text", "unix_s"),
    [
        ("1970-01-02", 86_400.0),
        ("2027-01-01T00:00:00Z", 1_798_761_600.0),
        ("2027-01-01T01:00:00+01:00", 1_798_761_600.0),
        ("2027-01-01 00:00:00.5Z", 1_798_761_600.5),
    ],
)
def test_a_moment_is_in_utc_unless_it_says_otherwise(text: str, unix_s: float) -> None:
    assert Moment.from_text(text).unix_s == unix_s


@pytest.mark.parametrize(
    "text", ["2027-01-01T00:00:00", "2027-13-01", "2027-1-1", "0000-01-01", "tomorrow", "٢٠٢٧-01-01"]
)
def test_a_moment_without_a_zone_or_a_day_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a moment like"):
        Moment.from_text(text)
