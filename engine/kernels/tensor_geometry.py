"""A tensor's geometry as TMA wants it.

The hardware's rules are checked here, for the card and for the emulator alike, so that a mistake is told in the
tensor's own terms and not as CUDA_ERROR_INVALID_VALUE.
"""

import torch
from torch import Tensor

from engine.errors import ShapeError
from engine.kernels.tensor_map import ALIGNMENT, MAX_BOX, MAX_RANK, SWIZZLES, Geometry

# CUtensorMapDataType; eight-bit types travel as bytes.
DATA_TYPES = {
    torch.uint8: 0,
    torch.int8: 0,
    torch.float8_e4m3fn: 0,
    torch.float8_e5m2: 0,
    torch.int32: 3,
    torch.int64: 5,
    torch.float16: 6,
    torch.float32: 7,
    torch.bfloat16: 9,
}


def geometry(tensor: Tensor, box: tuple[int, ...], swizzle_bytes: int) -> Geometry:
    """Lay out a map of this tensor; `box` has the tensor's own order of dimensions. Raises `ShapeError`."""
    element = tensor.element_size()
    rank = tensor.dim()
    strides = tuple(stride * element for stride in tensor.stride()[:-1])

    def refuse(what: str, expected: str, arrived: object) -> ShapeError:
        return ShapeError("tensor map", what, expected, f"{arrived} of {_described(tensor)}")

    if tensor.dtype not in DATA_TYPES:
        raise refuse("dtype", f"one of {', '.join(map(str, DATA_TYPES))}", tensor.dtype)
    if not 1 <= rank <= MAX_RANK or tensor.numel() == 0:
        raise refuse("tensor", f"1 to {MAX_RANK} dimensions, none of them empty", f"{rank} dimensions")
    if len(box) != rank or not all(1 <= size <= MAX_BOX for size in box):
        raise refuse("box", f"{rank} sizes from 1 to {MAX_BOX}", box)
    if swizzle_bytes not in SWIZZLES:
        raise refuse("swizzle_bytes", f"one of {SWIZZLES}", swizzle_bytes)
    row = box[-1] * element
    if row % ALIGNMENT or (swizzle_bytes and row > swizzle_bytes):
        most = f", at most the swizzle's {swizzle_bytes}" if swizzle_bytes else ""
        raise refuse("innermost box", f"a multiple of {ALIGNMENT} bytes{most}", f"{row} bytes")
    if tensor.stride(-1) != 1 and tensor.size(-1) != 1:
        raise refuse("innermost stride", "1", tensor.stride(-1))
    if tensor.data_ptr() % ALIGNMENT:
        raise refuse("address", f"a multiple of {ALIGNMENT}", hex(tensor.data_ptr()))
    if any(stride % ALIGNMENT or not 0 < stride < 1 << 40 for stride in strides):
        raise refuse("strides", f"multiples of {ALIGNMENT} bytes, below 2^40", strides)
    return Geometry(
        address=tensor.data_ptr(),
        data_type=DATA_TYPES[tensor.dtype],
        element_bytes=element,
        sizes=tuple(reversed(tensor.shape)),
        strides_bytes=tuple(reversed(strides)),
        box=tuple(reversed(box)),
        swizzle_bytes=swizzle_bytes,
    )


def _described(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {tensor.dtype} with strides {list(tensor.stride())}"
