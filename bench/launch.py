"""What a launch costs on the Python side: `python -m bench.launch`.

The driver is a library that does nothing (`tests/rig/stub_driver.cpp`), so that what is left is ours: arguments packed
and cuda-python's call. Where there is a GPU the whole of it is measured too, the real driver launching an empty kernel,
its queue emptied between the rounds.
"""

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from engine.kernels.arguments import Argument, ArgumentBlock
from engine.kernels.compiler import Compiler
from engine.kernels.cuda_device import CudaDevice
from engine.kernels.disk_cache import DiskCache, cache_directory
from engine.kernels.driver import Driver
from engine.kernels.registry import Instance
from engine.kernels.sources import Sources, installed_sources
from tests.rig.stub_driver import build, stubbed

SOURCES = Path(__file__).resolve().parent.parent / "tests" / "kernels" / "sources"
LAUNCHES = 10_000
ROUNDS = 9
INSIDE = "inside"
GRID = (132, 1, 1)
EMPTY = Instance("nothing.cu", "nothing<1>", "PPPPPPiiff", (256, 1, 1))
OVERLAPPING = Instance("nothing.cu", "nothing<1>", "PPPPPPiiff", (256, 1, 1), overlaps=True)
MAPPED = Instance("nothing.cu", "mapped<1>", "TTPPPPiiff", (256, 1, 1))


def main() -> int:
    """Measure in a process of its own, which finds the stub instead of a driver; then on the card, if there is one."""
    if sys.argv[1:] == [INSIDE]:
        _without_a_driver()
        return 0
    machine = platform.processor() or platform.machine()
    print(f"{machine}, Python {platform.python_version()}; µs of CPU a launch, the median")
    with TemporaryDirectory() as directory:
        build(Path(directory))
        command = [sys.executable, "-m", "bench.launch", INSIDE]
        status = subprocess.run(command, env=stubbed(Path(directory)), check=False).returncode
    if torch.cuda.is_available():
        _with_the_card()
    return status


def _without_a_driver() -> None:
    driver = Driver()
    plain, overlapping, mapped = (driver.load(which, b"", "nothing") for which in (EMPTY, OVERLAPPING, MAPPED))
    tensors = [torch.zeros(1) for _ in range(6)]
    pointers = tuple(tensor.data_ptr() for tensor in tensors)
    values: tuple[Argument, ...] = (*pointers, 1, 2, 0.5, 1e-5)
    maps: tuple[Argument, ...] = (bytes(128), bytes(128), *pointers[:4], 1, 2, 0.5, 1e-5)
    pack = ArgumentBlock(EMPTY).pack

    def with_tensors() -> None:
        a, b, c, d, e, f = tensors
        given = (a.data_ptr(), b.data_ptr(), c.data_ptr(), d.data_ptr(), e.data_ptr(), f.data_ptr(), 1, 2, 0.5, 1e-5)
        plain(GRID, 1, given)

    _report("ten arguments packed", lambda: pack(values))
    _report("packed and launched", lambda: plain(GRID, 1, values))
    _report("… that overlaps its predecessor", lambda: overlapping(GRID, 1, values))
    _report("… with two tensor maps", lambda: mapped(GRID, 1, maps))
    _report("… with six calls of data_ptr()", with_tensors)


def _with_the_card() -> None:
    sources = Sources(SOURCES, installed_sources())
    device = CudaDevice(Compiler(DiskCache(cache_directory(os.environ)), sources))
    memory = device.empty((6,), torch.int64)
    values: tuple[Argument, ...] = (*[memory.data_ptr()] * 6, 1, 2, 0.5, 1e-5)
    print(f"on {device.name}, with its driver:")
    for what, instance in (("launched", EMPTY), ("launched, overlapping its predecessor", OVERLAPPING)):
        _report(what, lambda instance=instance: device.launch(instance, GRID, *values), device.synchronize)


def _report(what: str, one: Callable[[], object], settle: Callable[[], None] = lambda: None) -> None:
    rounds = []
    for _ in range(ROUNDS):
        started = time.process_time()
        for _ in range(LAUNCHES):
            one()
        rounds.append((time.process_time() - started) / LAUNCHES * 1e6)
        settle()
    print(f"{statistics.median(rounds):6.2f}  {what}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
