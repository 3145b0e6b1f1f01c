"""Rows by number: bytes as they are, zeros for padding, and nothing read that was not asked for."""

import pytest
import torch
from torch import Tensor

from engine.device import Device
from engine.errors import ShapeError
from engine.kernels.embed import embed, embed_reference
from engine.kernels.emulated_device import EmulatedDevice


def run(device: Device, table: Tensor, ids: Tensor) -> Tensor:
    """Give the rows."""
    out = device.empty((len(ids), table.shape[1]), table.dtype)
    on_device = device.upload(table), device.upload(ids)
    embed(device, out, *on_device)
    device.synchronize()
    return out.cpu()


def check(device: Device, hidden: int, dtype: torch.dtype) -> None:
    """Gather the first row, the last, one twice, and padding, from a table whose other rows are NaN."""
    table = torch.full((9, hidden), torch.nan).to(dtype)
    table[[0, 4, 8]] = torch.randn(3, hidden, generator=torch.Generator().manual_seed(hidden)).to(dtype)
    ids = torch.tensor([8, -1, 0, 4, 4, -1], dtype=torch.int32)

    assert torch.equal(run(device, table, ids), embed_reference(table, ids))


def mutation_case(device: Device) -> None:
    """A small complete check, for those who break the kernel on purpose."""
    check(device, 2056, torch.bfloat16)


@pytest.mark.parametrize(
    ("hidden", "dtype"),
    [(8, torch.bfloat16), (264, torch.float16), (4096, torch.bfloat16), (2056, torch.float16), (12, torch.float32)],
    ids=str,
)
def test_rows_are_gathered_as_they_are(device: Device, hidden: int, dtype: torch.dtype) -> None:
    check(device, hidden, dtype)


def test_no_tokens_are_no_work(emulator: EmulatedDevice) -> None:
    assert run(emulator, torch.zeros(4, 8), torch.empty(0, dtype=torch.int32)).shape == (0, 8)


def test_what_a_kernel_would_misread_is_refused(emulator: EmulatedDevice) -> None:
    with pytest.raises(ShapeError, match="16 bytes"):
        run(emulator, torch.zeros(4, 6), torch.zeros(1, dtype=torch.int32))
    with pytest.raises(ShapeError, match=r"ids: expected \[any\] torch.int32"):
        run(emulator, torch.zeros(4, 8), torch.zeros(1, dtype=torch.int64))
