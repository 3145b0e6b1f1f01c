"""Residual addition, RMS norm and, where the next product takes FP8, quantisation: `cuda/rms_norm.cu`."""

import torch
from torch import Tensor

from engine.device import Device
from engine.errors import ShapeError
from engine.kernels.dtypes import HALVES, NAMES
from engine.kernels.registry import Instance
from engine.kernels.shapes import check

NUM_THREADS = 512
SHORT = NUM_THREADS * 8  # a row of one vector of eight numbers for each thread
VECTORS = 4  # for each thread, of a longer row
MAX_HIDDEN = NUM_THREADS * VECTORS * 8

_CHOICES = {
    (dtype, vectors, quantises): Instance(
        source="rms_norm.cu",
        expression=f"rms_norm<{NAMES[dtype]}, {NUM_THREADS}, {vectors}, {str(quantises).lower()}>",
        signature="PPPPPif",
        block=(NUM_THREADS, 1, 1),
        overlaps=True,
    )
    for dtype in HALVES
    for vectors in (1, VECTORS)
    for quantises in (False, True)
}
INSTANCES = tuple(_CHOICES.values())


def rms_norm(
    device: Device,
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    eps: float,
    *,
    residual: Tensor | None = None,
    scales: Tensor | None = None,
) -> None:
    """Write `(x + residual) / sqrt(mean((x + residual)²) + eps) * weight`, row by row.

    `x, residual: [num_rows, hidden]` bf16 or fp16; `weight: [hidden]`. `hidden` is a multiple of 8, at most
    `MAX_HIDDEN`. The residual, where there is one, becomes the sum, rounded, which is what is normed. `out` is of x's
    shape and type and may be x; or FP8 e4m3, with one scale a row in `scales: [num_rows]` float32.
    Raises `ShapeError`.
    """
    check("rms_norm", "x", x, (None, None), *HALVES)
    num_rows, hidden = x.shape
    quantises = scales is not None
    check("rms_norm", "weight", weight, (hidden,), x.dtype)
    check("rms_norm", "out", out, (num_rows, hidden), torch.float8_e4m3fn if quantises else x.dtype)
    if residual is not None:
        check("rms_norm", "residual", residual, (num_rows, hidden), x.dtype)
    if scales is not None:
        check("rms_norm", "scales", scales, (num_rows,), torch.float32)
    if hidden % 8 or hidden > MAX_HIDDEN:
        raise ShapeError("rms_norm", "x", f"rows of a multiple of 8, at most {MAX_HIDDEN}", str(hidden))
    if num_rows:
        device.launch(
            _CHOICES[x.dtype, 1 if hidden <= SHORT else VECTORS, quantises],
            (num_rows, 1, 1),
            out.data_ptr(),
            0 if scales is None else scales.data_ptr(),
            x.data_ptr(),
            0 if residual is None else residual.data_ptr(),
            weight.data_ptr(),
            hidden,
            eps,
        )


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Give the norm in float32, unrounded, and the sum that was normed, rounded to x's type."""
    total = x if residual is None else (x.float() + residual.float()).to(x.dtype)
    wide = total.float()
    return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.float(), total
