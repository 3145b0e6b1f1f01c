"""The gate of a layer's second half and, where the next product takes FP8, quantisation: `cuda/silu_mul.cu`."""

import torch
from torch import Tensor
from torch.nn import functional

from engine.device import Device
from engine.errors import ShapeError
from engine.kernels.dtypes import HALVES, NAMES
from engine.kernels.registry import Instance
from engine.kernels.shapes import check

NUM_THREADS = 256
ROW_THREADS = (512, 1024)  # where a block owns a row; a longer row takes more
VECTORS = 4  # of eight numbers, for each of these
MAX_QUANTISED = ROW_THREADS[-1] * VECTORS * 8

_PLAIN = {
    dtype: Instance(
        source="silu_mul.cu",
        expression=f"silu_mul<{NAMES[dtype]}, {NUM_THREADS}>",
        signature="PPi",
        block=(NUM_THREADS, 1, 1),
        overlaps=True,
    )
    for dtype in HALVES
}
_QUANTISING = {
    (dtype, num_threads): Instance(
        source="silu_mul.cu",
        expression=f"silu_mul_quantise<{NAMES[dtype]}, {num_threads}, {VECTORS}>",
        signature="PPPi",
        block=(num_threads, 1, 1),
        overlaps=True,
    )
    for dtype in HALVES
    for num_threads in ROW_THREADS
}
INSTANCES = (*_PLAIN.values(), *_QUANTISING.values())


def silu_mul(device: Device, out: Tensor, gate_up: Tensor, *, scales: Tensor | None = None) -> None:
    """Write `silu(gate) * up`. `gate_up: [num_tokens, 2 * intermediate]` bf16 or fp16, the gates first.

    `out: [num_tokens, intermediate]` of that type, or FP8 e4m3 with one scale a row in `scales: [num_tokens]` float32.
    `intermediate` is a multiple of 8, with scales at most `MAX_QUANTISED`. Raises `ShapeError`.
    """
    check("silu_mul", "out", out, (None, None), gate_up.dtype if scales is None else torch.float8_e4m3fn)
    num_tokens, intermediate = out.shape
    check("silu_mul", "gate_up", gate_up, (num_tokens, 2 * intermediate), *HALVES)
    limit = MAX_QUANTISED if scales is not None else intermediate
    if intermediate % 8 or intermediate > limit:
        raise ShapeError("silu_mul", "out", f"rows of a multiple of 8, at most {limit}", str(intermediate))
    if not num_tokens:
        return
    if scales is None:
        grid = (num_tokens, -(-intermediate // (8 * NUM_THREADS)), 1)
        device.launch(_PLAIN[gate_up.dtype], grid, out.data_ptr(), gate_up.data_ptr(), intermediate)
        return
    check("silu_mul", "scales", scales, (num_tokens,), torch.float32)
    num_threads = next(threads for threads in ROW_THREADS if intermediate <= threads * VECTORS * 8)
    device.launch(
        _QUANTISING[gate_up.dtype, num_threads],
        (num_tokens, 1, 1),
        out.data_ptr(),
        scales.data_ptr(),
        gate_up.data_ptr(),
        intermediate,
    )


def silu_mul_reference(gate_up: Tensor) -> Tensor:
    """Give the product in float32, unrounded."""
    gate, up = gate_up.float().chunk(2, -1)
    return functional.silu(gate) * up
