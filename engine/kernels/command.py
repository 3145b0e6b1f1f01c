"""`python -m engine kernels build`: compile every kernel beforehand, with no GPU, so that a start compiles nothing."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from engine.errors import CompileError
from engine.kernels.build import Built, build, targets
from engine.kernels.compiler import Compiler
from engine.kernels.disk_cache import DIRECTORY, DiskCache, cache_directory
from engine.kernels.registry import EVERYWHERE, Instance
from engine.kernels.sources import Sources
from engine.kernels.table import INSTANCES


def main(arguments: Sequence[str], instances: Sequence[Instance] = INSTANCES, sources: Sources | None = None) -> int:
    """Run the command. The status: 0 all compiled, 1 some do not, 2 the command line is wrong, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="kernels", description="The engine's CUDA kernels.")
    command = parser.add_subparsers(required=True, metavar="build").add_parser(
        "build", help="compile every kernel that is not in the cache; needs no GPU"
    )
    command.add_argument(
        "--arch", action="append", default=[], choices=EVERYWHERE, help="may be repeated; default: all of them"
    )
    command.add_argument(
        "--jobs", type=int, default=0, metavar="N", help="compile N at once; default: as many as cores"
    )
    command.add_argument(
        "--directory", type=Path, metavar="DIR", help=f"the cache; default: {DIRECTORY}, else the user's cache"
    )
    given = parser.parse_args(arguments)
    if given.jobs < 0:
        parser.error(f"--jobs: expected 1 or more, or 0 for as many as cores, got {given.jobs}")
    try:
        cache = DiskCache(given.directory or cache_directory(os.environ))
        return _build(instances, sources, cache, given.arch, given.jobs)
    except CompileError as error:  # what is missing for any kernel to compile
        print(f"kernels: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _build(
    instances: Sequence[Instance], sources: Sources | None, cache: DiskCache, archs: Sequence[str], jobs: int
) -> int:
    seconds: dict[tuple[Instance, str], float] = {}

    def compiled(instance: Instance, arch: str, took: float) -> None:
        seconds[instance, arch] = took

    compiler = Compiler(cache, sources, compiled)
    wanted = targets(instances, archs)
    number = 0

    def told(built: Built) -> None:
        nonlocal number
        number += 1
        lasted = seconds.get((built.instance, built.arch))
        if isinstance(built.compiled, CompileError):
            print(f"kernels: {built.compiled}", file=sys.stderr)
        elif lasted is not None:
            usage = built.compiled.usage
            print(f"{number}/{len(wanted)} {built.instance} {built.arch}: {usage}, {lasted:.1f} s", flush=True)

    started = time.monotonic()
    failed = sum(isinstance(built.compiled, CompileError) for built in build(compiler, wanted, jobs, told))
    there = len(wanted) - len(seconds) - failed
    counts = f"{len(seconds)} compiled, {there} were there{f', {failed} failed' if failed else ''}"
    took = time.monotonic() - started
    print(f"{len(wanted)} cubins of {len(instances)} kernels in {cache.directory}: {counts}; {took:.1f} s")
    return 1 if failed else 0
