"""Codes and their scale: near enough to what they stand for, whatever the row."""

import pytest
import torch

from engine.kernels.dtypes import LARGEST, dequantise_reference, quantise_reference


@pytest.mark.parametrize(("dtype", "step"), [(torch.float8_e4m3fn, 1 / 16), (torch.int8, 0.0)], ids=str)
def test_a_value_comes_back_within_half_a_step(dtype: torch.dtype, step: float) -> None:
    """`step`: half of one, relative to the value; beside it half of the smallest step, relative to the largest."""
    values = torch.randn(7, 264, generator=torch.Generator().manual_seed(1)) * torch.logspace(-20, 20, 7)[:, None]
    codes, scales = quantise_reference(values, dtype)
    smallest = 2**-9 if dtype is torch.float8_e4m3fn else 1
    error = (dequantise_reference(codes, scales) - values).abs()

    assert codes.dtype is dtype
    assert (codes.float().abs().amax(-1) == LARGEST[dtype]).all()
    assert (error <= 1.0001 * (values.abs() * step + scales[:, None] * smallest / 2)).all()


@pytest.mark.parametrize("dtype", LARGEST, ids=str)
def test_rows_of_nothing_and_rows_that_are_not_finite(dtype: torch.dtype) -> None:
    values = torch.tensor([[0.0, -0.0], [1e-31, -1e-32], [torch.nan, 1.0], [torch.inf, 1.0]])
    codes, scales = quantise_reference(values, dtype)

    assert torch.equal(codes[:2].float(), torch.zeros(2, 2))
    assert scales[:2].isfinite().all()
    assert scales[2].isnan()
    assert scales[3].isinf()
