"""Norm, rotation and the write into pages: queries and keys rounded once, and pages that hold what `qkv` holds."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from engine.device import Device
from engine.errors import ShapeError
from engine.kernels.dtypes import HALVES, LARGEST
from engine.kernels.emulated_device import EmulatedDevice
from engine.kernels.rotary_kv_write import QKNorm, kv_write_reference, rotary_kv_write, rotary_reference
from engine.models.rope import Rope, rotations
from tests.kernels.closeness import assert_close_as_low_precision

NUM_POSITIONS = 4096
ROPE = Rope(kind="llama3", theta=500_000.0, factor=8.0, trained_positions=1024)


@dataclass(frozen=True)
class Case:
    """What is written where. Positions and slots are far apart; one token has no slot."""

    head_dim: int = 64
    num_heads: int = 4
    num_kv_heads: int = 1
    block_size: int = 16
    dtype: torch.dtype = torch.bfloat16
    stored: torch.dtype = torch.bfloat16
    paired: bool = True
    normed: bool = False

    def __str__(self) -> str:
        types = f"{self.dtype}-{self.stored}".replace("torch.", "")
        layout = ("paired" if self.paired else "halves") + ("-normed" if self.normed else "")
        return f"{self.head_dim}-{self.num_heads}:{self.num_kv_heads}-page{self.block_size}-{types}-{layout}"


CASES = [
    Case(head_dim=64, num_heads=1, num_kv_heads=1),
    Case(head_dim=64, num_heads=8, num_kv_heads=1, paired=False, normed=True),
    Case(head_dim=96, num_heads=5, num_kv_heads=1, block_size=32, normed=True),
    Case(head_dim=96, num_heads=8, num_kv_heads=2, block_size=64, paired=False),
    Case(head_dim=128, num_heads=16, num_kv_heads=4, block_size=64, normed=True, paired=False),
    Case(head_dim=256, num_heads=8, num_kv_heads=1, paired=False, normed=True),
    Case(head_dim=32, num_heads=4, num_kv_heads=4),
    Case(head_dim=128, num_heads=5, stored=torch.float8_e4m3fn, normed=True),
    Case(head_dim=96, num_heads=8, num_kv_heads=2, stored=torch.int8, paired=False),
    Case(head_dim=256, num_heads=4, stored=torch.int8, block_size=32),
    Case(head_dim=128, num_heads=4, dtype=torch.float16, stored=torch.float16, normed=True),
    Case(head_dim=64, num_heads=8, num_kv_heads=2, dtype=torch.float16, stored=torch.float8_e4m3fn, paired=False),
    Case(head_dim=96, num_heads=1, dtype=torch.float16, stored=torch.int8, block_size=64),
]


@dataclass(frozen=True)
class Inputs:
    """One step's tensors, on the host."""

    qkv: Tensor
    pool: Tensor
    kv_scales: Tensor | None
    rotations: Tensor
    positions: Tensor
    slots: Tensor
    norm: QKNorm | None


def inputs(case: Case) -> Inputs:
    """Six tokens, the pool full of NaN, one outlier a head."""
    rng = torch.Generator().manual_seed(case.head_dim)
    num_rows = case.num_heads + 2 * case.num_kv_heads
    qkv = torch.randn(6, num_rows, case.head_dim, generator=rng)
    qkv[:, :, 7] = 30.0
    qkv[4, -1] = 0
    shape = (5, 2, case.num_kv_heads, case.block_size, case.head_dim)
    quantised = case.stored in LARGEST
    pool = torch.full(shape, 0xFF, dtype=torch.uint8).repeat_interleave(case.stored.itemsize, -1).view(case.stored)
    weights = [(1 + 0.2 * torch.randn(case.head_dim, generator=rng)).to(case.dtype) for _ in range(2)]
    last = case.block_size - 1
    return Inputs(
        qkv.to(case.dtype),
        pool,
        torch.full(shape[:-1], torch.nan) if quantised else None,
        torch.view_as_real(rotations(ROPE, case.head_dim, NUM_POSITIONS)).squeeze(1).contiguous(),
        torch.tensor([0, 1, NUM_POSITIONS - 1, 1024, 77, 5], dtype=torch.int32),
        torch.tensor(
            [0, last, -1, 4 * case.block_size + last, 2 * case.block_size, case.block_size + 1], dtype=torch.int32
        ),
        QKNorm(*weights, 1e-6) if case.normed else None,
    )


def run(device: Device, case: Case, given: Inputs) -> tuple[Tensor, Tensor, Tensor | None]:
    """Give `qkv`, pool and scales as they are afterwards."""
    qkv, pool, table = (device.upload(tensor) for tensor in (given.qkv, given.pool, given.rotations))
    kv_scales = None if given.kv_scales is None else device.upload(given.kv_scales)
    norm = given.norm and QKNorm(device.upload(given.norm.query), device.upload(given.norm.key), given.norm.eps)
    places = device.upload(given.positions), device.upload(given.slots)
    rotary_kv_write(device, qkv, pool, table, *places, paired=case.paired, kv_scales=kv_scales, norm=norm)
    device.synchronize()
    return qkv.cpu(), pool.cpu(), None if kv_scales is None else kv_scales.cpu()


def plain_rotary(case: Case, given: Inputs) -> Tensor:
    """The same mathematics with a rounding after each step, as the decoder does it."""
    turned = given.qkv.clone()
    if given.norm is not None:
        heads = (turned[:, : case.num_heads], turned[:, case.num_heads : -case.num_kv_heads])
        for part, weight in zip(heads, (given.norm.query, given.norm.key), strict=True):
            part.copy_(torch.nn.functional.rms_norm(part, (case.head_dim,), weight, given.norm.eps))
    reference = rotary_reference(turned, given.rotations, given.positions, case.num_kv_heads, paired=case.paired)
    return reference.to(case.dtype)


def check(device: Device, case: Case) -> None:
    """Compare `qkv` with the reference, and the pool, bit by bit, with what `qkv` then holds."""
    given = inputs(case)
    qkv, pool, kv_scales = run(device, case, given)
    exact = rotary_reference(
        given.qkv, given.rotations, given.positions, case.num_kv_heads, paired=case.paired, norm=given.norm
    )
    kv_write_reference(qkv, given.pool, given.slots, given.kv_scales)

    assert_close_as_low_precision(qkv, exact, plain_rotary(case, given))
    assert torch.equal(qkv[:, -case.num_kv_heads :], given.qkv[:, -case.num_kv_heads :])
    assert torch.equal(pool.view(torch.uint8), given.pool.view(torch.uint8))
    if kv_scales is not None:
        assert given.kv_scales is not None
        torch.testing.assert_close(kv_scales, given.kv_scales, rtol=1e-6, atol=0, equal_nan=True)


def mutation_case(device: Device) -> None:
    """A small complete check, for those who break the kernel on purpose."""
    check(device, Case(head_dim=96, num_heads=5, normed=True))
    check(device, Case(head_dim=96, num_heads=2, stored=torch.int8, paired=False, normed=True))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_heads_are_turned_and_pages_hold_what_was_turned(device: Device, case: Case) -> None:
    check(device, case)


def test_every_type_was_tried() -> None:
    assert {(case.dtype, case.stored) for case in CASES} == {(d, s) for d in HALVES for s in (d, *LARGEST)}


def test_halves_and_pairs_are_the_same_heads_in_another_order(device: Device) -> None:
    halves = Case(head_dim=128, num_heads=4, num_kv_heads=2, paired=False)
    given = inputs(halves)
    order = torch.arange(128).view(2, 64).t().flatten()
    expected, _, _ = run(device, halves, given)
    reordered = replace(given, qkv=torch.cat([given.qkv[:, :6, order], given.qkv[:, 6:]], 1))
    got, _, _ = run(device, Case(head_dim=128, num_heads=4, num_kv_heads=2), reordered)

    assert torch.equal(got[:, :6], expected[:, :6, order])
    assert torch.equal(got[:, 6:], expected[:, 6:])


def test_what_is_not_finite_shows_in_its_scale_and_stays_in_its_head(device: Device) -> None:
    case = Case(num_kv_heads=2, stored=torch.int8)
    given = inputs(case)
    clean = run(device, case, given)
    given.qkv[0, -1, 3] = torch.nan
    given.qkv[1, -2, 3] = torch.inf
    _, _, kv_scales = run(device, case, given)

    assert kv_scales is not None
    assert clean[2] is not None
    assert kv_scales[0, 1, 1, 0].isnan()
    assert kv_scales[0, 1, 0, 15].isinf()
    kv_scales[0, 1, 1, 0], kv_scales[0, 1, 0, 15] = clean[2][0, 1, 1, 0], clean[2][0, 1, 0, 15]
    assert torch.equal(kv_scales.nan_to_num(-1), clean[2].nan_to_num(-1))


def test_repetition_gives_the_same_bits(device: Device) -> None:
    case = Case(head_dim=96, num_heads=5, normed=True, stored=torch.float8_e4m3fn)
    first, again = run(device, case, inputs(case)), run(device, case, inputs(case))

    for one, other in zip(first, again, strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def test_what_a_kernel_would_misread_is_refused(emulator: EmulatedDevice) -> None:
    whole = inputs(Case(stored=torch.int8))
    without_scales = replace(whole, kv_scales=None)
    other_table = replace(whole, rotations=torch.zeros(4, 64, 2))

    with pytest.raises(ShapeError, match=r"kv_scales: expected scales for torch.int8"):
        run(emulator, Case(), without_scales)
    with pytest.raises(ShapeError, match=r"rotations: expected \[any, 32, 2\]"):
        run(emulator, Case(), other_table)
