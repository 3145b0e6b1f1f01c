"""CUDA C++ to machine code by NVRTC, with no GPU and no driver: one instance, one cubin.

Always a cubin, never PTX: what runs is what was compiled and looked at here, and a driver older than the compiler loads
it. The flags are part of the contract with the kernels:

- `-default-device`: what has no mark is device code, so that headers read the same under g++.
- no `--use_fast_math`: it would turn every `sinf` of a rotary angle of 100,000 and every `logf` of a log-probability
  into an approximation without a bound on its error, and it makes division inexact. A kernel that wants `ex2.approx`
  or `__fdividef` says so at the place.
- `--ptxas-options=-v` and `--warn-on-spills`: the log is what the tests hold a kernel to.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from typing import Any

from engine.errors import CompileError
from engine.kernels.compiler_log import Usage, read_log
from engine.kernels.disk_cache import DiskCache, Entry
from engine.kernels.registry import Instance
from engine.kernels.sources import Sources, digest
from engine.kernels.toolkit import header_directory, header_version

FLAGS = ("--std=c++17", "-default-device", "--ptxas-options=-v", "--ptxas-options=--warn-on-spills")


@dataclass(frozen=True, slots=True)
class Compiled:
    """An instance for one arch. `lowered` is its name in the cubin."""

    cubin: bytes
    lowered: str
    usage: Usage


class Compiler:
    """Compiles instances, or takes them from the cache. Several threads may compile at once.

    `compiled` is called with what really was compiled and the seconds it took.
    """

    def __init__(
        self,
        cache: DiskCache,
        sources: Sources | None = None,
        compiled: Callable[[Instance, str, float], None] = lambda instance, arch, seconds: None,
    ) -> None:
        try:
            from cuda.bindings import nvrtc
        except ModuleNotFoundError as error:
            raise CompileError("NVRTC", "pip install 'penstock[cuda]'") from error
        self._nvrtc = nvrtc
        self._cache = cache
        self._sources = sources or Sources()
        self._compiled = compiled
        self._headers = header_directory()
        try:
            major, minor = self._call(nvrtc.nvrtcVersion)
        except RuntimeError as error:  # cuda-python's, where there is no libnvrtc
            raise CompileError("NVRTC", str(error)) from error
        told = [field.name for field in fields(Usage)]  # an entry that tells something else is no entry
        self._toolchain = (FLAGS, (major, minor), header_version(self._headers), told)

    def key(self, instance: Instance, arch: str) -> str:
        """The name of all that the cubin depends on."""
        return digest(self._sources.digest(instance.source), instance.expression, arch, self._toolchain)

    def compile(self, instance: Instance, arch: str) -> Compiled:
        """The instance's machine code. Raises `CompileError` with the compiler's log."""
        key = self.key(instance, arch)
        entry = self._cache.find(key, "cubin")
        return self._build(key, instance, arch) if entry is None else _read(entry)

    def _build(self, key: str, instance: Instance, arch: str) -> Compiled:
        started = time.monotonic()
        compiled = self._translate(instance, arch)
        facts = {
            "kernel": str(instance),
            "arch": arch,
            "lowered": compiled.lowered,
            "usage": asdict(compiled.usage),
        }
        with suppress(OSError):  # where nothing can be kept, the next process compiles again
            self._cache.store(key, "cubin", compiled.cubin, facts)
        self._compiled(instance, arch, time.monotonic() - started)
        return compiled

    def _translate(self, instance: Instance, arch: str) -> Compiled:
        nvrtc = self._nvrtc
        source = self._sources.find(instance.source)
        includes = [f"-I{directory}" for directory in (*self._sources.roots, self._headers)]
        options = [option.encode() for option in (f"--gpu-architecture={arch}", *FLAGS, *includes)]
        name = instance.expression.encode()
        program = self._call(nvrtc.nvrtcCreateProgram, source.read_bytes(), instance.source.encode(), 0, [], [])
        try:
            self._call(nvrtc.nvrtcAddNameExpression, program, name)
            status = nvrtc.nvrtcCompileProgram(program, len(options), options)[0]
            log = self._text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program)
            told = log.rstrip(b"\0").decode(errors="replace").strip()
            if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
                raise CompileError(f"{instance} for {arch}", told or status.name)
            cubin = self._text(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)
            lowered = self._call(nvrtc.nvrtcGetLoweredName, program, name)
        finally:
            self._call(nvrtc.nvrtcDestroyProgram, program)
        return Compiled(cubin, lowered.decode(), read_log(told))

    def _text(self, size_of: Callable[..., Any], read: Callable[..., Any], program: object) -> bytes:
        """What a program holds. NVRTC writes into the buffer, which therefore must be nobody else's."""
        buffer = bytes(bytearray(self._call(size_of, program)))
        if len(buffer) > 1:  # of one byte there is only one object in the whole process
            self._call(read, program, buffer)
        return buffer

    def _call(self, function: Callable[..., Any], *arguments: object) -> Any:
        status, *results = function(*arguments)
        if status != self._nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise CompileError("NVRTC", f"{function.__name__}: {status.name}")
        return results[0] if len(results) == 1 else results


def _read(entry: Entry) -> Compiled:
    usage = entry.facts["usage"]
    assert isinstance(usage, dict)
    return Compiled(entry.data, str(entry.facts["lowered"]), Usage(**{**usage, "warnings": tuple(usage["warnings"])}))
