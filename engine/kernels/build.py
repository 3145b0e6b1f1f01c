"""Compile many instances at once, as `kernels build` does, and a device that is warmed."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from engine.errors import CompileError
from engine.kernels.compiler import Compiled, Compiler
from engine.kernels.registry import Instance

Target = tuple[Instance, str]
Told = Callable[["Built"], None]


@dataclass(frozen=True, slots=True)
class Built:
    """How one instance came out for one arch: `compiled`, or the error."""

    instance: Instance
    arch: str
    compiled: Compiled | CompileError


def targets(instances: Iterable[Instance], archs: Sequence[str] = ()) -> list[Target]:
    """Each instance with each arch that it is for; of `archs` only, if some are named."""
    return [(instance, arch) for instance in instances for arch in instance.archs if not archs or arch in archs]


def build(compiler: Compiler, wanted: Sequence[Target], jobs: int = 0, told: Told = lambda built: None) -> list[Built]:
    """Compile what is not in the cache, on `jobs` threads (all cores if 0). `told` hears of each as it is done.

    NVRTC lets go of the interpreter while it works, so that threads are enough.
    """

    def one(target: Target) -> Built:
        instance, arch = target
        try:
            return Built(instance, arch, compiler.compile(instance, arch))
        except CompileError as error:
            return Built(instance, arch, error)

    done = []
    with ThreadPoolExecutor(jobs or os.cpu_count()) as threads:
        for built in threads.map(one, wanted):
            told(built)
            done.append(built)
    return done
