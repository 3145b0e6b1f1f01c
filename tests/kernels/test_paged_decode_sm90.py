"""Decode attention by wgmma and TMA: what `test_paged_decode.py` asks, of up to 64 rows at once."""

import dataclasses

import pytest
import torch

from engine.device import Device
from engine.errors import ShapeError
from engine.kernels.emulated_device import EmulatedDevice, Mode
from engine.kernels.emulator import Emulator
from engine.kernels.paged_decode import HEAD_DIMS
from engine.kernels.paged_decode_sm90 import INSTANCES, decode_workspace_sm90
from engine.kernels.registry import HOPPER
from tests.kernels.decode_batch import Entry, Laid, Shape, check, entry

CASES = [
    (Shape(head_dim=64, group=8, num_kv_heads=1), [(0, 1), (1, 1), (15, 8), (16, 2), (17, 5)]),
    (Shape(head_dim=64, group=5, block_size=32), [(31, 8), (32, 1), (33, 2)]),
    (Shape(head_dim=96, group=4, num_kv_heads=1, block_size=16), [(63, 8), (64, 1), (65, 5)]),
    (Shape(head_dim=128, group=4, num_kv_heads=2, block_size=64), [(63, 5), (0, 1), (129, 8)]),
    (Shape(head_dim=128, group=16, num_kv_heads=1, block_size=32), [(95, 5), (320, 1)]),  # 80 rows: two tiles
    (Shape(head_dim=128, group=1, num_kv_heads=2, dtype=torch.float16), [(400, 1), (97, 8)]),
    (Shape(head_dim=256, group=8, num_kv_heads=1, block_size=32), [(31, 2), (130, 8)]),
]
WINDOWS = [
    (Shape(window=1, group=4), [(1, 1), (64, 1), (65, 2)]),
    (Shape(window=70, group=5, num_kv_heads=1, block_size=32, head_dim=96), [(69, 1), (70, 5), (500, 8)]),
    (Shape(window=128, group=8, num_kv_heads=1, head_dim=128), [(127, 1), (700, 8), (0, 1)]),
]


@pytest.fixture(autouse=True)
def on_hopper(request: pytest.FixtureRequest) -> None:
    """Skip where wgmma does not exist."""
    if "device" in request.fixturenames and request.getfixturevalue("device").arch not in HOPPER:
        pytest.skip("wgmma is for sm_90a")


def check_case(device: Device, shape: Shape, lengths: list[tuple[int, int]], split_tokens: int = 0) -> None:
    """Attend to ordinary sequences of these lengths and numbers of query tokens."""
    entries = [entry(shape, n, q, seed=i) for i, (n, q) in enumerate(lengths)]
    check(device, shape, entries, split_tokens, decode_workspace_sm90)


def mutation_case(device: Device) -> None:
    """A small complete check, for those who break the kernel on purpose."""
    check_case(device, Shape(head_dim=128, num_kv_heads=1, group=8), [(63, 8), (0, 1), (512, 1)])
    check_case(device, Shape(num_kv_heads=1, group=5, window=100), [(64, 1), (257, 5)], split_tokens=64)
    check_case(device, Shape(head_dim=96, num_kv_heads=1, group=16), [(1, 1), (0, 1), (1, 1), (112, 5)])


@pytest.mark.parametrize(("shape", "lengths"), CASES, ids=str)
def test_it_is_as_exact_as_its_type(device: Device, shape: Shape, lengths: list[tuple[int, int]]) -> None:
    check_case(device, shape, lengths)


@pytest.mark.parametrize(("shape", "lengths"), WINDOWS, ids=str)
def test_a_window_hides_what_is_older(device: Device, shape: Shape, lengths: list[tuple[int, int]]) -> None:
    check_case(device, shape, lengths)


@pytest.mark.parametrize("kind", ["outliers", "equal", "late", "sizes"])
def test_ugly_numbers(fastest: Device, kind: str) -> None:
    shape = Shape(head_dim=128, num_kv_heads=1)
    entries = [entry(shape, 150, 8, kind=kind), entry(shape, 300, 1, kind=kind)]
    check(fastest, shape, entries, 128, decode_workspace_sm90)


def test_many_splits_are_merged(emulator_library: Emulator) -> None:
    shape = Shape(head_dim=64, group=4, num_kv_heads=1)
    device = EmulatedDevice(emulator_library, Mode(), num_multiprocessors=12)
    batch = Laid(device, shape, [entry(shape, 2000, 5), entry(shape, 500, 1)])
    workspace = decode_workspace_sm90(device, batch.limits())
    batch.assert_right(batch.run(workspace))

    assert workspace.plan.items[:, 9].max() > 4
    assert not workspace.counters.any()


def test_the_way_threads_take_turns_leaves_no_trace(device: Device, emulator: EmulatedDevice) -> None:
    if not isinstance(device, EmulatedDevice):
        pytest.skip("on one and the same device only: a card's arithmetic is another than a CPU's")
    shape = Shape(head_dim=64, num_kv_heads=1, group=8)
    batches = [Laid(each, shape, [entry(shape, 300, 5), entry(shape, 100, 1)]) for each in (device, emulator)]
    ours, theirs = (each.run(decode_workspace_sm90(each.device, each.limits())) for each in batches)

    assert torch.equal(ours.out.view(torch.int16), theirs.out.view(torch.int16))
    assert torch.equal(ours.lse, theirs.lse)


def test_with_fixed_splits_company_and_drafted_tokens_leave_no_trace(fastest: Device) -> None:
    shape = Shape(head_dim=64, num_kv_heads=1, group=8)
    whole = entry(shape, 260, 5)
    crowd = Laid(fastest, shape, [entry(shape, 70, 2, seed=1), whole, entry(shape, 0)])
    together = crowd.of(crowd.run(decode_workspace_sm90(fastest, crowd.limits(split_tokens=128))), 1)
    for j in range(5):
        alone = Laid(fastest, shape, [Entry(whole.queries[j : j + 1], whole.stored[:, : 256 + j], None)])
        answer = alone.run(decode_workspace_sm90(fastest, alone.limits(split_tokens=128)))

        assert torch.equal(alone.of(answer, 0)[0], together[j])


def test_it_is_for_hopper_and_every_head_size() -> None:
    assert all(instance.archs == HOPPER for instance in INSTANCES)
    assert {shape.head_dim for shape, _ in CASES} == set(HEAD_DIMS)


def test_what_does_not_fit_is_refused(emulator: EmulatedDevice) -> None:
    shape = Shape()
    limits = Laid(emulator, shape, [entry(shape, 20)]).limits()
    for change in ({"head_dim": 80}, {"kv_dtype": torch.int8}):
        with pytest.raises(ShapeError, match="on Hopper"):
            decode_workspace_sm90(emulator, dataclasses.replace(limits, **change))
