"""What kernel tests run on: the emulator in six modes, and a card where there is one.

A test makes its tensors with `device.upload(...)` and brings results back with `.cpu()`, so that the same test runs on
both. `device` is every one of them in turn; `emulator` is one mode, for cases that take long, and `fastest` is the card
where there is one and that mode elsewhere, for those that a card should see, too.
"""

import os
from pathlib import Path

import pytest
import torch

from engine.device import Device
from engine.kernels.compiler import Compiler
from engine.kernels.cuda_device import CudaDevice
from engine.kernels.disk_cache import DiskCache, cache_directory
from engine.kernels.emulated_device import EmulatedDevice, Mode, Schedule
from engine.kernels.emulator import Emulator
from engine.kernels.sources import Sources, installed_sources

MODES = [
    Mode(late, schedule, seed)
    for late in (True, False)
    for schedule, seed in ((Schedule.FORWARD, 0), (Schedule.PRIORITY, 1), (Schedule.PRIORITY, 2))
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give `device` its kinds: the modes, and `cuda` where torch sees a card. By these ids a run on a card chooses."""
    if "device" in metafunc.fixturenames:
        kinds: list[Mode | str] = [*MODES, *(["cuda"] if torch.cuda.is_available() else [])]
        metafunc.parametrize("device", kinds, indirect=True, ids=str)
    if "fastest" in metafunc.fixturenames:
        metafunc.parametrize("fastest", ["cuda" if torch.cuda.is_available() else "emulator"], indirect=True)


@pytest.fixture(scope="session")
def kernel_sources() -> Sources:
    """The project's kernels, and those that are for tests alone."""
    return Sources(Path(__file__).parent / "sources", installed_sources())


@pytest.fixture(scope="session")
def kernel_cache() -> DiskCache:
    """The user's own cache: what was compiled for an earlier run is not compiled again."""
    return DiskCache(cache_directory(os.environ))


@pytest.fixture(scope="session")
def emulator_library(kernel_cache: DiskCache, kernel_sources: Sources) -> Emulator:
    """The emulator itself, loaded once."""
    return Emulator(kernel_cache, kernel_sources)


@pytest.fixture
def emulator(emulator_library: Emulator) -> EmulatedDevice:
    """The emulator in the mode that finds most by itself."""
    return EmulatedDevice(emulator_library, Mode(late=True, schedule=Schedule.PRIORITY, seed=1))


@pytest.fixture(scope="session")
def card(kernel_cache: DiskCache, kernel_sources: Sources) -> Device:
    """The GPU; asked for only where there is one."""
    return CudaDevice(Compiler(kernel_cache, kernel_sources))


@pytest.fixture
def fastest(request: pytest.FixtureRequest) -> Device:
    """One device: the card where there is one, else the emulator in the mode that finds most."""
    found: Device = request.getfixturevalue("card" if request.param == "cuda" else "emulator")
    return found


@pytest.fixture
def device(request: pytest.FixtureRequest) -> Device:
    """Each device in turn."""
    if isinstance(request.param, Mode):
        return EmulatedDevice(request.getfixturevalue("emulator_library"), request.param)
    found: Device = request.getfixturevalue("card")
    return found
