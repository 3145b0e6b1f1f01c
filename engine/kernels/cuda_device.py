"""A device that is an NVIDIA GPU: torch gives memory and streams, the driver launches our cubins.

Kernels go to torch's current stream, which is asked for at every launch: under `torch.cuda.graph` it is another one
than before, and a launch on the wrong stream is not captured. A kernel is compiled, or read from the cache, and loaded
when it is first launched; `warm` does it beforehand, since neither may happen while a graph is captured.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from engine.errors import CompileError, LaunchError, NoDevice
from engine.kernels.arguments import Argument
from engine.kernels.build import build, targets
from engine.kernels.compiler import Compiled, Compiler
from engine.kernels.driver import Driver, Launch
from engine.kernels.registry import Instance
from engine.kernels.tensor_geometry import geometry

# A cubin runs on its own major version, at its own minor version or a later one; those that end in a on theirs alone.
ARCHS = {(8, 0): "sm_80", (8, 6): "sm_80", (8, 7): "sm_80", (8, 9): "sm_89", (9, 0): "sm_90a"}


class CudaDevice:
    """A `Device`. One thread at a time launches, whichever it is."""

    def __init__(self, compiler: Compiler, index: int = 0, *, overlap: bool = True) -> None:
        if not torch.cuda.is_available():
            raise NoDevice("torch sees no CUDA device")
        torch.cuda.set_device(index)
        properties = torch.cuda.get_device_properties(index)
        self.name: str = properties.name
        self.arch = arch_of(properties.major, properties.minor, self.name)
        self.torch_device = torch.device("cuda", index)
        self.num_multiprocessors: int = properties.multi_processor_count
        self._index = index
        self._overlap = overlap
        self._compiler = compiler
        self._driver = Driver(index)
        self._stream = torch._C._cuda_getCurrentRawStream
        self._launches: dict[Instance, Launch] = {}
        self._graph_memory: tuple[int, int] | None = None
        # One for all captures: libraries keep a workspace for each stream that they have seen, of 32 MiB and more.
        self._side = torch.cuda.Stream(index)  # type: ignore[no-untyped-call]

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.torch_device)

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.torch_device)

    def upload(self, tensor: Tensor) -> Tensor:
        return self.empty(tuple(tensor.shape), tensor.dtype).copy_(tensor)

    def launch(self, instance: Instance, grid: tuple[int, int, int], *arguments: Argument) -> None:
        launch = self._launches.get(instance)
        if launch is None:
            launch = self._load(instance, self._compile(instance))
        launch(grid, self._stream(self._index), arguments)

    def warm(self, instances: Iterable[Instance]) -> None:
        """Compile what is not in the cache, on every core, and load all of it."""
        for built in build(self._compiler, targets(instances, [self.arch])):
            if isinstance(built.compiled, CompileError):
                raise built.compiled
            if built.instance not in self._launches:
                self._load(built.instance, built.compiled)

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        # Once before: kernels are loaded and libraries take their workspaces, neither of which may happen in a capture.
        side = self._side
        with torch.cuda.device(self._index):  # torch waits for the thread's own, which may be another
            side.wait_stream(torch.cuda.current_stream(self._index))
            with torch.cuda.stream(side):
                run()
            torch.cuda.current_stream(self._index).wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._graph_memory, stream=side):  # type: ignore[arg-type]
                run()
        self._graph_memory = graph.pool()  # one for all: they never run at the same time
        replay: Callable[[], None] = graph.replay
        return replay

    def tensor_map(self, tensor: Tensor, box: tuple[int, ...], swizzle_bytes: int) -> bytes:
        return self._driver.encode(geometry(tensor, box, swizzle_bytes))

    def synchronize(self) -> None:
        try:
            torch.cuda.synchronize(self._index)
        except RuntimeError as error:
            raise LaunchError(self.name, f"a kernel that was started before has failed: {error}") from error

    def _compile(self, instance: Instance) -> Compiled:
        if self.arch not in instance.archs:
            raise LaunchError(str(instance), f"is not for {self.arch}, only for {', '.join(instance.archs)}")
        return self._compiler.compile(instance, self.arch)

    def _load(self, instance: Instance, compiled: Compiled) -> Launch:
        launch = self._driver.load(instance, compiled.cubin, compiled.lowered, overlap=self._overlap)
        self._launches[instance] = launch
        return launch


def arch_of(major: int, minor: int, name: str) -> str:
    """What kernels are compiled for to run on this compute capability. Raises `NoDevice`."""
    if (major, minor) not in ARCHS:
        known = ", ".join(f"{major}.{minor}" for major, minor in ARCHS)
        raise NoDevice(f"{name} has compute capability {major}.{minor}; there are kernels for {known}")
    return ARCHS[major, minor]
