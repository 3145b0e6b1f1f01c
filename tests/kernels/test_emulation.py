"""What g++ made for the emulator is kept as cubins are: found again, whole or not at all, and made anew for new text.

The emulator here is one of a few lines, which calls a kernel once and no more, so that it compiles in a moment; each
case runs in a process of its own, because an emulator's symbols are its process'.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEADER = """\
#pragma once
#include <cstddef>
using u32 = unsigned;
namespace emu {
extern int calls;
template <class Kernel>
int launch(Kernel* kernel, const u32*, const u32*, size_t, void** arguments, char*, int) {
  kernel(**static_cast<int**>(arguments[0]));
  return ++calls > 1000;
}
}
"""
RUNTIME = """\
#include "emu.h"
#include <cstdlib>
namespace emu { int calls = 0; }
extern "C" void* emu_alloc(size_t bytes) { return malloc(bytes); }
extern "C" void emu_free(void* pointer, size_t) { free(pointer); }
extern "C" void emu_options(int, int, u32) {}
extern "C" unsigned long long emu_events() { return emu::calls; }
"""
KERNEL = """\
#include "emu/emu.h"
#include "amount.cuh"
template <int kFactor> void add(int& value) { value += kFactor * AMOUNT; }
"""
SCRIPT = """
import ctypes, json, sys
from pathlib import Path
from engine.errors import CompileError
from engine.kernels.arguments import ArgumentBlock
from engine.kernels.disk_cache import DiskCache
from engine.kernels.emulator import Emulator
from engine.kernels.registry import Instance
from engine.kernels.sources import Sources
sources, cache, compiler, *expressions = sys.argv[1:]
try:
    emulator = Emulator(DiskCache(Path(cache)), Sources(Path(sources)), compiler)
    for expression in expressions:
        value = ctypes.c_int(0)
        instance = Instance("add.cu", expression, "P", (1, 1, 1))
        block = ArgumentBlock(instance)
        block.pack((ctypes.addressof(value),))
        emulator.function(instance)(None, None, 0, block.address, None, 0)
        print(json.dumps(value.value))
except CompileError as error:
    print(json.dumps(str(error)))
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Sources, a cache, and a compiler that writes down what it is asked."""

    directory: Path

    @property
    def sources(self) -> Path:
        return self.directory / "cuda"

    @property
    def cache(self) -> Path:
        return self.directory / "cache"

    def run(self, *expressions: str, compiler: str = "") -> list[object]:
        """Launch these in a new process, once each; what they added, or the error."""
        command = [sys.executable, "-c", SCRIPT, str(self.sources), str(self.cache)]
        command += [compiler or str(self.directory / "compiler"), *expressions]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)

        assert done.returncode == 0, done.stderr

        return [json.loads(line) for line in done.stdout.splitlines()]

    def compiled(self) -> list[str]:
        """What was compiled since this was last asked, by its name."""
        log = self.directory / "log"
        told = log.read_text().split() if log.exists() else []
        log.unlink(missing_ok=True)
        return [Path(name).name for name in told if name.endswith(".cpp")]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    made = Place(tmp_path)
    (made.sources / "emu").mkdir(parents=True)
    (made.sources / "emu" / "emu.h").write_text(HEADER)
    (made.sources / "emu" / "api.cpp").write_text(RUNTIME)
    (made.sources / "add.cu").write_text(KERNEL)
    (made.sources / "amount.cuh").write_text("#define AMOUNT 10\n")
    (tmp_path / "compiler").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path / "log"}\nexec g++ "$@"\n')
    (tmp_path / "compiler").chmod(0o755)
    return made


def test_what_was_made_is_not_made_again(place: Place) -> None:
    assert place.run("add<1>", "add<2>", "add<1>") == [10, 20, 10]
    assert place.compiled() == ["api.cpp", "kernel.cpp", "kernel.cpp"]
    assert place.run("add<2>", "add<1>") == [20, 10]
    assert place.compiled() == []


def test_a_changed_header_makes_the_kernel_anew_and_a_changed_emulator_everything(place: Place) -> None:
    place.run("add<1>")
    place.compiled()
    (place.sources / "amount.cuh").write_text("#define AMOUNT 11\n")

    assert place.run("add<1>") == [11]
    assert place.compiled() == ["kernel.cpp"]

    with (place.sources / "emu" / "emu.h").open("a") as file:
        file.write("// changed\n")

    assert place.run("add<1>") == [11]
    assert place.compiled() == ["api.cpp", "kernel.cpp"]


def test_what_is_damaged_is_made_anew(place: Place) -> None:
    place.run("add<1>")
    place.compiled()
    for path in place.cache.glob("*.so"):
        path.write_bytes(path.read_bytes()[:1000])

    assert place.run("add<1>") == [10]
    assert place.compiled() == ["api.cpp", "kernel.cpp"]


def test_a_kernel_that_does_not_compile_says_so_in_the_compilers_words(place: Place) -> None:
    (told,) = place.run("subtract<1>")

    assert str(told).startswith("add.cu: subtract<1> for the emulator: ")
    assert "subtract" in str(told).split("for the emulator: ")[1]


def test_without_a_compiler_it_is_told_what_is_missing(place: Place) -> None:
    (told,) = place.run("add<1>", compiler="there-is-no-such-compiler")

    assert "the emulator: needs there-is-no-such-compiler" in str(told)


def test_another_version_of_the_compiler_makes_all_of_it_anew(place: Place) -> None:
    place.run("add<1>")
    place.compiled()
    newer = place.directory / "compiler"
    newer.write_text(newer.read_text().replace("exec g++", '[ "$1" = --version ] && echo newer\nexec g++'))

    assert place.run("add<1>") == [10]
    assert place.compiled() == ["api.cpp", "kernel.cpp"]
