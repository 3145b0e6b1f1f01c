"""`kernels build` compiles everything once, tells how it goes, and a process that starts then compiles nothing."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from engine.kernels.command import main
from engine.kernels.compiler import Compiler
from engine.kernels.disk_cache import DiskCache
from engine.kernels.registry import EVERYWHERE, HOPPER, Instance
from engine.kernels.sources import Sources

ROOT = Path(__file__).resolve().parents[2]
CLEAN = Instance("careless.cu", "clean<1>", "P", (32, 1, 1))
HOPPERS = Instance("careless.cu", "impatient<4>", "Pqq", (128, 1, 1), archs=HOPPER)
WRONG = Instance("careless.cu", "clean<wrong>", "P", (32, 1, 1), archs=HOPPER)


def test_every_instance_is_compiled_for_each_of_its_archs_and_told(
    tmp_path: Path, kernel_sources: Sources, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["build", "--jobs", "2", "--directory", str(tmp_path)], [CLEAN, HOPPERS], kernel_sources)
    *lines, summary = capsys.readouterr().out.splitlines()

    assert status == 0
    assert [line.split(": ")[1] for line in lines] == [
        *(f"clean<1> {arch}" for arch in EVERYWHERE),
        "impatient<4> sm_90a",
    ]
    assert lines[0].startswith("1/5 careless.cu: clean<1> sm_80: ")
    assert re.search(r"\d+ registers, 0 bytes of stack, 0 spilled, \d\.\d s$", lines[0])
    assert summary.startswith(f"5 cubins of 2 kernels in {tmp_path}: 5 compiled, 0 were there; ")


def test_a_second_time_nothing_is_compiled(
    tmp_path: Path, kernel_sources: Sources, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["build", "--arch", "sm_90a", "--directory", str(tmp_path)]
    main(command, [CLEAN, HOPPERS], kernel_sources)
    capsys.readouterr()

    assert main(command, [CLEAN, HOPPERS], kernel_sources) == 0
    assert capsys.readouterr().out.startswith(f"2 cubins of 2 kernels in {tmp_path}: 0 compiled, 2 were there; ")


def test_what_was_built_is_what_a_start_looks_for(tmp_path: Path, kernel_sources: Sources) -> None:
    main(["build", "--directory", str(tmp_path)], [CLEAN], kernel_sources)
    compiled: list[str] = []
    start = Compiler(DiskCache(tmp_path), kernel_sources, lambda instance, arch, seconds: compiled.append(arch))
    for arch in EVERYWHERE:
        start.compile(CLEAN, arch)

    assert compiled == []


def test_only_the_archs_that_are_named_are_built(
    tmp_path: Path, kernel_sources: Sources, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["build", "--arch", "sm_80", "--arch", "sm_89", "--directory", str(tmp_path)]

    assert main(command, [CLEAN, HOPPERS], kernel_sources) == 0
    assert "2 cubins of 2 kernels" in capsys.readouterr().out


def test_one_that_does_not_compile_is_told_and_keeps_no_other_from_it(
    tmp_path: Path, kernel_sources: Sources, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["build", "--arch", "sm_90a", "--directory", str(tmp_path)], [WRONG, CLEAN], kernel_sources)
    told = capsys.readouterr()

    assert status == 1
    assert told.err.startswith("kernels: careless.cu: clean<wrong> for sm_90a: ")
    assert "2 cubins of 2 kernels" in told.out
    assert ": 1 compiled, 0 were there, 1 failed; " in told.out


def test_penstock_hands_the_command_to_the_engine(tmp_path: Path) -> None:
    """From a folder that has something called engine in it, which is not meant."""
    (tmp_path / "engine.py").write_text("raise SystemExit('not this one')")
    penstock = "import sys; sys.path.insert(0, sys.argv.pop(1)); from gateway.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-P", "-c", penstock, str(ROOT), "kernels", "build", "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert "--arch" in done.stdout


def test_without_the_engines_libraries_penstock_says_what_to_install() -> None:
    script = """
import importlib.util, sys
from gateway.cli import main
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "torch" else found(name, package)
sys.exit(main(["kernels", "build"]))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=100)

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "penstock: kernels are the engine's: pip install 'penstock[cuda]'\n"
