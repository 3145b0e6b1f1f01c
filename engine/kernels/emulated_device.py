"""A device that is a CPU: kernels run in the emulator, one block after the other, and faults are found.

Each tensor ends where a page begins that nobody may touch, so an access past its end faults; memory that was not
written holds NaN. How threads interleave and when asynchronous copies land is chosen to be as hostile as the rules
allow (`Mode`), and is the same each time.
"""

import ctypes
import math
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from engine.errors import LaunchError
from engine.kernels.arguments import Argument, ArgumentBlock
from engine.kernels.emulator import Emulator
from engine.kernels.registry import HOPPER, Instance
from engine.kernels.tensor_geometry import geometry
from engine.kernels.tensor_map import MAP_BYTES

ERROR_BYTES = 4096
MAX_GRID = (2**31 - 1, 65535, 65535)


class Schedule(IntEnum):
    """Which thread runs next. `PRIORITY` runs one warp as far as it goes and changes its favourite at random points."""

    FORWARD = 0
    REVERSE = 1
    RANDOM = 2
    PRIORITY = 3


@dataclass(frozen=True, slots=True)
class Mode:
    """How hostile the emulator is. `late`: an asynchronous copy lands when it is waited for; else when it is issued."""

    late: bool = True
    schedule: Schedule = Schedule.FORWARD
    seed: int = 0

    def __str__(self) -> str:
        seed = f"-{self.seed}" if self.schedule in (Schedule.RANDOM, Schedule.PRIORITY) else ""
        return f"{'late' if self.late else 'early'}-{self.schedule.name.lower()}{seed}"


class EmulatedDevice:
    """A `Device`. Several may share one emulator, each with its mode; one thread at a time."""

    arch = HOPPER[0]
    torch_device = torch.device("cpu")

    def __init__(self, emulator: Emulator, mode: Mode, num_multiprocessors: int = 4) -> None:
        self.mode = mode
        self.name = f"emulator, {mode}"
        self.num_multiprocessors = num_multiprocessors
        self._emulator = emulator
        self._error = ctypes.create_string_buffer(ERROR_BYTES)
        self._blocks: dict[Instance, ArgumentBlock] = {}

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        size = math.prod(shape) * dtype.itemsize
        if size == 0:
            return torch.empty(shape, dtype=dtype)
        library = self._emulator.library
        address = library.emu_alloc(size)
        memory = (ctypes.c_uint8 * size).from_address(address)
        # torch keeps `memory` alive for as long as any view of the tensor lives.
        weakref.finalize(memory, library.emu_free, address, size).atexit = False
        return torch.frombuffer(memory, dtype=torch.uint8).view(dtype).view(shape)

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        made = self.empty(shape, dtype)
        made.view(torch.uint8).zero_()
        return made

    def upload(self, tensor: Tensor) -> Tensor:
        return self.empty(tuple(tensor.shape), tensor.dtype).copy_(tensor)

    def launch(self, instance: Instance, grid: tuple[int, int, int], *arguments: Argument) -> None:
        block = self._blocks.get(instance)
        if block is None:
            block = self._blocks[instance] = ArgumentBlock(instance)
        block.pack(arguments)
        if not all(1 <= size <= most for size, most in zip(grid, MAX_GRID, strict=True)):
            raise self._failure(instance, grid, f"a grid is of 1 to {MAX_GRID} blocks")
        function = self._emulator.function(instance)
        self._emulator.library.emu_options(self.mode.late, self.mode.schedule, self.mode.seed)
        blocks, threads = (ctypes.c_uint32 * 3)(*grid), (ctypes.c_uint32 * 3)(*instance.block)
        if function(blocks, threads, instance.shared_bytes, block.address, self._error, ERROR_BYTES):
            raise self._failure(instance, grid, self._error.value.decode(errors="replace"))

    def warm(self, instances: Iterable[Instance]) -> None:
        self._emulator.warm([instance for instance in instances if self.arch in instance.archs])

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        return run

    def tensor_map(self, tensor: Tensor, box: tuple[int, ...], swizzle_bytes: int) -> bytes:
        laid = geometry(tensor, box, swizzle_bytes)
        made = ctypes.create_string_buffer(MAP_BYTES)
        status = self._emulator.library.emu_tensor_map(
            made,
            laid.element_bytes,
            laid.rank,
            ctypes.c_void_p(laid.address),
            (ctypes.c_uint64 * laid.rank)(*laid.sizes),
            (ctypes.c_uint64 * laid.rank)(*laid.strides_bytes),
            (ctypes.c_uint32 * laid.rank)(*laid.box),
            swizzle_bytes,
        )
        assert status == 0, f"the emulator refuses a tensor map that was checked: {laid}"
        return made.raw

    def synchronize(self) -> None:
        """Nothing to wait for: a launch returns when the kernel has ended."""

    def _failure(self, instance: Instance, grid: tuple[int, int, int], problem: str) -> LaunchError:
        return LaunchError(str(instance), problem, grid=grid, block=instance.block, shared_bytes=instance.shared_bytes)
