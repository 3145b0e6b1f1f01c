"""Prefill attention over pages on the tensor cores of every card."""

import pytest
import torch

from engine.device import Device
from engine.errors import ShapeError
from engine.kernels.dtypes import HALVES, LARGEST
from engine.kernels.emulated_device import EmulatedDevice, Mode, Schedule
from engine.kernels.emulator import Emulator
from engine.kernels.paged_prefill import HEAD_DIMS, paged_prefill
from tests.kernels.prefill_batch import (
    Batch,
    Chunk,
    Shape,
    assert_cut_alike,
    assert_right,
    attend,
    equal_keys,
    lengths,
    outlier,
    prompt,
)

E4M3, INT8 = LARGEST


def mutation_case(device: Device) -> None:
    """What a changed kernel has to fail."""
    for shape in (Shape(group=5), Shape(window=70, stored=INT8)):
        chunks = [
            *lengths(shape, (1, 1), (17, 150)),
            Chunk(None, 0, 2),
            *lengths(shape, (0, 20), (30, 31), (15, 208), (3, 135)),
        ]
        assert_right(Batch(device, shape, chunks), attend)


def test_a_ragged_batch_with_padding_is_attended_as_its_sequences_are(device: Device) -> None:
    mutation_case(device)


@pytest.mark.parametrize("block_size", [16, 32, 64])
def test_chunks_of_every_length_stand_at_every_depth(fastest: Device, block_size: int) -> None:
    shape = Shape(num_kv_heads=1, block_size=block_size)
    chunks = [
        (1, 1), (1, block_size - 1), (1, block_size), (1, block_size + 1), (15, 15), (16, 63), (17, 64), (64, 65),
        (65, 65), (65, 4 * block_size + 1), (1, 193),
    ]  # fmt: skip
    assert_right(Batch(fastest, shape, lengths(shape, *chunks)), attend)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("stored", [None, E4M3, INT8], ids=str)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_instance_is_right(
    fastest: Device, dtype: torch.dtype, stored: torch.dtype | None, head_dim: int
) -> None:
    shape = Shape(head_dim=head_dim, dtype=dtype, stored=stored)
    assert_right(Batch(fastest, shape, lengths(shape, (40, 100), (3, 65))), attend)


@pytest.mark.parametrize("group", [1, 4, 5, 8])
def test_heads_of_a_group_share_keys(fastest: Device, group: int) -> None:
    shape = Shape(group=group)
    assert_right(Batch(fastest, shape, lengths(shape, (1, 9), (16, 16), (17, 80), (33, 66))), attend)


@pytest.mark.parametrize("window", [1, 15, 16, 64, 65, 1000])
def test_a_window_hides_what_is_older(fastest: Device, window: int) -> None:
    shape = Shape(window=window)
    assert_right(Batch(fastest, shape, lengths(shape, (1, 200), (70, 70), (40, 150))), attend)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("stored", [None, E4M3, INT8], ids=str)
@pytest.mark.parametrize("spoil", [outlier, equal_keys])
def test_extreme_numbers_are_no_worse_than_in_plain_low_precision(
    fastest: Device, dtype: torch.dtype, stored: torch.dtype | None, spoil: object
) -> None:
    shape = Shape(dtype=dtype, stored=stored)
    chunks = [Chunk(prompt(shape, 130, 0, spoil), 90, 130), Chunk(prompt(shape, 30, 1, spoil), 0, 30)]
    assert_right(Batch(fastest, shape, chunks), attend)


def test_bits_depend_neither_on_chunks_nor_on_neighbours(device: Device) -> None:
    assert_cut_alike(device, Shape(num_kv_heads=1, group=5, window=50), attend, 150, 1, 18, 96)


@pytest.mark.parametrize("shape", [Shape(), Shape(head_dim=256, block_size=32), Shape(stored=E4M3)], ids=str)
def test_bits_of_any_instance_depend_neither_on_chunks_nor_on_neighbours(fastest: Device, shape: Shape) -> None:
    assert_cut_alike(fastest, shape, attend, 150, 1, 18, 96)


def test_bits_are_the_same_at_every_repetition(device: Device) -> None:
    shape = Shape(group=4, stored=INT8)
    batch = Batch(device, shape, lengths(shape, (30, 150), (70, 70)))
    first = attend(batch)
    for _ in range(2):
        again = attend(batch)

        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])


def test_bits_are_the_same_in_every_mode(emulator_library: Emulator) -> None:
    shape = Shape(group=4)
    seen = []
    for late in (True, False):
        for schedule in Schedule:
            device = EmulatedDevice(emulator_library, Mode(late, schedule, seed=3))
            seen.append(attend(Batch(device, shape, lengths(shape, (30, 150), (70, 70)))))

    assert all(torch.equal(out, seen[0][0]) and torch.equal(lse, seen[0][1]) for out, lse in seen)


def test_tokens_of_no_sequence_are_left_alone(fastest: Device) -> None:
    shape = Shape()
    batch = Batch(fastest, shape, lengths(shape, (5, 20), (7, 7)))
    batch.query_starts[2] = 9  # the last three tokens belong to nobody
    batch.kv_lengths[1] = 4
    out, lse = attend(batch)

    assert out[9:].isnan().all()
    assert lse[9:].isnan().all()
    assert out[:9].isfinite().all()


def test_sequences_at_the_front_may_be_left_to_another_kernel(fastest: Device) -> None:
    shape = Shape()
    batch = Batch(fastest, shape, lengths(shape, (1, 30), (1, 5), (40, 50), (3, 70)))
    whole, _ = attend(batch)
    batch.query_starts, batch.kv_lengths = batch.query_starts[2:], batch.kv_lengths[2:]
    batch.tables, batch.chunks = batch.tables[2:], batch.chunks[2:]
    part, _ = attend(batch)

    assert part[:2].isnan().all()
    assert torch.equal(part[2:], whole[2:])


def test_log_sums_are_written_where_they_are_asked_for(fastest: Device) -> None:
    shape = Shape()
    batch = Batch(fastest, shape, lengths(shape, (5, 20), (70, 70)))
    with_them, without = attend(batch), attend(batch, wants_lse=False)

    assert torch.equal(with_them[0], without[0])
    assert without[1].isnan().all()


def test_nothing_is_launched_for_an_empty_batch(fastest: Device) -> None:
    out, lse = attend(Batch(fastest, Shape(), []))

    assert out.numel() == lse.numel() == 0


def test_wrong_arguments_are_named(fastest: Device) -> None:
    shape = Shape()
    batch = Batch(fastest, shape, lengths(shape, (5, 20)))
    out, lse = batch.outputs()
    good = {
        "out": out,
        "qkv": batch.qkv,
        "pool": batch.pool,
        "tiles": batch.tiles(64),
        "query_starts": batch.query_starts,
        "kv_lengths": batch.kv_lengths,
        "block_tables": batch.tables,
        "kv_scales": None,
        "lse": lse,
    }
    wrong = {
        "out": out[..., :48].contiguous(),
        "qkv": batch.qkv.half(),
        "pool": batch.pool[:, :, :, :8].contiguous(),
        "tiles": batch.tiles(64).long(),
        "query_starts": batch.query_starts[:1],
        "block_tables": batch.tables.T,
        "kv_scales": torch.zeros(1),
        "lse": lse[:2],
    }
    for name, tensor in wrong.items():
        with pytest.raises(ShapeError, match=name if name != "out" else "qkv"):
            paged_prefill(fastest, **{**good, name: tensor}, scale=1.0)
