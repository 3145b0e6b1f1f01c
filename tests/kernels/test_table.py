"""Every kernel instance there is compiles for its archs, and the compiler has nothing to complain of."""

import importlib
import math
import os
import pkgutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from engine import kernels
from engine.kernels import paged_decode, paged_decode_sm90
from engine.kernels.build import Target, targets
from engine.kernels.compiler import Compiled, Compiler
from engine.kernels.disk_cache import DiskCache
from engine.kernels.paged_decode import DYNAMIC_ALIGNMENT
from engine.kernels.registry import HOPPER, REGISTERS, SHARED_BYTES, Instance
from engine.kernels.sources import Sources
from engine.kernels.table import INSTANCES, MAX_INSTANCES

ROOT = Path(__file__).resolve().parents[2]
# What may have a stack frame, a spill or a warning, by name and arch, and why. This list only shrinks: an entry that is
# not needed any more fails too.
EXCEPTIONS: dict[tuple[str, str], str] = {}

DECODES = {
    choice.instance: choice for choice in (*paged_decode._CHOICES.values(), *paged_decode_sm90._CHOICES.values())
}
Compiling = dict[Target, Future[Compiled]]


@pytest.fixture(scope="module")
def compiling(request: pytest.FixtureRequest, kernel_cache: DiskCache) -> Iterator[Compiling]:
    """All that this run asks for, on its way through the compiler on every core."""
    compiler = Compiler(kernel_cache)
    asked = {
        (item.callspec.params["instance"], item.callspec.params["arch"]): None
        for item in request.session.items
        if isinstance(item, pytest.Function) and "compiling" in item.fixturenames
    }
    threads = ThreadPoolExecutor(os.cpu_count())
    yield {target: threads.submit(compiler.compile, *target) for target in asked}
    threads.shutdown(cancel_futures=True)


@pytest.mark.parametrize(("instance", "arch"), targets(INSTANCES), ids=str)
def test_an_instance_keeps_in_registers_what_belongs_there_and_nothing_waits(
    compiling: Compiling, instance: Instance, arch: str
) -> None:
    usage = compiling[instance, arch].result().usage

    assert usage.is_clean == ((str(instance), arch) not in EXCEPTIONS), usage


@pytest.mark.parametrize(("instance", "arch"), targets(INSTANCES), ids=str)
def test_a_block_of_an_instance_fits_into_a_multiprocessor(compiling: Compiling, instance: Instance, arch: str) -> None:
    usage = compiling[instance, arch].result().usage
    warps = -(-math.prod(instance.block) // 32)
    registers_of_a_warp = -(-usage.registers * 32 // 256) * 256

    assert warps * registers_of_a_warp <= REGISTERS
    assert usage.static_shared + instance.shared_bytes <= SHARED_BYTES[arch]


@pytest.mark.parametrize(("instance", "arch"), targets(DECODES, HOPPER), ids=str)
def test_a_decode_plan_counts_on_the_static_memory_that_there_is(
    compiling: Compiling, instance: Instance, arch: str
) -> None:
    usage = compiling[instance, arch].result().usage

    assert -(-DECODES[instance].static_bytes // DYNAMIC_ALIGNMENT) * DYNAMIC_ALIGNMENT == usage.static_shared


def test_exceptions_speak_of_instances_that_there_are() -> None:
    assert EXCEPTIONS.keys() <= {(str(instance), arch) for instance, arch in targets(INSTANCES)}


def test_what_any_stem_launches_is_in_the_table() -> None:
    launched: set[Instance] = set()
    for module in pkgutil.iter_modules(kernels.__path__, "engine.kernels."):
        launched |= set(getattr(importlib.import_module(module.name), "INSTANCES", ()))

    assert launched == set(INSTANCES)


def test_every_cuda_file_is_used_by_the_stem_of_its_name_and_tested_by_a_file_of_it() -> None:
    stems = {path.stem for path in (ROOT / "cuda").glob("*.cu")}

    assert {Path(instance.source).stem for instance in INSTANCES} == stems
    assert [stem for stem in stems if not (ROOT / "engine" / "kernels" / f"{stem}.py").exists()] == []
    assert [stem for stem in stems if not (ROOT / "tests" / "kernels" / f"test_{stem}.py").exists()] == []


def test_whoever_may_start_before_its_predecessor_has_ended_waits_for_it() -> None:
    sources = Sources()
    careless = [
        str(instance)
        for instance in INSTANCES
        if instance.overlaps != (b"pdl_wait();" in sources.find(instance.source).read_bytes())
    ]

    assert careless == []


def test_the_table_stays_small() -> None:
    assert len(INSTANCES) <= MAX_INSTANCES
