"""The measure that kernels are held to lets through what rounding explains, and nothing else."""

import math

import pytest
import torch
from torch import Tensor

from tests.kernels.closeness import assert_close_as_low_precision


@pytest.fixture
def exact() -> Tensor:
    return torch.randn(4, 500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_what_is_rounded_as_the_plain_run_is_close(exact: Tensor) -> None:
    assert_close_as_low_precision(exact.bfloat16(), exact, exact.bfloat16())


def test_what_is_twice_as_wrong_is_close_and_three_times_is_not(exact: Tensor) -> None:
    error = exact.bfloat16().double() - exact
    assert_close_as_low_precision(exact + 2 * error, exact, exact.bfloat16())
    with pytest.raises(AssertionError, match="largest error"):
        assert_close_as_low_precision(exact + 3 * error, exact, exact.bfloat16())


def test_one_value_that_is_wrong_is_found_and_its_place_told(exact: Tensor) -> None:
    actual = exact.bfloat16()
    actual[2, 77] += 1

    with pytest.raises(AssertionError, match=r"at \(2, 77\)"):
        assert_close_as_low_precision(actual, exact, exact.bfloat16())


def test_many_small_errors_are_found_by_their_sum(exact: Tensor) -> None:
    largest = (exact.bfloat16().double() - exact).abs().max()

    with pytest.raises(AssertionError, match="root mean square"):
        assert_close_as_low_precision(exact + largest, exact, exact.bfloat16())


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_so_in_both(exact: Tensor, wrong: float) -> None:
    actual = exact.clone()
    actual[0, 0] = wrong
    with pytest.raises(AssertionError, match="finite"):
        assert_close_as_low_precision(actual, exact, exact.bfloat16())

    exact[0, 0] = wrong
    assert_close_as_low_precision(actual, exact, exact.bfloat16())

    other = {math.inf: -math.inf, -math.inf: math.nan}.get(wrong, math.inf)
    actual[0, 0] = other
    with pytest.raises(AssertionError):
        assert_close_as_low_precision(actual, exact, exact.bfloat16())


def test_a_plain_run_that_overflows_grants_nothing(exact: Tensor) -> None:
    plain = exact.bfloat16()
    plain[1, 1] = math.inf
    wrong = exact.clone()
    wrong[1, 1] += 1

    with pytest.raises(AssertionError, match="largest error"):
        assert_close_as_low_precision(wrong, exact, plain)


def test_another_shape_is_not_spread_over_it(exact: Tensor) -> None:
    with pytest.raises(AssertionError):
        assert_close_as_low_precision(exact[:1], exact, exact)


def test_nothing_is_close_to_nothing() -> None:
    empty = torch.empty(0, 4)
    assert_close_as_low_precision(empty, empty, empty)
