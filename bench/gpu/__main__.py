"""Everything that a GPU is to show, in one command: `make gpu`, or `python -m bench.gpu`.

Parts run one after the other, each a process of its own with a time limit, so that a failure hides nothing else; all of
them together take less than nine minutes. What was measured is kept in `bench/results/<card>/`, with the versions and
the ceilings of the same run. Nothing but the engine's own packages and pytest is needed.

    versions ─ kernels compiled ─ kernels' tests ─ models' tests ─ attention ─ steps ─ small kernels ─ sanitizer

`--rehearse` runs the same parts small and in the emulator, to see that they run.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from bench.gpu.report import MARK, ROOT, TESTS, Figure, line_of, told

LAST_LINES = 90
FEW_LINES = 8  # of a part that ended well; its figures come again at the end


@dataclass(frozen=True, slots=True)
class Part:
    """A part: a Python command line, and how long it may take."""

    name: str
    arguments: tuple[str, ...]
    limit_s: int
    around: tuple[str, ...] = ()
    """What it runs under."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a part ended. `status` is its exit status, 124 where its time was over."""

    name: str
    status: int
    seconds: float
    figures: list[Figure]
    last_lines: list[str]


def parts(kind: str) -> list[Part]:
    """List the parts for `cuda`, or for `emulator`."""
    on_card = kind.startswith("cuda")
    # Ids of parameters, which begin in a bracket or behind a dash: cuda is in the names of files and functions too.
    chosen = "[cuda or -cuda" if on_card else "late-forward or emulator"
    kernels = ("tests/kernels",) if on_card else ("tests/kernels/test_scatter.py",)
    models = ("tests/models/test_device_sampler.py", *(("tests/models/test_cuda_runner.py",) if on_card else ()))
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    listed = [
        Part("versions and ceilings", ("-m", "bench.gpu.ceilings", kind), 40),
        Part("kernels compiled", ("-m", "engine", "kernels", "build", "--arch", "sm_90a"), 60),
        Part("kernels' tests", ("-m", "bench.gpu.kernel_tests", chosen, *kernels), 120),
        Part("models' tests", (*TESTS, "--confcutdir=tests/models", "-k", chosen, *models), 60),
        Part("attention", ("-m", "bench.gpu.attention", kind), 70),
        Part("steps", ("-m", "bench.gpu.step", kind), 80),
        Part("small kernels", ("-m", "bench.gpu.small_kernels", kind), 30),
    ]
    if on_card and Path(sanitizer).exists():
        tools, few = {"memcheck": 30, "racecheck": 40}, f"({chosen}) and (gathered or equals or land)"
        listed += [
            Part(
                f"sanitizer: {tool}",
                (
                    *TESTS,
                    "--confcutdir=tests/kernels",
                    "-k",
                    few,
                    "tests/kernels",
                ),
                limit_s,
                (sanitizer, f"--tool={tool}", "--error-exitcode=9"),
            )
            for tool, limit_s in tools.items()
        ]
    return listed


def run(part: Part) -> Outcome:
    """Run a part, its output passed on as it comes."""
    print(f"\n== {part.name}", flush=True)
    started = time.monotonic()
    process = subprocess.Popen(
        [*part.around, sys.executable, *part.arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"},
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=part.limit_s)
        status = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        output, _ = process.communicate()
        status = 124
    lines = [line for line in output.splitlines() if not line.startswith(MARK)]
    print("\n".join(lines[-LAST_LINES if status else -FEW_LINES :]))
    seconds = time.monotonic() - started
    print(f"-- {part.name}: {'ok' if status == 0 else f'status {status}'}, {seconds:.0f} s", flush=True)
    return Outcome(part.name, status, seconds, told(output), lines[-LAST_LINES:])


def table(outcomes: list[Outcome]) -> str:
    """Give all figures and how each part ended."""
    lines = []
    for outcome in outcomes:
        lines.append(f"{outcome.name}: {'ok' if outcome.status == 0 else f'FAILED ({outcome.status})'}")
        lines += [line_of(figure) for figure in outcome.figures]
    return "\n".join(lines)


def keep(outcomes: list[Outcome], directory: Path, now: datetime) -> Path:
    """Write results to a file named after the card and the time; give its path."""
    first = outcomes[0].last_lines[0] if outcomes and outcomes[0].last_lines else "unknown"
    card = re.sub(r"[^a-z0-9]+", "-", first.partition(",")[0].lower()).strip("-")
    path = directory / card / f"{now:%Y-%m-%d-%H%M}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1, ensure_ascii=False) + "\n")
    return path


def main() -> int:
    """Run all parts, print the table, keep the results; the number of parts that failed."""
    parser = argparse.ArgumentParser(prog="bench.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--rehearse", action="store_true", help="small, and in the emulator")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="parts whose name begins so")
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results", metavar="DIR")
    options = parser.parse_args()
    chosen = parts("emulator" if options.rehearse else "cuda")
    if options.only:
        chosen = [part for part in chosen if part.name.startswith(tuple(options.only))]
    outcomes = [run(part) for part in chosen]
    print("\n" + table(outcomes))
    print(keep(outcomes, options.results, datetime.now(UTC)))
    return sum(outcome.status != 0 for outcome in outcomes)


if __name__ == "__main__":
    sys.exit(main())
