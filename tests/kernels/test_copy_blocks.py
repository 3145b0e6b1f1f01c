"""Blocks from pools to pools: all layers, exactly those that were named, whatever their size."""

import pytest
import torch
from torch import Tensor

from engine.device import Device
from engine.errors import ShapeError
from engine.kernels.copy_blocks import addresses, copy_blocks, copy_blocks_reference
from engine.kernels.emulated_device import EmulatedDevice

PAIRS = torch.tensor([[3, 0], [0, 4], [2, 1]], dtype=torch.int32)


def pools(num_layers: int, num_blocks: int, block_bytes: int, seed: int) -> list[Tensor]:
    """Pools of random bytes."""
    rng = torch.Generator().manual_seed(seed)
    shape = (num_blocks, block_bytes)
    return [torch.randint(256, shape, generator=rng, dtype=torch.uint8) for _ in range(num_layers)]


def check(device: Device, num_layers: int, block_bytes: int) -> None:
    """Copy between pools of different sizes, blocks crosswise, and compare every byte."""
    sources, destinations = pools(num_layers, 4, block_bytes, 1), pools(num_layers, 5, block_bytes, 2)
    expected = copy_blocks_reference(destinations, sources, PAIRS)
    read, written = [device.upload(pool) for pool in sources], [device.upload(pool) for pool in destinations]
    tables = addresses(device, written), addresses(device, read)
    pairs = device.upload(PAIRS)
    copy_blocks(device, *tables, pairs, block_bytes)
    device.synchronize()

    for ours, theirs in zip(written, expected, strict=True):
        assert torch.equal(ours.cpu(), theirs)
    for ours, theirs in zip(read, sources, strict=True):
        assert torch.equal(ours.cpu(), theirs)


def mutation_case(device: Device) -> None:
    """A small complete check, for those who break the kernel on purpose."""
    check(device, 2, 16 * 1024 + 48)


@pytest.mark.parametrize("block_bytes", [16, 48, 4096, 16 * 1024, 16 * 1024 + 16, 40_000])
def test_named_blocks_are_copied_and_no_others_touched(device: Device, block_bytes: int) -> None:
    check(device, 3, block_bytes)


def test_blocks_are_copied_within_a_pool(device: Device) -> None:
    before = pools(2, 4, 272, 3)
    pairs = torch.tensor([[1, 0], [3, 2]], dtype=torch.int32)
    expected = copy_blocks_reference(before, before, pairs)
    after = [device.upload(pool) for pool in before]
    table = addresses(device, after)
    on_device = device.upload(pairs)
    copy_blocks(device, table, table, on_device, 272)
    device.synchronize()

    for ours, theirs in zip(after, expected, strict=True):
        assert torch.equal(ours.cpu(), theirs)


def test_blocks_go_out_to_pinned_memory_and_come_back(device: Device) -> None:
    before = pools(2, 3, 1040, 4)
    on_device, rooms = [device.upload(pool) for pool in before], pools(2, 2, 1040, 5)
    pinned = device.torch_device.type == "cuda"
    host = [room.pin_memory() if pinned else device.upload(room) for room in rooms]
    here, there = addresses(device, on_device), addresses(device, host)
    out, back = (device.upload(torch.tensor(pair, dtype=torch.int32)) for pair in ([[2, 0], [0, 1]], [[0, 1], [1, 2]]))
    copy_blocks(device, there, here, out, 1040)
    copy_blocks(device, here, there, back, 1040)
    device.synchronize()

    for ours, original in zip(on_device, before, strict=True):
        assert torch.equal(ours.cpu(), original[[0, 2, 0]])


def test_no_pairs_are_no_work(emulator: EmulatedDevice) -> None:
    table = addresses(emulator, [torch.zeros(16)])
    copy_blocks(emulator, table, table, torch.empty(0, 2, dtype=torch.int32), 16)


@pytest.mark.parametrize("block_bytes", [0, 24])
def test_sizes_that_are_not_whole_vectors_are_refused(emulator: EmulatedDevice, block_bytes: int) -> None:
    table = addresses(emulator, [torch.zeros(16)])

    with pytest.raises(ShapeError, match="multiple of 16"):
        copy_blocks(emulator, table, table, PAIRS, block_bytes)
