"""Types as kernels name them, and numbers as 8-bit codes with one scale a row.

A row's scale is its largest magnitude over the largest code, in float32; value = code × scale. Rows whose magnitudes
are all below 1e-30 have codes of 0, since the inverse of their scale might overflow. What is not finite makes the
row's scale not finite.
"""

import torch
from torch import Tensor

NAMES = {torch.bfloat16: "bf16", torch.float16: "f16", torch.float8_e4m3fn: "e4m3", torch.int8: "s8"}
HALVES = (torch.bfloat16, torch.float16)
LARGEST = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}


def quantise_reference(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Give codes, of `values`' shape, and scales, float32 of that shape without its last dimension."""
    values = values.float()
    largest = values.abs().amax(-1)
    # Not `LARGEST[dtype] / largest`, which torch computes as a reciprocal and a product, rounding twice.
    inverse = torch.where(largest > 1e-30, torch.full_like(largest, LARGEST[dtype]) / largest, 0.0)
    scaled = (values * inverse[..., None]).clamp(-LARGEST[dtype], LARGEST[dtype])
    codes = scaled.to(dtype) if dtype is torch.float8_e4m3fn else scaled.nan_to_num().round().to(dtype)
    return codes, largest * (1 / LARGEST[dtype])


def dequantise_reference(codes: Tensor, scales: Tensor) -> Tensor:
    """Give float32 values of codes, one scale for the last dimension."""
    return codes.float() * scales[..., None]
