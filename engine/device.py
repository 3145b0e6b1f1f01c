"""What the engine runs its kernels on: an NVIDIA GPU, or a CPU that emulates one."""

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from engine.errors import NoDevice
from engine.kernels.arguments import Argument
from engine.kernels.disk_cache import DiskCache, cache_directory
from engine.kernels.registry import Instance

OVERLAP = "PENSTOCK_KERNEL_OVERLAP"
"""Set to 0, no kernel begins before its predecessor has ended: for those who look for a fault."""


class Device(Protocol):
    """Memory and launches. `engine/kernels/cuda_device.py` and `emulated_device.py` are the two there are."""

    @property
    def name(self) -> str:
        """What it calls itself."""

    @property
    def arch(self) -> str:
        """What its kernels are compiled for, such as sm_90a."""

    @property
    def torch_device(self) -> torch.device:
        """Where its tensors are for torch."""

    @property
    def num_multiprocessors(self) -> int:
        """How many blocks run at once, at one block each."""

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Memory that nobody has written; the emulator's is full of NaN."""

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Memory that is zero."""

    def upload(self, tensor: Tensor) -> Tensor:
        """A contiguous copy in the device's memory."""

    def launch(self, instance: Instance, grid: tuple[int, int, int], *arguments: Argument) -> None:
        """Start a kernel behind what was started before. Tensors are passed as `tensor.data_ptr()`.

        They must live until it has run. Raises `LaunchError`.
        """

    def warm(self, instances: Iterable[Instance]) -> None:
        """Compile and load these beforehand, those of them that are for this device's arch."""

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """Give what does again what `run` starts, all at once, on the same memory; `run` must not wait for the device.

        It may be called more than once before it is captured. The emulator just calls it again.
        """

    def tensor_map(self, tensor: Tensor, box: tuple[int, ...], swizzle_bytes: int) -> bytes:
        """The 128 bytes by which TMA copies boxes of this tensor, which must outlive them. Raises `ShapeError`.

        `box` has the tensor's own order of dimensions. `swizzle_bytes` is 0, 32, 64 or 128.
        """

    def synchronize(self) -> None:
        """Wait until everything that was started has ended. Raises `LaunchError` for what failed."""


def open_device(kind: str = "cuda", environment: Mapping[str, str] = os.environ) -> Device:
    """Open `cuda`, `cuda:1` or `emulator`. Raises `NoDevice` where there is none, `CompileError` without a compiler."""
    cache = DiskCache(cache_directory(environment))
    name, _, index = kind.partition(":")
    if name == "cuda" and (not index or index.isdecimal()):
        from engine.kernels.compiler import Compiler
        from engine.kernels.cuda_device import CudaDevice

        return CudaDevice(Compiler(cache), int(index or 0), overlap=environment.get(OVERLAP) != "0")
    if kind == "emulator":
        from engine.kernels.emulated_device import EmulatedDevice, Mode
        from engine.kernels.emulator import Emulator

        return EmulatedDevice(Emulator(cache), Mode())
    raise NoDevice(f"there are cuda, cuda:1 and so on, and emulator; not {kind!r}")
