"""What the CUDA files may contain, and that whatever a kernel includes counts to it."""

import re
import shutil
import tomllib
from pathlib import Path

import pytest

from engine.errors import CompileError
from engine.kernels.sources import Sources, installed_sources

ROOT = Path(__file__).resolve().parents[2]
CUDA = ROOT / "cuda"
KERNELS = sorted(CUDA.glob("*.cu*"))
ASSEMBLY = re.compile(r"\b(?:asm|__asm__|__asm)\b")
INCLUDE = re.compile(r"^\s*#\s*include\s+(\S+)", re.MULTILINE)


def without_comments(path: Path) -> str:
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", path.read_text("utf-8"), flags=re.DOTALL)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A kernel that includes a header that includes another, and one that it does not include."""
    root = tmp_path / "cuda"
    (root / "deep").mkdir(parents=True)
    (root / "emu").mkdir()
    (root / "a.cu").write_text('#include "one.cuh"\n#include <cuda_bf16.h>\n')
    (root / "one.cuh").write_text('#pragma once\n  #  include "deep/two.cuh"\n#include "a.cu"\n#include "emu/emu.h"\n')
    (root / "deep" / "two.cuh").write_text('// two\n#include "three.cuh"\n')
    (root / "deep" / "three.cuh").write_text("// three\n")
    (root / "other.cuh").write_text("// other\n")
    (root / "emu" / "emu.h").write_text("// the emulator\n")
    return root


def test_what_a_kernel_includes_is_found_however_deep_and_once(tree: Path) -> None:
    found = Sources(tree).closure("a.cu")

    assert sorted(path.name for path in found) == ["a.cu", "one.cuh", "three.cuh", "two.cuh"]


@pytest.mark.parametrize("name", ["a.cu", "one.cuh", "deep/two.cuh", "deep/three.cuh"])
def test_a_change_of_any_of_it_changes_the_digest(tree: Path, name: str) -> None:
    before = Sources(tree).digest("a.cu")
    with (tree / name).open("a") as file:
        file.write("\n// changed\n")

    assert Sources(tree).digest("a.cu") != before


@pytest.mark.parametrize("name", ["other.cuh", "emu/emu.h"])
def test_what_it_does_not_include_does_not_count_nor_does_the_emulator(tree: Path, name: str) -> None:
    before = Sources(tree).digest("a.cu")
    (tree / name).write_text("// changed\n")

    assert Sources(tree).digest("a.cu") == before


def test_any_file_of_the_emulator_changes_the_emulators_digest(tree: Path) -> None:
    sources = Sources(tree)
    digests = {sources.emulator_digest()}
    (tree / "emu" / "emu.h").write_text("// changed\n")
    digests.add(sources.emulator_digest())
    (tree / "emu" / "more.cpp").write_text("// more\n")
    digests.add(sources.emulator_digest())

    assert len(digests) == 3


def test_the_digest_is_the_same_wherever_the_files_lie(tree: Path, tmp_path: Path) -> None:
    shutil.copytree(tree, tmp_path / "elsewhere")

    assert Sources(tree).digest("a.cu") == Sources(tmp_path / "elsewhere").digest("a.cu")


def test_a_file_that_is_missing_is_named_with_where_it_was_looked_for(tree: Path) -> None:
    with pytest.raises(CompileError, match=rf"^b\.cu: not found in {re.escape(str(tree))}$"):
        Sources(tree).closure("b.cu")


def test_a_packaged_copy_goes_before_the_checkout(tmp_path: Path) -> None:
    here = tmp_path / "site-packages" / "engine" / "kernels"
    here.mkdir(parents=True)

    assert installed_sources() == CUDA
    assert installed_sources(here) == tmp_path / "site-packages" / "cuda"

    (here / "cuda_src").mkdir()

    assert installed_sources(here) == here / "cuda_src"


def test_a_wheel_puts_them_where_they_are_looked_for() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["build"]["targets"]["wheel"]

    assert wheel["force-include"] == {"cuda": "engine/kernels/cuda_src"}


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.name)
def test_assembly_stands_in_one_header(path: Path) -> None:
    assert path.name == "ptx.cuh" or not ASSEMBLY.search(without_comments(path))


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.name)
def test_a_kernel_includes_our_own_headers_and_only_ptx_the_toolkits(path: Path) -> None:
    toolkit = {"<cuda_bf16.h>", "<cuda_fp16.h>", "<cuda_fp8.h>"} if path.name == "ptx.cuh" else set()
    included = set(INCLUDE.findall(without_comments(path)))
    strangers = {name for name in included - toolkit if not (name.startswith('"') and name.endswith('.cuh"'))}

    assert strangers <= ({'"emu/emu.h"'} if path.name == "ptx.cuh" else set())


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.name)
def test_shared_memory_is_said_by_the_macros_that_the_emulator_knows(path: Path) -> None:
    assert path.name == "ptx.cuh" or "__shared__" not in without_comments(path)
