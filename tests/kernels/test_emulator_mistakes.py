"""What the emulator says of kernels that are wrong: every mistake by its name, with block and thread."""

from pathlib import Path

import pytest
import torch

from engine.errors import LaunchError
from engine.kernels.disk_cache import DiskCache
from engine.kernels.emulated_device import EmulatedDevice, Mode, Schedule
from engine.kernels.emulator import Emulator
from engine.kernels.registry import HOPPER, Instance
from engine.kernels.sources import Sources, installed_sources

PROBES = Sources(Path(__file__).parent / "probes", installed_sources())
MISTAKES = Instance("mistakes.cu", "mistakes<true>", "PPiT", (128, 1, 1), shared_bytes=16380, archs=HOPPER)

# In the order of the cases in mistakes.cu.
NAMED = {
    "a barrier to which nobody else comes": r"deadlock: threads 0-31 wait for bar.sync 3, where 32 of 64 threads",
    "an mbarrier that nobody arrives at": r"deadlock: threads 0-127 wait for the mbarrier .* lacks 1 of 1 arrivals",
    "lanes that do different things": r"divergence: this lane is at .*(__syncwarp|a shuffle)",
    "lanes with different masks": r"divergence: .*mask",
    "a mask without oneself": r"thread \(40, 0, 0\): __syncwarp: its own lane 8 is not in the mask 00000001",
    "a shuffle from a lane that takes no part": r"a shuffle reads lane 20, which is not in the mask",
    "counts that differ": r"barrier 2: this warp counts (64|128) threads, who came before counted (128|64)",
    "a count that is not of whole warps": r"bar.sync 2: 100 threads are not whole warps",
    "a warp that arrives twice": r"barrier 2: the same warp arrives twice",
    "leaving while others wait": r"(thread \(77, 0, 0\): exits while|__syncthreads: .* have exited)",
    "waiting for who has left": r"(__syncthreads: \d+ threads of the block have exited|exits while \d+ threads wait)",
    "a barrier that was not made": r"used before mbar_init",
    "a barrier that was made twice": r"mbar_init: the mbarrier at shared address \d+ exists already",
    "more arrivals than it counts": r"mbar_arrive: more than the 1 arrivals of a phase .* still lacks 64 bytes",
    "a parity that is none": r"the parity is 2",
    "a barrier that was written over": r"the mbarrier at shared address \d+ was written over",
    "two phases while somebody waits for one": r"two phases of the mbarrier .* passed",
    "bytes that never came": r"the block ended and the mbarrier at shared address \d+ still expects 64 bytes",
    "fewer bytes than expected": r"deadlock: .* lacks 0 of 1 arrivals and 16 bytes",
    "a copy that nobody waits for": r"the block ended while a bulk copy .* nobody waited for it",
    "a barrier that copies cannot see": r"made without mbar_fence_init",
    "a box to a place that is not aligned": r"tma_load: the shared address \d+ is misaligned, it needs 128",
    "more coordinates than dimensions": r"3 coordinates for a tensor map of 2 dimensions",
    "something else than a map": r"is not a tensor map",
    "a box that ends behind shared memory": r"tma_load: 1024 bytes at shared address \d+ are out of range",
    "bytes that are not a multiple of 16": r"40 bytes are not a multiple of 16",
    "a store of what was written without a fence": r"tma_store reads .* written without fence_proxy_async",
    "a store that nobody waits for": r"exits with 1 bulk stores that it never waited for",
    "a product without a fence": r"wgmma without wgmma_fence",
    "a product that nobody waits for": r"exits with 1 wgmma that nobody waited for",
    "a product of what was written without a fence": r"wgmma reads .* written without fence_proxy_async",
    "a product of only three warps": r"warps 0 and 1 of one warpgroup issued different wgmma",
    "lanes with different descriptors": r"wgmma: lanes 0 and 5 bring different descriptors",
    "a tile that begins where its swizzle does not": r"128-byte swizzle begins .* in the middle of its pattern",
    "a copy to a place that is not aligned": r"cp.async: the shared address \d+ is misaligned, it needs 16",
    "a copy from a place that is not aligned": r"cp.async: the global address \S+ is misaligned",
    "a row behind shared memory": r"ldmatrix: 16 bytes at shared address 17392 are out of range",
    "a row that is not aligned": r"ldmatrix: the shared address 1048 is misaligned",
    "a read behind a tensor": r"thread \(3, 0, 0\): out of bounds: 60 bytes behind the end of a tensor of 100 bytes",
    "a write right behind a tensor": r"written behind a tensor of 100 bytes",
    "a tensor that was freed": r"thread \(3, 0, 0\): use after free: byte 8 of a tensor of 64 bytes",
    "a write right behind shared memory": r"shared memory was written behind its 16380 dynamic bytes",
    "a write far behind it": r"thread \(3, 0, 0\): out of bounds of shared memory",
    "a write behind an array": r"shared memory was written behind the array barrier of 16 bytes",
    "nothing": r"thread \(3, 0, 0\): invalid access at",
    "a stack without an end": r"thread \(3, 0, 0\): the stack of \d+ KiB overflowed",
    "a division by zero": r"thread \(3, 0, 0\): integer division by zero",
    "a vector that is not aligned": r"thread \(3, 0, 0\): undefined behaviour \(a misaligned access",
    "an index behind an array": r"thread \(3, 0, 0\): undefined behaviour",
    "a pointer that is not into shared memory": r"cp.async: the pointer \S+ does not point to shared memory",
    "an operand that is written while it is read": r"wgmma: its left operand was written while it was under way",
}
# What is done at once is never under way, and by chance it may be done in time.
ONLY_LATE = {
    "a copy that nobody waits for",
    "a product that nobody waits for",
    "a store that nobody waits for",
    "an operand that is written while it is read",
}
NOT_BY_CHANCE = {"a copy that nobody waits for", "two phases while somebody waits for one"}


@pytest.fixture(scope="module")
def mistaken(kernel_cache: DiskCache) -> Emulator:
    return Emulator(kernel_cache, PROBES)


def make(emulator: Emulator, mode: Mode, which: int) -> None:
    device = EmulatedDevice(emulator, mode)
    tensor = device.zeros((100,), torch.uint8)
    freed = device.zeros((64,), torch.uint8)
    there_was = freed.data_ptr()
    del freed
    described = device.tensor_map(device.zeros((8, 64), torch.bfloat16), (8, 64), 128)
    device.launch(MISTAKES, (1, 1, 1), tensor.data_ptr(), there_was, which, described)


@pytest.mark.parametrize("mistake", NAMED)
@pytest.mark.parametrize("schedule", list(Schedule), ids=lambda schedule: schedule.name.lower())
@pytest.mark.parametrize("late", [True, False], ids=["late", "early"])
def test_a_mistake_is_named(mistaken: Emulator, mistake: str, schedule: Schedule, late: bool) -> None:
    by_chance = schedule in (Schedule.RANDOM, Schedule.PRIORITY)
    if (mistake in ONLY_LATE and not late) or (mistake in NOT_BY_CHANCE and by_chance):
        return
    which = list(NAMED).index(mistake)

    with pytest.raises(LaunchError, match=NAMED[mistake]) as raised:
        make(mistaken, Mode(late, schedule, 1), which)

    assert "block (0, 0, 0)" in str(raised.value) or "global memory" in str(raised.value)
