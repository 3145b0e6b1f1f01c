"""Prefill attention over pages by wgmma and TMA."""

import pytest
import torch

from engine.device import Device
from engine.errors import ShapeError
from engine.kernels.dtypes import HALVES
from engine.kernels.emulated_device import EmulatedDevice, Mode, Schedule
from engine.kernels.emulator import Emulator
from engine.kernels.paged_prefill import HEAD_DIMS
from tests.kernels.prefill_batch import (
    Batch,
    Chunk,
    Shape,
    assert_cut_alike,
    assert_right,
    attend_sm90,
    equal_keys,
    lengths,
    outlier,
    prompt,
)


@pytest.fixture(autouse=True)
def _only_hopper(request: pytest.FixtureRequest) -> None:
    for name in ("device", "fastest"):
        if name in request.fixturenames and request.getfixturevalue(name).arch != "sm_90a":
            pytest.skip("wgmma needs sm_90a")


def mutation_case(device: Device) -> None:
    """What a changed kernel has to fail."""
    for shape in (Shape(num_kv_heads=1, group=5), Shape(head_dim=96, num_kv_heads=1, block_size=32, window=130)):
        ragged = lengths(shape, (0, 20), (40, 41), (15, 432), (3, 259), (3, 512), (1, 256))
        chunks = [*lengths(shape, (1, 1), (17, 300)), Chunk(None, 0, 2), *ragged]
        assert_right(Batch(device, shape, chunks), attend_sm90)


def test_a_ragged_batch_with_padding_is_attended_as_its_sequences_are(device: Device) -> None:
    mutation_case(device)


@pytest.mark.parametrize("block_size", [16, 32, 64])
def test_chunks_of_every_length_stand_at_every_depth(fastest: Device, block_size: int) -> None:
    shape = Shape(num_kv_heads=1, block_size=block_size)
    chunks = [
        (1, 1), (1, block_size - 1), (1, block_size), (1, block_size + 1), (15, 15), (16, 63), (17, 128), (64, 129),
        (65, 65), (65, 4 * block_size + 1), (1, 385),
    ]  # fmt: skip
    assert_right(Batch(fastest, shape, lengths(shape, *chunks)), attend_sm90)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_instance_is_right(fastest: Device, dtype: torch.dtype, head_dim: int) -> None:
    shape = Shape(head_dim=head_dim, dtype=dtype)
    assert_right(Batch(fastest, shape, lengths(shape, (70, 300), (3, 65))), attend_sm90)


@pytest.mark.parametrize("group", [1, 4, 5, 8])
def test_heads_of_a_group_share_keys(fastest: Device, group: int) -> None:
    shape = Shape(group=group)
    assert_right(Batch(fastest, shape, lengths(shape, (1, 9), (16, 16), (17, 80), (33, 140))), attend_sm90)


@pytest.mark.parametrize("window", [1, 15, 16, 128, 129, 1000])
def test_a_window_hides_what_is_older(fastest: Device, window: int) -> None:
    shape = Shape(window=window)
    assert_right(Batch(fastest, shape, lengths(shape, (1, 300), (70, 70), (40, 280))), attend_sm90)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("spoil", [outlier, equal_keys])
def test_extreme_numbers_are_no_worse_than_in_plain_low_precision(
    fastest: Device, dtype: torch.dtype, spoil: object
) -> None:
    shape = Shape(dtype=dtype)
    chunks = [Chunk(prompt(shape, 230, 0, spoil), 190, 230), Chunk(prompt(shape, 30, 1, spoil), 0, 30)]
    assert_right(Batch(fastest, shape, chunks), attend_sm90)


def test_bits_depend_neither_on_chunks_nor_on_neighbours(device: Device) -> None:
    assert_cut_alike(device, Shape(num_kv_heads=1, group=5, window=50), attend_sm90, 290, 1, 18, 160)


@pytest.mark.parametrize("shape", [Shape(), Shape(head_dim=96), Shape(head_dim=256, block_size=32)], ids=str)
def test_bits_of_any_instance_depend_neither_on_chunks_nor_on_neighbours(fastest: Device, shape: Shape) -> None:
    assert_cut_alike(fastest, shape, attend_sm90, 290, 1, 18, 160)


def test_bits_are_the_same_at_every_repetition(device: Device) -> None:
    shape = Shape(group=4)
    batch = Batch(device, shape, lengths(shape, (30, 150), (70, 300)))
    first = attend_sm90(batch)
    for _ in range(2):
        again = attend_sm90(batch)

        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])


def test_bits_are_the_same_in_every_mode(emulator_library: Emulator) -> None:
    shape = Shape(group=4)
    seen = []
    for late in (True, False):
        for schedule in Schedule:
            device = EmulatedDevice(emulator_library, Mode(late, schedule, seed=3))
            seen.append(attend_sm90(Batch(device, shape, lengths(shape, (30, 150), (70, 300)))))

    assert all(torch.equal(out, seen[0][0]) and torch.equal(lse, seen[0][1]) for out, lse in seen)


def test_log_sums_are_written_where_they_are_asked_for(fastest: Device) -> None:
    shape = Shape()
    batch = Batch(fastest, shape, lengths(shape, (5, 20), (70, 70)))
    with_them, without = attend_sm90(batch), attend_sm90(batch, wants_lse=False)

    assert torch.equal(with_them[0], without[0])
    assert without[1].isnan().all()


def test_nothing_is_launched_for_an_empty_batch(fastest: Device) -> None:
    out, lse = attend_sm90(Batch(fastest, Shape(), []))

    assert out.numel() == lse.numel() == 0


def test_codes_are_refused(fastest: Device) -> None:
    shape = Shape(stored=torch.int8)
    with pytest.raises(ShapeError, match="pool"):
        attend_sm90(Batch(fastest, shape, lengths(shape, (5, 20))))
