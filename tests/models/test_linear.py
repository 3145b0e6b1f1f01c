"""Products with a weight: the same numbers however many rows there are, and no memory for each number of rows."""

import subprocess
import sys

import pytest
import torch
from torch.nn import functional

from engine.models.linear import FUSED_ROWS, PREPARED, Linear, rounded

ROWS = [*range(1, 36), 63, 64, 65, 100, 129, 257]
OF_ITS_OWN = """
import ctypes

import torch

from engine.models.linear import PREPARED, keep_few_prepared

keep_few_prepared()
torch.set_num_threads(1)
linear, libc = torch.ops.mkldnn._linear_pointwise.default, ctypes.CDLL(None)
weight = torch.ops.mkldnn._reorder_linear_weight(torch.ones(64, 64), None)


class Told(ctypes.Structure):
    _fields_ = [(f"field_{number}", ctypes.c_size_t) for number in range(10)]


libc.mallinfo2.restype = Told


def in_use() -> int:
    return libc.mallinfo2().field_7


begun = in_use()
for rows in range(1, 3 * PREPARED):
    if rows == PREPARED:
        full = in_use()
    linear(torch.ones(rows, 64), weight, None, "none", [], "")
print(full - begun, in_use() - full)
"""


@pytest.mark.parametrize("bias", [None, torch.linspace(-1, 1, 40)], ids=["bare", "with a bias"])
@pytest.mark.parametrize("rows", ROWS)
def test_a_product_is_the_same_for_every_number_of_rows(rows: int, bias: torch.Tensor | None) -> None:
    weight, x, residual = torch.randn(40, 4001), torch.randn(rows, 4001), torch.randn(rows, 40)
    expected = functional.linear(x, weight, bias)
    linear = Linear(weight, bias)

    torch.testing.assert_close(linear(x), expected, rtol=1e-4, atol=1e-3)
    assert linear(x).is_contiguous()
    torch.testing.assert_close(linear.plus(x, residual.clone()), expected + residual, rtol=1e-4, atol=1e-3)


def test_rows_are_rounded_to_few_numbers_and_by_an_eighth_at_most() -> None:
    numbers = {rounded(rows) for rows in range(1, 513)}

    assert all(rows <= rounded(rows) <= rows * 9 / 8 for rows in range(1, 4097))
    assert all(rounded(rows) == rows for rows in range(1, FUSED_ROWS + 1))
    assert len(numbers) == 16 + 5 * 8


@pytest.mark.skipif(not torch._C._has_mkldnn, reason="oneDNN is not in this build of torch")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc tells what is in use")
def test_what_is_kept_of_prepared_products_is_bounded() -> None:
    done = subprocess.run([sys.executable, "-c", OF_ITS_OWN], capture_output=True, text=True, timeout=100, check=True)
    kept, more = map(int, done.stdout.split())

    assert kept < PREPARED << 20
    assert more < kept / 10  # of twice as many again
