"""When codes are right: the scale is the row's, and each code is the nearest, or one of two that are as near."""

import torch
from torch import Tensor

from engine.kernels.dtypes import LARGEST, quantise_reference


def assert_quantised(codes: Tensor, scales: Tensor, values: Tensor) -> None:
    """Hold codes and scales to `quantise_reference(values)`; `values` are float32, computed another way.

    Where values differ in their last bits, so may the code of one that lies between two codes.
    """
    codes, scales = codes.cpu(), scales.cpu()
    expected, expected_scales = quantise_reference(values, codes.dtype)
    torch.testing.assert_close(scales, expected_scales, rtol=1e-6, atol=0, equal_nan=True)
    rows = expected_scales.isfinite()
    largest = LARGEST[codes.dtype]
    scaled = (values[rows].double() / expected_scales[rows, None].double()).nan_to_num().clamp(-largest, largest)
    ours, theirs = codes[rows].double(), expected[rows].double()
    is_tiny = expected_scales[rows, None] * largest < 1e-30

    assert torch.equal(ours[is_tiny.expand_as(ours)], torch.zeros(int(is_tiny.sum()) * ours.shape[-1]).double())

    slack = 4e-6 * scaled.abs() + 1e-9
    is_nearest = (ours - scaled).abs() <= (theirs - scaled).abs() + slack

    assert (is_nearest | is_tiny).all(), f"codes {ours[~is_nearest][:8]}, expected {theirs[~is_nearest][:8]}"
    assert (ours == theirs).double().mean() >= 0.99 or ours.numel() < 100
