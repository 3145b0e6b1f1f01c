"""A tensor's geometry is told to TMA as it is, and what the hardware would refuse is refused in the tensor's terms."""

import pytest
import torch
from torch import Tensor

from engine.errors import ShapeError
from engine.kernels.tensor_geometry import geometry
from engine.kernels.tensor_map import Geometry


def aligned(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Zeros on an address that TMA takes."""
    size = 1
    for length in shape:
        size *= length
    raw = torch.zeros(size * dtype.itemsize + 64, dtype=torch.uint8)
    start = -raw.data_ptr() % 64
    return raw[start : start + size * dtype.itemsize].view(dtype).view(shape)


def test_dimensions_are_turned_round_and_strides_told_in_bytes() -> None:
    tensor = aligned(3, 20, 64)

    assert geometry(tensor, (1, 16, 64), 128) == Geometry(
        address=tensor.data_ptr(),
        data_type=9,
        element_bytes=2,
        sizes=(64, 20, 3),
        strides_bytes=(128, 2560),
        box=(64, 16, 1),
        swizzle_bytes=128,
    )


def test_a_slice_keeps_the_strides_of_the_whole() -> None:
    whole = aligned(20, 4, 64)
    laid = geometry(whole[5:, 1], (8, 64), 0)

    assert laid.address == whole.data_ptr() + (5 * 4 + 1) * 128
    assert (laid.sizes, laid.strides_bytes) == ((64, 15), (512,))


def test_a_row_of_one_dimension_has_no_stride_to_tell() -> None:
    assert geometry(aligned(256), (64,), 0).strides_bytes == ()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.uint8], ids=str)
def test_eight_bit_types_travel_as_bytes(dtype: torch.dtype) -> None:
    laid = geometry(aligned(8, 128, dtype=dtype), (8, 128), 128)

    assert (laid.data_type, laid.element_bytes) == (0, 1)


@pytest.mark.parametrize(
    ("tensor", "box", "swizzle", "told"),
    [
        (aligned(4, 64), (4, 64, 1), 0, "box: expected 2 sizes from 1 to 256"),
        (aligned(4, 64), (0, 64), 0, "box: expected 2 sizes from 1 to 256"),
        (aligned(300, 64), (257, 64), 0, "box: expected 2 sizes from 1 to 256"),
        (aligned(4, 64), (4, 64), 48, "swizzle_bytes: expected one of"),
        (aligned(4, 64), (4, 4), 0, "innermost box: expected a multiple of 16 bytes, got 8 bytes"),
        (aligned(4, 128), (4, 128), 128, "innermost box: expected a multiple of 16 bytes, at most the swizzle's 128"),
        (aligned(4, 64).t(), (64, 4), 0, "innermost box"),
        (aligned(16, 16).t(), (16, 16), 0, "innermost stride: expected 1, got 16"),
        (aligned(4, 68), (4, 64), 0, "strides: expected multiples of 16 bytes"),
        (aligned(1, 64).expand(4, 64), (4, 64), 0, "strides: expected multiples of 16 bytes"),
        (aligned(72)[4:], (64,), 0, "address: expected a multiple of 16"),
        (aligned(1, 1, 1, 1, 64), (1, 1, 1, 1, 64), 0, "tensor: expected 1 to 4 dimensions"),
        (aligned(0, 64), (1, 64), 0, "tensor: expected 1 to 4 dimensions, none of them empty"),
        (aligned(4, 64, dtype=torch.complex64), (4, 2), 0, "dtype: expected one of"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_tma_cannot_do_is_refused(tensor: Tensor, box: tuple[int, ...], swizzle: int, told: str) -> None:
    with pytest.raises(ShapeError) as raised:
        geometry(tensor, box, swizzle)

    assert f"tensor map: {told}" in str(raised.value)
    assert f"of {list(tensor.shape)} {tensor.dtype} with strides {list(tensor.stride())}" in str(raised.value)
