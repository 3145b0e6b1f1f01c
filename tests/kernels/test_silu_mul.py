"""The gated product: rounded once, quantised from what was not rounded."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from engine.device import Device
from engine.errors import ShapeError
from engine.kernels.dtypes import HALVES
from engine.kernels.emulated_device import EmulatedDevice
from engine.kernels.silu_mul import MAX_QUANTISED, silu_mul, silu_mul_reference
from tests.kernels.closeness import assert_close_as_low_precision
from tests.kernels.quantised import assert_quantised

SHAPES = [(1, 8), (3, 264), (2, 4104), (1, 16392)]


def inputs(num_tokens: int, intermediate: int, dtype: torch.dtype) -> Tensor:
    """Gates from far below zero to far above, and one outlier a row."""
    rng = torch.Generator().manual_seed(intermediate)
    gate_up = 3 * torch.randn(num_tokens, 2 * intermediate, generator=rng)
    gate_up[:, 3] = 200.0
    gate_up[:, 5] = -200.0
    return gate_up.to(dtype)


def run(device: Device, gate_up: Tensor, quantised: bool = False) -> tuple[Tensor, Tensor]:
    """Give out and the scales (of no meaning unless quantised)."""
    shape = (gate_up.shape[0], gate_up.shape[1] // 2)
    out = device.empty(shape, torch.float8_e4m3fn if quantised else gate_up.dtype)
    scales = device.empty(shape[:1], torch.float32)
    on_device = device.upload(gate_up)
    silu_mul(device, out, on_device, scales=scales if quantised else None)
    device.synchronize()
    return out.cpu(), scales.cpu()


def check(device: Device, num_tokens: int, intermediate: int, dtype: torch.dtype) -> None:
    """Compare both kinds with the reference."""
    gate_up = inputs(num_tokens, intermediate, dtype)
    exact = silu_mul_reference(gate_up)
    gate, up = gate_up.chunk(2, -1)
    out, _ = run(device, gate_up)

    assert_close_as_low_precision(out, exact, functional.silu(gate) * up)
    assert_quantised(*run(device, gate_up, quantised=True), exact)


def mutation_case(device: Device) -> None:
    """A small complete check, for those who break the kernel on purpose."""
    check(device, 2, 4104, torch.bfloat16)
    check(device, 1, 24584, torch.float16)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(("num_tokens", "intermediate"), SHAPES)
def test_it_is_as_exact_as_its_type(device: Device, num_tokens: int, intermediate: int, dtype: torch.dtype) -> None:
    check(device, num_tokens, intermediate, dtype)


def test_the_longest_row_fits(emulator: EmulatedDevice) -> None:
    check(emulator, 1, MAX_QUANTISED, torch.bfloat16)


@pytest.mark.parametrize("quantised", [False, True])
def test_the_same_row_has_the_same_bits_alone_and_in_company(device: Device, quantised: bool) -> None:
    gate_up = inputs(3, 1032, torch.bfloat16)
    together, again = run(device, gate_up, quantised), run(device, gate_up, quantised)
    alone = run(device, gate_up[1:2].contiguous(), quantised)

    assert torch.equal(together[0].view(torch.uint8), again[0].view(torch.uint8))
    assert torch.equal(together[0][1:2].view(torch.uint8), alone[0].view(torch.uint8))
    if quantised:
        assert torch.equal(together[1][1:2], alone[1])


@pytest.mark.parametrize("quantised", [False, True])
def test_the_order_in_which_threads_run_changes_no_bit(
    device: Device, emulator: EmulatedDevice, quantised: bool
) -> None:
    if not isinstance(device, EmulatedDevice):
        pytest.skip("a card joins products and sums, which rounds them once")
    gate_up = inputs(2, 4104, torch.bfloat16)
    here, there = run(device, gate_up, quantised), run(emulator, gate_up, quantised)

    assert torch.equal(here[0].view(torch.uint8), there[0].view(torch.uint8))
    assert not quantised or torch.equal(here[1], there[1])


def test_a_row_of_zeros_stays_zero_and_what_is_not_finite_shows(device: Device) -> None:
    gate_up = inputs(3, 264, torch.bfloat16)
    gate_up[0] = 0
    gate_up[2, 300] = torch.nan
    codes, scales = run(device, gate_up, quantised=True)

    assert torch.equal(codes[0].float(), torch.zeros(264))
    assert scales[0] == 0
    assert scales[1].isfinite()
    assert scales[2].isnan()


def test_rows_that_do_not_fit_are_refused(emulator: EmulatedDevice) -> None:
    with pytest.raises(ShapeError, match="multiple of 8"):
        run(emulator, torch.zeros(1, 24, dtype=torch.bfloat16))
    with pytest.raises(ShapeError, match=f"at most {MAX_QUANTISED}"):
        run(emulator, torch.zeros(1, 2 * MAX_QUANTISED + 16, dtype=torch.bfloat16), quantised=True)
