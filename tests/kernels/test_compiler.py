"""Kernels compile without a GPU, what was compiled once is not compiled again, and the log is read for what costs."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engine.errors import CompileError
from engine.kernels.compiler import Compiler
from engine.kernels.compiler_log import Usage
from engine.kernels.disk_cache import DiskCache
from engine.kernels.registry import EVERYWHERE, HOPPER, Instance
from engine.kernels.sources import Sources, installed_sources

OURS = Path(__file__).parent / "sources"
CLEAN = Instance("careless.cu", "clean<1>", "P", (32, 1, 1))
CLEAN_TOO = Instance("careless.cu", "clean<2>", "P", (32, 1, 1))


class Bench:
    """A compiler with a cache of its own, and what it really compiled."""

    def __init__(self, directory: Path, *roots: Path) -> None:
        self.compiled: list[tuple[str, str]] = []
        self.cache = DiskCache(directory)
        self.compiler = Compiler(self.cache, Sources(*(roots or (OURS, installed_sources()))), self._told)

    def _told(self, instance: Instance, arch: str, seconds: float) -> None:
        self.compiled.append((instance.expression, arch))

    def usage(self, expression: str, arch: str = "sm_90a") -> Usage:
        return self.compiler.compile(Instance("careless.cu", expression, "P", (32, 1, 1)), arch).usage


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.mark.parametrize("arch", EVERYWHERE)
def test_a_kernel_becomes_machine_code_with_a_name_to_find_it_by(bench: Bench, arch: str) -> None:
    compiled = bench.compiler.compile(CLEAN, arch)

    assert compiled.cubin.startswith(b"\x7fELF")
    assert compiled.lowered == "_Z5cleanILi1EEvPf"
    assert compiled.lowered.encode() in compiled.cubin
    assert b".target sm_" not in compiled.cubin  # no PTX in it
    assert compiled.usage.is_clean
    assert compiled.usage.registers > 0


def test_a_full_cache_compiles_nothing(bench: Bench, tmp_path: Path) -> None:
    first = [bench.compiler.compile(CLEAN, arch) for arch in EVERYWHERE]
    again = Bench(tmp_path)
    second = [again.compiler.compile(CLEAN, arch) for arch in EVERYWHERE]

    assert first == second
    assert bench.compiled == [("clean<1>", arch) for arch in EVERYWHERE]
    assert again.compiled == []


def test_what_differs_in_source_expression_or_arch_is_another_entry(tmp_path: Path) -> None:
    shutil.copytree(OURS, tmp_path / "ours")
    bench = Bench(tmp_path / "cache", tmp_path / "ours", installed_sources())
    keys = [
        bench.compiler.key(CLEAN, "sm_80"),
        bench.compiler.key(CLEAN, "sm_90a"),
        bench.compiler.key(CLEAN_TOO, "sm_80"),
    ]
    with (tmp_path / "ours" / "careless.cu").open("a") as file:
        file.write("// changed\n")
    keys.append(bench.compiler.key(CLEAN, "sm_80"))

    assert len(set(keys)) == len(keys)


def test_what_is_launched_differently_is_the_same_code(bench: Bench) -> None:
    other = Instance("careless.cu", "clean<1>", "P", (64, 1, 1), shared_bytes=16, archs=HOPPER)

    assert bench.compiler.key(other, "sm_90a") == bench.compiler.key(CLEAN, "sm_90a")


def test_a_damaged_entry_is_compiled_again(bench: Bench) -> None:
    first = bench.compiler.compile(CLEAN, "sm_90a")
    for path in bench.cache.directory.glob("*.cubin"):
        path.write_bytes(b"nonsense")

    assert bench.compiler.compile(CLEAN, "sm_90a") == first
    assert bench.compiler.compile(CLEAN, "sm_90a") == first
    assert len(bench.compiled) == 2


def test_a_directory_that_cannot_be_written_costs_the_cache_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("where a directory should be")
    bench = Bench(tmp_path / "file")

    assert bench.compiler.compile(CLEAN, "sm_90a").cubin == bench.compiler.compile(CLEAN, "sm_90a").cubin
    assert len(bench.compiled) == 2


def test_what_does_not_compile_says_where_and_why(bench: Bench) -> None:
    with pytest.raises(CompileError) as raised:
        bench.compiler.compile(Instance("careless.cu", "clean<wrong>", "P", (32, 1, 1)), "sm_80")

    assert str(raised.value).startswith("careless.cu: clean<wrong> for sm_80: ")
    assert 'identifier "wrong" is undefined' in raised.value.log


def test_what_needs_hopper_is_not_there_for_others(bench: Bench) -> None:
    assert bench.usage("impatient<4>", "sm_90a").registers
    with pytest.raises(CompileError, match="impatient"):
        bench.usage("impatient<4>", "sm_90")


def test_an_array_that_is_indexed_at_run_time_is_told(bench: Bench) -> None:
    usage = bench.usage("indexed<16>")

    assert usage.stack == 64
    assert (usage.spill_stores, usage.warnings) == (0, ())
    assert not usage.is_clean


def test_registers_that_do_not_suffice_are_told(bench: Bench) -> None:
    usage = bench.usage("crowded<64>")

    assert usage.registers == 32
    assert usage.spill_stores > 0
    assert usage.spill_loads > 0
    assert any("spilled to local memory" in warning for warning in usage.warnings)
    assert not usage.is_clean


def test_products_that_ptxas_makes_wait_are_told(bench: Bench) -> None:
    usage = bench.usage("impatient<4>")

    assert any("(C7511)" in warning and "serialized" in warning for warning in usage.warnings)
    assert not usage.is_clean


def test_what_was_told_is_remembered(bench: Bench, tmp_path: Path) -> None:
    first = bench.usage("impatient<4>")
    again = Bench(tmp_path)

    assert again.usage("impatient<4>") == first
    assert again.compiled == []


def test_neither_torch_nor_a_driver_is_needed_to_compile() -> None:
    script = """
import sys
from engine.kernels.compiler import Compiler
from engine.kernels.disk_cache import DiskCache
from engine.kernels.driver import Driver
from pathlib import Path
Compiler(DiskCache(Path("/nowhere")))
assert "torch" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[2], capture_output=True, timeout=60
    )

    assert (done.returncode, done.stderr) == (0, b"")
