"""Decode attention by mma.sync: as exact as its types, the same bits each time, nothing read that is not its own."""

import dataclasses
from itertools import product

import pytest
import torch

from engine.device import Device
from engine.errors import ShapeError
from engine.kernels.dtypes import HALVES, LARGEST
from engine.kernels.emulated_device import EmulatedDevice, Mode
from engine.kernels.emulator import Emulator
from engine.kernels.paged_decode import HEAD_DIMS, INSTANCES, decode_workspace, paged_decode
from engine.kernels.registry import EVERYWHERE
from tests.kernels.decode_batch import Entry, Laid, Shape, check, entry

E4M3, INT8 = torch.float8_e4m3fn, torch.int8

# Pages, types, groups and head sizes in pairs; lengths around slabs, pages and tiles.
CASES = [
    (Shape(head_dim=64, group=1), [(0, 1), (1, 1), (15, 1), (16, 1), (17, 1)]),
    (Shape(head_dim=64, group=8, block_size=32, stored=E4M3), [(31, 1), (32, 1), (33, 1), (257, 2)]),
    (Shape(head_dim=64, group=5, block_size=64, stored=INT8, dtype=torch.float16), [(63, 5), (65, 1), (128, 8)]),
    (Shape(head_dim=96, group=4, block_size=32), [(63, 1), (64, 1), (65, 1), (0, 1), (129, 2)]),
    (Shape(head_dim=96, group=5, stored=INT8, block_size=16), [(100, 1), (321, 5)]),
    (Shape(head_dim=96, group=1, stored=E4M3, block_size=64, dtype=torch.float16), [(64, 1), (127, 8)]),
    (Shape(head_dim=128, group=4), [(319, 1), (320, 1), (321, 1), (1, 1), (0, 1)]),
    (Shape(head_dim=128, group=8, num_kv_heads=1, block_size=64), [(191, 8), (5, 5), (64, 2)]),
    (Shape(head_dim=128, group=4, num_kv_heads=1, stored=E4M3, block_size=32), [(700, 1), (33, 1)]),
    (Shape(head_dim=128, group=5, num_kv_heads=1, stored=INT8), [(130, 5), (8, 8)]),
    (Shape(head_dim=128, group=1, num_kv_heads=5, dtype=torch.float16, block_size=32), [(95, 1), (96, 2)]),
    (Shape(head_dim=256, group=4, num_kv_heads=1, block_size=16), [(97, 1), (31, 5)]),
    (Shape(head_dim=256, group=1, num_kv_heads=2, stored=E4M3, block_size=64), [(63, 1), (130, 2)]),
    (Shape(head_dim=256, group=8, num_kv_heads=1, stored=INT8, dtype=torch.float16), [(66, 1)]),
]
WINDOWS = [
    (Shape(window=1, group=4), [(1, 1), (64, 1), (65, 2)]),
    (Shape(window=17, group=5, block_size=32, head_dim=96), [(16, 1), (17, 5), (500, 1)]),
    (Shape(window=128, group=4, num_kv_heads=1, head_dim=128, stored=E4M3), [(127, 1), (700, 8), (0, 1)]),
    (Shape(window=100, group=2, num_kv_heads=1, head_dim=256, stored=INT8), [(99, 1), (333, 2)]),
]


def check_case(device: Device, shape: Shape, lengths: list[tuple[int, int]], split_tokens: int = 0) -> None:
    """Attend to ordinary sequences of these lengths and numbers of query tokens."""
    check(device, shape, [entry(shape, n, q, seed=i) for i, (n, q) in enumerate(lengths)], split_tokens)


def mutation_case(device: Device) -> None:
    """A small complete check, for those who break the kernel on purpose."""
    check_case(device, Shape(num_kv_heads=1), [(33, 1), (0, 1), (1, 1), (112, 1)])  # tables end where memory does
    check_case(device, Shape(group=3, num_kv_heads=1, window=100), [(64, 1), (257, 5)], split_tokens=64)
    shape = Shape(head_dim=128, group=8, num_kv_heads=1, stored=E4M3)
    check(device, shape, [entry(shape, 200, 3), entry(shape, 57, kind="late"), entry(shape, 17, kind="steep")])


@pytest.mark.parametrize(("shape", "lengths"), CASES, ids=str)
def test_it_is_as_exact_as_its_type(device: Device, shape: Shape, lengths: list[tuple[int, int]]) -> None:
    check_case(device, shape, lengths)


@pytest.mark.parametrize(("shape", "lengths"), WINDOWS, ids=str)
def test_a_window_hides_what_is_older(device: Device, shape: Shape, lengths: list[tuple[int, int]]) -> None:
    check_case(device, shape, lengths)


def test_every_type_and_head_size_was_tried() -> None:
    tried = {(shape.head_dim, shape.kv_dtype) for shape, _ in CASES}
    stored = {torch.bfloat16, *LARGEST}

    assert tried >= set(product(HEAD_DIMS, stored))
    assert {(shape.dtype, shape.kv_dtype) for shape, _ in CASES} == {(d, s) for d in HALVES for s in (d, *LARGEST)}


@pytest.mark.parametrize("stored", [None, E4M3, INT8], ids=str)
@pytest.mark.parametrize("kind", ["outliers", "equal", "late", "steep", "sizes"])
def test_ugly_numbers(fastest: Device, kind: str, stored: torch.dtype | None) -> None:
    shape = Shape(head_dim=128, num_kv_heads=1, stored=stored)
    check(fastest, shape, [entry(shape, 150, 2, kind=kind), entry(shape, 300, 1, kind=kind)], split_tokens=128)


def test_queries_of_any_size_meet_codes(fastest: Device) -> None:
    shape = Shape(head_dim=64, num_kv_heads=1, stored=E4M3)
    for size in (1e-30, 1e-8, 3e5):
        ordinary = entry(shape, 100)
        queries = (ordinary.queries.float() * size).to(shape.dtype)
        shrunk = None if ordinary.scales is None else ordinary.scales / torch.tensor([size, 1.0])[:, None, None]
        check(fastest, shape, [dataclasses.replace(ordinary, queries=queries, scales=shrunk)])


def test_many_splits_are_merged(emulator_library: Emulator) -> None:
    shape = Shape(head_dim=64, group=4, num_kv_heads=1)
    device = EmulatedDevice(emulator_library, Mode(), num_multiprocessors=12)
    batch = Laid(device, shape, [entry(shape, 4000, 5), entry(shape, 1000, 1)])
    workspace = decode_workspace(batch.device, batch.limits())
    batch.assert_right(batch.run(workspace))

    assert workspace.plan.items[:, 9].max() > 8
    assert not workspace.counters.any()


def test_the_way_threads_take_turns_leaves_no_trace(device: Device, emulator: EmulatedDevice) -> None:
    shape = Shape(head_dim=128, num_kv_heads=1, stored=E4M3, group=8)
    entries = [entry(shape, 300, 5), entry(shape, 1000, 1), entry(shape, 1, 1)]
    if not isinstance(device, EmulatedDevice):
        pytest.skip("on one and the same device only: a card's arithmetic is another than a CPU's")
    answers = [Laid(each, shape, entries).run() for each in (device, emulator)]

    assert torch.equal(answers[0].out.view(torch.int16), answers[1].out.view(torch.int16))
    assert torch.equal(answers[0].lse, answers[1].lse)


@pytest.mark.parametrize("stored", [None, INT8], ids=str)
def test_with_fixed_splits_company_leaves_no_trace(device: Device, stored: torch.dtype | None) -> None:
    shape = Shape(head_dim=128, num_kv_heads=1, stored=stored)
    ours = entry(shape, 700, 1)
    alone = Laid(device, shape, [ours])
    crowd = Laid(device, shape, [entry(shape, 300, 1, seed=1), entry(shape, 0), ours, entry(shape, 90, 1, seed=2)])
    expected = alone.of(alone.run(decode_workspace(alone.device, alone.limits(split_tokens=256))), 0)

    assert torch.equal(crowd.of(crowd.run(decode_workspace(crowd.device, crowd.limits(split_tokens=256))), 2), expected)


@pytest.mark.parametrize("window", [0, 200])
@pytest.mark.parametrize("stored", [None, E4M3], ids=str)
def test_with_fixed_splits_drafted_tokens_leave_no_trace(
    emulator: EmulatedDevice, stored: torch.dtype | None, window: int
) -> None:
    """The bits of each token verified together are those of the token alone, when the sequence ended there."""
    shape = Shape(head_dim=128, num_kv_heads=1, stored=stored, window=window)
    whole = entry(shape, 521, 5)
    together = Laid(emulator, shape, [whole])
    answer = together.of(together.run(decode_workspace(together.device, together.limits(split_tokens=128))), 0)
    for j in range(5):
        cut = 517 + j
        scales = None if whole.scales is None else whole.scales[:, :cut]
        shorter = Entry(whole.queries[j : j + 1], whole.stored[:, :cut], scales)
        alone = Laid(emulator, shape, [shorter])

        assert torch.equal(
            alone.of(alone.run(decode_workspace(alone.device, alone.limits(split_tokens=128))), 0)[0], answer[j]
        )


def test_room_for_more_query_tokens_changes_nothing(fastest: Device) -> None:
    shape = Shape(head_dim=64, num_kv_heads=2, group=4)
    batch = Laid(fastest, shape, [entry(shape, 300, 1), entry(shape, 77, 3)])
    narrow, wide = (decode_workspace(batch.device, batch.limits(split_tokens=128, max_q_len=q_len)) for q_len in (3, 8))

    assert narrow.choice is not wide.choice
    assert torch.equal(batch.run(narrow).out.view(torch.int16), batch.run(wide).out.view(torch.int16))


def test_what_belongs_to_no_sequence_is_left_alone(emulator: EmulatedDevice) -> None:
    shape = Shape()
    batch = Laid(emulator, shape, [entry(shape, 20), entry(shape, 30, 3)])
    batch.query_starts[1:] = [1, 3]  # the last token is nobody's
    batch.entries[1] = batch.entries[1].last(2)
    mixed = Laid(emulator, shape, batch.entries)
    queries = torch.cat([mixed.qkv, mixed.qkv[:1]])
    out = emulator.empty((4, shape.num_heads, shape.head_dim), shape.dtype)
    workspace = decode_workspace(mixed.device, mixed.limits())
    answer = mixed.run(workspace)
    paged_decode(emulator, workspace, out, emulator.upload(queries), mixed.pool, mixed.tables, scale=shape.scale)

    assert torch.equal(out[:3], answer.out)
    assert out[3].isnan().all()


def test_it_fills_the_card() -> None:
    """Of the instances for one query token and 128 dimensions, three blocks share a multiprocessor of sm_90."""
    (llama,) = [each for each in INSTANCES if each.expression.startswith("paged_decode<bf16, bf16, 128, 1,")]

    assert llama.archs == EVERYWHERE
    assert 3 * (llama.shared_bytes + 2048) > 227 * 1024 > 3 * llama.shared_bytes


def test_what_does_not_fit_is_refused(emulator: EmulatedDevice) -> None:
    shape = Shape()
    batch = Laid(emulator, shape, [entry(shape, 20)])
    workspace = decode_workspace(batch.device, batch.limits())
    out = emulator.empty((1, shape.num_heads, shape.head_dim), shape.dtype)
    with pytest.raises(ShapeError, match="pool"):
        paged_decode(emulator, workspace, out, batch.qkv, batch.pool[:, :, :1], batch.tables, scale=1.0)
    with pytest.raises(ShapeError, match="out"):
        paged_decode(emulator, workspace, out.half(), batch.qkv, batch.pool, batch.tables, scale=1.0)
    with pytest.raises(ShapeError, match="kv_scales"):
        paged_decode(
            emulator, workspace, out, batch.qkv, batch.pool, batch.tables, scale=1.0, kv_scales=batch.pool.float()
        )
    with pytest.raises(ShapeError, match="head_dim"):
        decode_workspace(emulator, dataclasses.replace(batch.limits(), head_dim=80))
