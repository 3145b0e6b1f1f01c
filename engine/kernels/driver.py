"""The CUDA driver by cuda-python: cubins are loaded, and kernels launched.

A launch is one `struct.pack_into` and one call of cuLaunchKernel. Everything else about it is made once: the array of
pointers that the driver reads the arguments from, and for a kernel that overlaps its predecessor the launch
configuration that says so (https://docs.nvidia.com/cuda/cuda-programming-guide/, programmatic dependent launch).
"""

import ctypes
from collections.abc import Callable
from typing import Any

from engine.errors import DeviceError, LaunchError, NoDevice
from engine.kernels.arguments import Argument, ArgumentBlock
from engine.kernels.registry import Instance
from engine.kernels.tensor_map import MAP_BYTES, Geometry

LIBRARY = "libcuda.so.1"
MAP_ALIGNMENT = 64
SWIZZLE = {0: 0, 32: 1, 64: 2, 128: 3}
L2_PROMOTION_256_BYTES = 3
# Of a kernel that ran, and told at the next call, whatever that is: illegal address, time-out, and traps.
LATE = frozenset((700, 702, *range(714, 720)))
WRONG_CONTEXT = frozenset((201, 400))  # none, or another device's: the kernel's handle means nothing there

Launch = Callable[[tuple[int, int, int], int, tuple[Argument, ...]], None]


class Driver:
    """The driver of this process, for one device. Kernels run in its primary context, which is torch's too.

    A thread has no context before something in it has asked for one, and torch asks late. So who launches in a thread
    without one is given it, and nobody else pays for looking.
    """

    def __init__(self, index: int = 0) -> None:
        from cuda.bindings import driver

        self._driver = driver
        try:
            self._call("the driver", driver.cuInit, 0)
            device = self._call("the driver", driver.cuDeviceGet, index)
            self._context = self._call("the driver", driver.cuDevicePrimaryCtxRetain, device)
        except (RuntimeError, LaunchError) as error:  # the former is cuda-python's, where there is no libcuda
            raise NoDevice(str(error)) from error
        self._library = ctypes.CDLL(LIBRARY)
        self._enter()

    def load(self, instance: Instance, cubin: bytes, lowered: str, *, overlap: bool = True) -> Launch:
        """Load a cubin; gives what launches its kernel: grid, stream and arguments.

        `overlap` grants what `Instance.overlaps` asks for. Raises `LaunchError`.
        """
        driver, name = self._driver, str(instance)
        self._enter()  # this may be another thread than the one that opened the device
        library = self._call(name, driver.cuLibraryLoadData, cubin, [], [], 0, [], [], 0)
        kernel = self._call(name, driver.cuLibraryGetKernel, library, lowered.encode())
        function = self._call(name, driver.cuKernelGetFunction, kernel)
        if instance.shared_bytes:  # 48 KiB are free, but static arrays and their alignment are among these
            attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._call(name, driver.cuFuncSetAttribute, function, attribute, instance.shared_bytes)
        if instance.overlaps and overlap:
            return self._overlapping(instance, function)
        return self._plain(instance, function)

    def _plain(self, instance: Instance, function: Any) -> Launch:
        arguments = ArgumentBlock(instance)
        launch, stream_of, mend = self._driver.cuLaunchKernel, self._driver.CUstream, self._mend
        pack, address = arguments.pack, arguments.address
        tail = (*instance.block, instance.shared_bytes)

        def start(grid: tuple[int, int, int], stream: int, values: tuple[Argument, ...]) -> None:
            pack(values)
            whole = (function, *grid, *tail, stream_of(stream), address, 0)
            status = launch(*whole)[0]
            if status:
                mend(instance, grid, status, lambda: launch(*whole)[0])

        return start

    def _overlapping(self, instance: Instance, function: Any) -> Launch:
        driver = self._driver
        arguments = ArgumentBlock(instance)
        attribute = driver.CUlaunchAttribute()
        attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        attribute.value.programmaticStreamSerializationAllowed = 1
        config = driver.CUlaunchConfig()
        config.blockDimX, config.blockDimY, config.blockDimZ = instance.block
        config.sharedMemBytes = instance.shared_bytes
        config.attrs, config.numAttrs = [attribute], 1
        launch, stream_of, mend = driver.cuLaunchKernelEx, driver.CUstream, self._mend
        pack, address = arguments.pack, arguments.address

        def start(grid: tuple[int, int, int], stream: int, values: tuple[Argument, ...]) -> None:
            pack(values)
            config.gridDimX, config.gridDimY, config.gridDimZ = grid
            config.hStream = stream_of(stream)
            status = launch(config, function, address, 0)[0]
            if status:
                mend(instance, grid, status, lambda: launch(config, function, address, 0)[0])

        return start

    def encode(self, laid: Geometry) -> bytes:
        """The tensor map of this geometry.

        By ctypes and on aligned memory of ours: the hardware's format wants 64 bytes of alignment, and cuda-python's
        own object of that type is not aligned.
        """
        room = ctypes.create_string_buffer(MAP_BYTES + MAP_ALIGNMENT)
        address = -(-ctypes.addressof(room) // MAP_ALIGNMENT) * MAP_ALIGNMENT
        sizes = (ctypes.c_uint64 * laid.rank)(*laid.sizes)
        strides = (ctypes.c_uint64 * laid.rank)(*laid.strides_bytes)
        box = (ctypes.c_uint32 * laid.rank)(*laid.box)
        dense = (ctypes.c_uint32 * laid.rank)(*(1 for _ in laid.box))
        status = self._library.cuTensorMapEncodeTiled(
            ctypes.c_void_p(address),
            ctypes.c_int(laid.data_type),
            ctypes.c_uint32(laid.rank),
            ctypes.c_void_p(laid.address),
            *(sizes, strides, box, dense),
            ctypes.c_int(0),  # not interleaved
            ctypes.c_int(SWIZZLE[laid.swizzle_bytes]),
            ctypes.c_int(L2_PROMOTION_256_BYTES),
            ctypes.c_int(0),  # what lies outside reads as zero
        )
        if status:
            raise DeviceError(f"cuTensorMapEncodeTiled: {self._described(status)}: {laid}")
        return ctypes.string_at(address, MAP_BYTES)

    def _call(self, name: str, function: Callable[..., Any], *arguments: object) -> Any:
        status, *results = function(*arguments)
        if status:
            raise LaunchError(name, f"{function.__name__}: {self._described(status)}")
        return results[0] if results else None

    def _enter(self) -> None:
        self._call("the driver", self._driver.cuCtxSetCurrent, self._context)

    def _mend(self, instance: Instance, grid: tuple[int, int, int], status: int, launch: Callable[[], int]) -> None:
        """Launch again in a thread that had no context, or another's. Raises `LaunchError` for all else."""
        if status in WRONG_CONTEXT:
            self._enter()
            status = launch()
        if status:
            late = ", in this kernel or one that was launched before" if status in LATE else ""
            raise LaunchError(
                str(instance),
                f"{self._described(status)}{late}",
                grid=grid,
                block=instance.block,
                shared_bytes=instance.shared_bytes,
            )

    def _described(self, status: int) -> str:
        code = self._driver.CUresult(status)
        _, text = self._driver.cuGetErrorString(code)
        return f"{code.name}: {text.decode()}" if text else code.name
