"""Every instance of the table compiles without a GPU, and the compiler's log has nothing to complain of."""

import pytest

from engine.kernels.compiler import Compiler
from engine.kernels.disk_cache import DiskCache
from engine.kernels.registry import Instance
from engine.kernels.table import INSTANCES, MAX_INSTANCES

# What may have a stack frame, a spill or a warning, and why. This list only shrinks.
EXCEPTIONS: dict[tuple[str, str], str] = {}


@pytest.fixture(scope="module")
def compiler(kernel_cache: DiskCache) -> Compiler:
    return Compiler(kernel_cache)


@pytest.mark.parametrize(
    ("instance", "arch"), [(instance, arch) for instance in INSTANCES for arch in instance.archs], ids=str
)
def test_an_instance_compiles_with_nothing_in_memory_that_belongs_in_registers(
    compiler: Compiler, instance: Instance, arch: str
) -> None:
    usage = compiler.compile(instance, arch).usage

    assert usage.is_clean == ((str(instance), arch) not in EXCEPTIONS), usage


def test_the_table_stays_small() -> None:
    assert len(INSTANCES) <= MAX_INSTANCES
