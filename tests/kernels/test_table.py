"""Every kernel instance there is compiles for its archs, and the compiler has nothing to complain of."""

import pytest

from engine.errors import CompileError
from engine.kernels.build import Target, build, targets
from engine.kernels.compiler import Compiler
from engine.kernels.compiler_log import Usage
from engine.kernels.disk_cache import DiskCache
from engine.kernels.registry import Instance
from engine.kernels.table import INSTANCES, MAX_INSTANCES

# What may have a stack frame, a spill or a warning, by name and arch, and why. This list only shrinks: an entry that is
# not needed any more fails too.
EXCEPTIONS: dict[tuple[str, str], str] = {}


@pytest.fixture(scope="session")
def usages(request: pytest.FixtureRequest, kernel_cache: DiskCache) -> dict[Target, Usage | CompileError]:
    """What the compiler says of all that this run asks for, compiled on every core."""
    asked = [
        (item.callspec.params["instance"], item.callspec.params["arch"])
        for item in request.session.items
        if isinstance(item, pytest.Function) and "usages" in item.fixturenames
    ]
    told = build(Compiler(kernel_cache), asked)
    return {
        (built.instance, built.arch): built.compiled
        if isinstance(built.compiled, CompileError)
        else built.compiled.usage
        for built in told
    }


@pytest.mark.parametrize(("instance", "arch"), targets(INSTANCES), ids=str)
def test_an_instance_keeps_in_registers_what_belongs_there_and_nothing_waits(
    usages: dict[Target, Usage | CompileError], instance: Instance, arch: str
) -> None:
    usage = usages[instance, arch]
    if isinstance(usage, CompileError):
        raise usage

    assert usage.is_clean == ((str(instance), arch) not in EXCEPTIONS), usage


def test_exceptions_speak_of_instances_that_there_are() -> None:
    assert EXCEPTIONS.keys() <= {(str(instance), arch) for instance, arch in targets(INSTANCES)}


def test_the_table_stays_small() -> None:
    assert len(INSTANCES) <= MAX_INSTANCES
