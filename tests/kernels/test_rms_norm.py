"""The norm: as exact as its type allows, the same bits each time, and a residual that is read once and rounded once."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from engine.device import Device
from engine.errors import ShapeError
from engine.kernels.dtypes import HALVES
from engine.kernels.emulated_device import EmulatedDevice
from engine.kernels.rms_norm import MAX_HIDDEN, rms_norm, rms_norm_reference
from tests.kernels.closeness import assert_close_as_low_precision
from tests.kernels.quantised import assert_quantised

EPS = 1e-5
SHAPES = [(1, 8), (5, 264), (2, 4096), (1, 4104)]


def inputs(num_rows: int, hidden: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """x with one outlier a row, a residual and a weight."""
    rng = torch.Generator().manual_seed(seed)
    x, residual = (torch.randn(num_rows, hidden, generator=rng) for _ in range(2))
    x[torch.arange(num_rows), torch.randint(hidden, (num_rows,), generator=rng)] = 100.0
    weight = 1 + 0.2 * torch.randn(hidden, generator=rng)
    return x.to(dtype), residual.to(dtype), weight.to(dtype)


def run(
    device: Device, x: Tensor, weight: Tensor, residual: Tensor | None = None, quantised: bool = False
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Give out, the residual afterwards, and the scales (of no meaning unless quantised)."""
    out = device.empty(tuple(x.shape), torch.float8_e4m3fn if quantised else x.dtype)
    scales = device.empty((x.shape[0],), torch.float32)
    total = None if residual is None else device.upload(residual)
    on_device = device.upload(x), device.upload(weight)
    rms_norm(device, out, *on_device, EPS, residual=total, scales=scales if quantised else None)
    device.synchronize()
    return out.cpu(), None if total is None else total.cpu(), scales.cpu()


def check(device: Device, num_rows: int, hidden: int, dtype: torch.dtype, with_residual: bool) -> None:
    """Compare both kinds with the reference."""
    x, residual, weight = inputs(num_rows, hidden, dtype)
    added = residual if with_residual else None
    exact, total = rms_norm_reference(x, weight, EPS, added)
    out, updated, _ = run(device, x, weight, added)
    codes, updated_too, scales = run(device, x, weight, added, quantised=True)

    assert_close_as_low_precision(out, exact, functional.rms_norm(total, (hidden,), weight, EPS))
    assert_quantised(codes, scales, exact)
    if with_residual:
        assert updated is not None
        assert updated_too is not None
        assert torch.equal(updated, total)
        assert torch.equal(updated_too, total)


def mutation_case(device: Device) -> None:
    """A small complete check, for those who break the kernel on purpose."""
    check(device, 2, 264, torch.bfloat16, with_residual=True)
    check(device, 1, 12296, torch.float16, with_residual=False)


@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(("num_rows", "hidden"), SHAPES)
def test_it_is_as_exact_as_its_type(
    device: Device, num_rows: int, hidden: int, dtype: torch.dtype, with_residual: bool
) -> None:
    check(device, num_rows, hidden, dtype, with_residual)


def test_the_longest_row_fits(fastest: Device) -> None:
    check(fastest, 1, MAX_HIDDEN, torch.bfloat16, with_residual=True)


@pytest.mark.parametrize("quantised", [False, True])
def test_the_same_row_has_the_same_bits_alone_and_in_company(device: Device, quantised: bool) -> None:
    x, residual, weight = inputs(3, 1032, torch.bfloat16)
    together = run(device, x, weight, residual, quantised)
    again = run(device, x, weight, residual, quantised)
    alone = run(device, x[1:2], weight, residual[1:2], quantised)

    assert torch.equal(together[0].view(torch.uint8), again[0].view(torch.uint8))
    assert torch.equal(together[0][1:2].view(torch.uint8), alone[0].view(torch.uint8))
    if quantised:
        assert torch.equal(together[2][1:2], alone[2])


@pytest.mark.parametrize("quantised", [False, True])
def test_the_order_in_which_threads_run_changes_no_bit(
    device: Device, emulator: EmulatedDevice, quantised: bool
) -> None:
    if not isinstance(device, EmulatedDevice):
        pytest.skip("a card joins products and sums, which rounds them once")
    x, residual, weight = inputs(2, 4104, torch.bfloat16)
    here, there = run(device, x, weight, residual, quantised), run(emulator, x, weight, residual, quantised)

    assert torch.equal(here[0].view(torch.uint8), there[0].view(torch.uint8))
    assert not quantised or torch.equal(here[2], there[2])


@pytest.mark.parametrize("quantised", [False, True])
def test_a_row_of_zeros_stays_zero(device: Device, quantised: bool) -> None:
    x, _, weight = inputs(2, 264, torch.bfloat16)
    x[1] = 0
    out, _, scales = run(device, x, weight, quantised=quantised)

    assert torch.equal(out[1].float(), torch.zeros(264))
    assert not quantised or (scales[1] == 0 and scales[0] > 0)


def test_what_is_too_small_for_a_scale_becomes_zero(device: Device) -> None:
    x, _, weight = inputs(2, 264, torch.bfloat16)
    codes, _, scales = run(device, x, weight * 1e-33, quantised=True)

    assert torch.equal(codes.float(), torch.zeros(2, 264))
    assert scales.isfinite().all()


def test_what_is_not_finite_shows_and_stays_in_its_row(device: Device) -> None:
    x, _, weight = inputs(3, 264, torch.bfloat16)
    clean = run(device, x, weight, quantised=True)
    x[0, 17] = torch.nan
    x[2, 5] = torch.inf
    codes, _, scales = run(device, x, weight, quantised=True)

    assert not scales[[0, 2]].isfinite().any()
    assert torch.equal(codes[1].view(torch.uint8), clean[0][1].view(torch.uint8))
    assert scales[1] == clean[2][1]


def test_the_result_may_take_the_place_of_x(device: Device) -> None:
    x, residual, weight = inputs(2, 4104, torch.bfloat16)
    apart, _, _ = run(device, x, weight, residual)
    on_device = device.upload(x)
    rms_norm(device, on_device, on_device, device.upload(weight), EPS, residual=device.upload(residual))
    device.synchronize()

    assert torch.equal(on_device.cpu(), apart)


def test_no_rows_are_no_work(emulator: EmulatedDevice) -> None:
    out, _, _ = run(emulator, torch.empty(0, 64, dtype=torch.bfloat16), torch.ones(64, dtype=torch.bfloat16))

    assert out.shape == (0, 64)


@pytest.mark.parametrize("hidden", [12, MAX_HIDDEN + 8])
def test_rows_that_do_not_fit_are_refused(emulator: EmulatedDevice, hidden: int) -> None:
    x = torch.zeros(1, hidden, dtype=torch.bfloat16)

    with pytest.raises(ShapeError, match=f"multiple of 8, at most {MAX_HIDDEN}, got {hidden}"):
        rms_norm(emulator, torch.empty_like(x), x, torch.zeros(hidden, dtype=torch.bfloat16), EPS)
    with pytest.raises(ShapeError, match=r"x: expected \[any, any\]"):
        rms_norm(emulator, x[0], x[0], x[0], EPS)
