"""The same `.cu` files for the CPU: g++ compiles a kernel against `cuda/emu/`, which runs it thread by thread.

The emulator itself (`cuda/emu/*.cpp`) is one shared library; each instance becomes a small one with a single function
that takes the grid, the block and the very `void**` that a driver would get. Both are kept in the kernel cache.
"""

import ctypes
import os
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from engine.errors import CompileError
from engine.kernels.disk_cache import DiskCache
from engine.kernels.registry import Instance
from engine.kernels.sources import EMULATOR, Sources, digest
from engine.kernels.toolkit import header_directory, header_version

# Contraction off and no CPU named: the bits are the same on every machine.
FLAGS = (
    "-std=c++17",
    "-O2",
    "-ffp-contract=off",
    "-fsanitize=alignment,bounds",  # a trap, which the emulator names
    "-fsanitize-undefined-trap-on-error",
    "-fno-strict-aliasing",
    "-fno-gnu-unique",
    "-fPIC",
    "-w",
    "-Wno-psabi",
)
STUB = """\
#include "{source}"
extern "C" int launch(const u32* grid, const u32* block, size_t shared, void** arguments, char* error, int size) {{
  return emu::launch(&::{expression}, grid, block, shared, arguments, error, size);
}}
"""
TIMEOUT_S = 600

Launch = Callable[[object, object, int, int, object, int], int]


class Emulator:
    """The emulator's library, loaded, and the instances that were asked for. One thread at a time."""

    def __init__(self, cache: DiskCache, sources: Sources | None = None, compiler: str = "g++") -> None:
        self._cache = cache
        self._sources = sources or Sources()
        self._compiler = compiler
        self._headers = header_directory()
        self._toolchain = (FLAGS, self._version(), header_version(self._headers), self._sources.emulator_digest())
        self.library = ctypes.CDLL(str(self._runtime()), mode=ctypes.RTLD_GLOBAL)  # kernels find it by its symbols
        self.library.emu_alloc.restype = ctypes.c_void_p
        self.library.emu_alloc.argtypes = [ctypes.c_size_t]
        self.library.emu_free.restype = None
        self.library.emu_free.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        self.library.emu_options.restype = None
        self.library.emu_options.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_uint32]
        self.library.emu_events.restype = ctypes.c_uint64
        self._functions: dict[Instance, Launch] = {}

    def function(self, instance: Instance) -> Launch:
        """The instance's entry: grid, block, shared bytes, address of the `void**`, a buffer for an error, its size."""
        found = self._functions.get(instance)
        if found is None:
            found = self._functions[instance] = self._load(self._kernel(instance))
        return found

    def warm(self, instances: Sequence[Instance]) -> None:
        """Compile what is not in the cache, on every core, and load all of it."""
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for instance, path in zip(instances, threads.map(self._kernel, instances), strict=True):
                self._functions[instance] = self._load(path)

    def _load(self, path: Path) -> Launch:
        launch = ctypes.CDLL(str(path)).launch
        launch.restype = ctypes.c_int
        pointer = ctypes.c_void_p
        launch.argtypes = [pointer, pointer, ctypes.c_size_t, pointer, ctypes.c_char_p, ctypes.c_int]
        return launch

    def _runtime(self) -> Path:
        files = sorted(self._sources.find(f"{EMULATOR}/emu.h").parent.glob("*.cpp"))
        return self._built(digest("emulator", self._toolchain), "the emulator", files)

    def _kernel(self, instance: Instance) -> Path:
        stub = STUB.format(source=instance.source, expression=instance.expression)
        key = digest("emulated", self._sources.digest(instance.source), stub, self._toolchain)
        return self._built(key, str(instance), [], stub)

    def _built(self, key: str, name: str, files: Sequence[Path], stub: str = "") -> Path:
        entry = self._cache.find(key, "so")
        if entry is not None:
            return entry.path
        with TemporaryDirectory(prefix="penstock-emulator-") as scratch:
            directory = Path(scratch)
            if stub:
                files = [directory / "kernel.cpp"]
                files[0].write_text(stub, "utf-8")
            library = self._translate(name, files, directory)
            return self._cache.store(key, "so", library.read_bytes(), {"kernel": name}).path

    def _translate(self, name: str, files: Sequence[Path], directory: Path) -> Path:
        """Compile each file, on every core, and link them."""
        roots = self._sources.roots
        includes = [f"-I{path}" for path in (*roots, *(root / EMULATOR for root in roots), self._headers)]
        objects = [directory / f"{file.stem}.o" for file in files]
        library = directory / "kernel.so"

        def one(file: Path, made: Path) -> None:
            self._run(name, *FLAGS, *includes, "-c", str(file), "-o", str(made))

        with ThreadPoolExecutor(os.cpu_count()) as threads:
            list(threads.map(one, files, objects))
        self._run(name, "-shared", *map(str, objects), "-o", str(library))
        return library

    def _run(self, name: str, *arguments: str) -> None:
        done = subprocess.run([self._compiler, *arguments], capture_output=True, text=True, timeout=TIMEOUT_S)
        if done.returncode:
            raise CompileError(f"{name} for the emulator", done.stderr)

    def _version(self) -> str:
        try:
            return subprocess.run(
                [self._compiler, "--version"], capture_output=True, text=True, timeout=TIMEOUT_S, check=True
            ).stdout
        except (OSError, subprocess.CalledProcessError) as error:
            raise CompileError("the emulator", f"needs {self._compiler}: {error}") from error
