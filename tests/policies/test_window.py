"""Counts of the recent past: nothing is remembered for longer than the span, nor forgotten before nine tenths of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.window import Window

SPANS = st.sampled_from([1.0, 10.0, 7.3])
GAPS = st.lists(st.floats(0, 5, allow_nan=False), max_size=60)


@given(SPANS, GAPS)
def test_what_is_counted_lasts_nine_tenths_of_the_span_and_never_longer_than_it(span: float, gaps: list[float]) -> None:
    window, now, times = Window(span), 1000.0, []
    for gap in gaps:
        now += gap
        window.add(now, 0, 1)
        times.append(now)

        assert sum(now - at <= 0.9 * span - 1e-6 for at in times) <= window.totals[0]
        assert window.totals[0] <= sum(now - at <= span + 1e-6 for at in times)


def test_columns_are_counted_apart_and_cleared_together() -> None:
    window = Window(10, columns=2)
    window.add(5, 0, 3)
    window.add(6, 1, 4)

    assert window.totals == [3, 4]
    window.clear()
    assert window.totals == [0, 0]
    window.advance(50)
    assert window.totals == [0, 0]


def test_a_clock_that_was_set_back_counts_in_the_latest_slot() -> None:
    window = Window(10)
    window.add(100, 0, 1)
    window.add(50, 0, 1)

    assert window.totals == [2]
    window.advance(109)
    assert window.totals == [2]
    window.advance(111)
    assert window.totals == [0]


def test_a_window_needs_a_span_and_slots() -> None:
    with pytest.raises(ValueError, match="positive"):
        Window(0)
