"""Run a kernel's own test on its mutants, and tell which of them nobody noticed.

    python -m tests.kernels.mutation.hunt rms_norm silu_mul    some kernels
    python -m tests.kernels.mutation.hunt                      all of them

A kernel takes part by a function `mutation_case(device)` in `tests/kernels/test_<stem>.py`, which runs the kernel once
and raises when the result is wrong. Each mutant gets a process of its own, which may crash or hang, and six devices: a
mutant is caught when one of them raises. Mutants that do not compile are no mutants. A header's mutants are tried on
each kernel that includes it, until one catches them.
"""

import argparse
import importlib
import os
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from engine.device import Device
from engine.errors import CompileError
from engine.kernels.disk_cache import DiskCache, Entry, cache_directory
from engine.kernels.emulated_device import EmulatedDevice, Mode, Schedule
from engine.kernels.emulator import Emulator
from engine.kernels.sources import Sources, installed_sources
from tests.kernels.mutation.mutants import Mutant, mutants

HERE = Path(__file__).parent
EXCUSED = HERE / "excused.txt"
NOT_MUTATED = {"ptx.cuh", "wgmma_shapes.cuh"}  # held to the manual by probes of their own
TIMEOUT_S = 120.0
MODES = [
    Mode(late, schedule, seed)
    for late in (True, False)
    for schedule, seed in ((Schedule.FORWARD, 0), (Schedule.PRIORITY, 1), (Schedule.PRIORITY, 2))
]


class Fate(IntEnum):
    """How a mutant ended; the exit code of its process."""

    SURVIVED = 0
    CAUGHT = 10
    STILLBORN = 11


@dataclass(frozen=True)
class Found:
    mutant: Mutant
    fate: Fate


@cache
def case_of(stem: str) -> Callable[[Device], None] | None:
    """A kernel's own test, if it has one."""
    try:
        module = importlib.import_module(f"tests.kernels.test_{stem}")
    except ModuleNotFoundError:
        return None
    return getattr(module, "mutation_case", None)


def all_stems() -> list[str]:
    """Every kernel that takes part."""
    return [stem for path in sorted(installed_sources().glob("*.cu")) if case_of(stem := path.stem) is not None]


def includes(stem: str) -> set[str]:
    """The files of which a kernel is made, by name."""
    return {Path(path).name for path in Sources().closure(f"{stem}.cu")} - NOT_MUTATED


def mutants_of(stem: str, stems: list[str]) -> Iterator[tuple[Mutant, list[str]]]:
    """Those of a kernel's own file, and of the headers whose first kernel it is; with the kernels to try them on."""
    for file in sorted(includes(stem)):
        concerned = [other for other in stems if file in includes(other)]
        if file == f"{stem}.cu" or concerned[0] == stem:
            text = (installed_sources() / file).read_text("utf-8")
            for mutant in mutants(file, text):
                yield mutant, [stem] if file == f"{stem}.cu" else concerned


def judge(mutant: Mutant, stems: list[str], kernels: DiskCache) -> Fate:
    """Try a mutant on these kernels, each in a process of its own."""
    fates = [_judge_on(mutant, stem, kernels) for stem in stems[:1]]
    for stem in stems[1:]:
        if fates[-1] is Fate.CAUGHT:
            break
        fates.append(_judge_on(mutant, stem, kernels))
    if Fate.CAUGHT in fates:
        return Fate.CAUGHT
    return Fate.SURVIVED if Fate.SURVIVED in fates else Fate.STILLBORN


def _judge_on(mutant: Mutant, stem: str, kernels: DiskCache) -> Fate:
    """Fork, since this process has torch and the tests loaded; wait as long as a test may take."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads: torch's have nothing to do
        child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        os._exit(_fate(mutant, stem, kernels))
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return Fate(code) if code in list(Fate) else Fate.CAUGHT  # it crashed
        time.sleep(0.02)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return Fate.CAUGHT  # it hung


def _fate(mutant: Mutant, stem: str, kernels: DiskCache) -> Fate:
    """In the mutant's process: every mode, until one raises."""
    case = case_of(stem)
    assert case is not None
    with open(os.devnull, "w") as nowhere, TemporaryDirectory(prefix="penstock-mutant-") as directory:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        room = Path(directory)
        for path in installed_sources().glob("*.cu*"):  # a file includes what lies beside it
            shutil.copy(path, room)
        (room / mutant.file).write_text(mutant.text, "utf-8")
        emulator = Emulator(_Mutated(kernels, room), Sources(room, installed_sources()))
        for mode in MODES:
            try:
                case(EmulatedDevice(emulator, mode))
            except CompileError:
                return Fate.STILLBORN
            except BaseException:  # noqa: BLE001 - whatever it is, somebody noticed
                return Fate.CAUGHT
    return Fate.SURVIVED


class _Mutated(DiskCache):
    """Finds what was compiled before, the emulator first of all, and keeps what is new in the mutant's own room."""

    def __init__(self, kernels: DiskCache, room: Path) -> None:
        super().__init__(room / "cache")
        self._kernels = kernels

    def find(self, key: str, kind: str) -> Entry | None:
        return self._kernels.find(key, kind) or super().find(key, kind)


def excused(path: Path = EXCUSED) -> dict[str, str]:
    """Survivors that may survive: name and reason, which is indented below the names that it is of."""
    reasons: dict[str, str] = {}
    names: list[str] = []
    told = False
    for line in path.read_text("utf-8").splitlines():
        if line.startswith("    "):
            for name in names:
                reasons[name] = f"{reasons.get(name, '')} {line.strip()}".strip()
            told = True
        elif line.strip() and not line.startswith("#"):
            names = [line.strip()] if told else [*names, line.strip()]
            told = False
    return reasons


def hunt(stem: str, every: int = 1, told: Callable[[str], None] = print) -> list[Found]:
    """Every n-th mutant of a kernel, and how it ended."""
    torch.set_num_threads(1)
    kernels = DiskCache(cache_directory(os.environ))
    Emulator(kernels)  # compiled before anybody forks
    reasons = excused()
    found = []
    for mutant, stems in list(mutants_of(stem, all_stems()))[::every]:
        fate = judge(mutant, stems, kernels)
        found.append(Found(mutant, fate))
        note = " (excused)" if mutant.name in reasons else ""
        told(f"{fate.name.lower():9} {mutant.file}:{mutant.line} `{mutant.before}` -> `{mutant.after}`{note}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stems", nargs="*")
    parser.add_argument("--every", type=int, default=1, help="only every n-th mutant")
    given = parser.parse_args()
    reasons = excused()
    unexcused = 0
    for stem in given.stems or all_stems():
        found = hunt(stem, given.every)
        counted = {fate: sum(one.fate is fate for one in found) for fate in Fate}
        survivors = [one.mutant.name for one in found if one.fate is Fate.SURVIVED and one.mutant.name not in reasons]
        unexcused += len(survivors)
        print(f"{stem}: " + ", ".join(f"{number} {fate.name.lower()}" for fate, number in counted.items()))
        print("\n".join(survivors), flush=True)
    return 1 if unexcused else 0


if __name__ == "__main__":
    sys.exit(main())
