"""When things happen in the emulator: late or at once, forward, in reverse or by chance, and each time the same."""

from pathlib import Path

import pytest
import torch

from engine.kernels.disk_cache import DiskCache
from engine.kernels.emulated_device import EmulatedDevice, Mode, Schedule
from engine.kernels.emulator import Emulator
from engine.kernels.registry import HOPPER, Instance
from engine.kernels.sources import Sources, installed_sources

PROBES = Sources(Path(__file__).parent / "probes", installed_sources())
TURNS = Instance("turns.cu", "turns<true>", "PPi", (64, 1, 1), archs=HOPPER)
THREADS, BLOCKS = 64, 40
COPY_NOT_WAITED_FOR, SOURCE_WRITTEN_OVER, THREADS_COME, BLOCKS_COME, NO_BARRIER = range(5)
POISONS = {-1, 0x7F7F7F7F}


@pytest.fixture(scope="module")
def turning(kernel_cache: DiskCache) -> Emulator:
    return Emulator(kernel_cache, PROBES)


def run(emulator: Emulator, mode: Mode, which: int, blocks: int = 1) -> list[int]:
    """Give what the kernel wrote; it was given 0, 1, 2 and so on."""
    device = EmulatedDevice(emulator, mode)
    given = device.upload(torch.arange(4 * THREADS, dtype=torch.int32))
    out = device.zeros((max(THREADS, blocks),), torch.int32)
    device.launch(TURNS, (blocks, 1, 1), out.data_ptr(), given.data_ptr(), which)
    return [int(word) for word in out]


@pytest.mark.parametrize("schedule", list(Schedule))
def test_late_a_copy_lands_when_it_is_waited_for(turning: Emulator, schedule: Schedule) -> None:
    late = Mode(late=True, schedule=schedule, seed=1)

    assert set(run(turning, late, COPY_NOT_WAITED_FOR)) <= POISONS
    assert run(turning, late, SOURCE_WRITTEN_OVER) == [7] * THREADS


@pytest.mark.parametrize("schedule", [Schedule.FORWARD, Schedule.REVERSE])
def test_early_a_copy_lands_at_once(turning: Emulator, schedule: Schedule) -> None:
    early = Mode(late=False, schedule=schedule)

    assert run(turning, early, COPY_NOT_WAITED_FOR) == list(range(0, 4 * THREADS, 4))
    assert run(turning, early, SOURCE_WRITTEN_OVER) == list(range(0, 4 * THREADS, 4))


def test_early_by_chance_some_copies_land_at_once(turning: Emulator) -> None:
    words = run(turning, Mode(late=False, schedule=Schedule.PRIORITY, seed=1), COPY_NOT_WAITED_FOR)
    at_once = [word for thread, word in enumerate(words) if word == 4 * thread]

    assert 0 < len(at_once) < THREADS


@pytest.mark.parametrize(("which", "count"), [(THREADS_COME, THREADS), (BLOCKS_COME, BLOCKS)])
def test_turns_are_taken_forward_in_reverse_or_by_chance(turning: Emulator, which: int, count: int) -> None:
    blocks = BLOCKS if which == BLOCKS_COME else 1
    came = {schedule: run(turning, Mode(True, schedule, 1), which, blocks)[:count] for schedule in Schedule}
    again = {schedule: run(turning, Mode(True, schedule, 1), which, blocks)[:count] for schedule in Schedule}
    others = [run(turning, Mode(True, Schedule.PRIORITY, seed), which, blocks)[:count] for seed in (2, 3)]

    assert came[Schedule.FORWARD] == list(range(count))
    assert came[Schedule.REVERSE] == list(reversed(range(count)))
    assert came == again
    assert len({tuple(order) for order in (*came.values(), *others)}) == 6


def test_a_barrier_that_is_missing_within_a_warp_shows(turning: Emulator) -> None:
    right = [(thread + 1) % THREADS for thread in range(THREADS)]

    for schedule in Schedule:
        assert run(turning, Mode(True, schedule, 1), NO_BARRIER) != right
