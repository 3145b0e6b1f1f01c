"""Kernels' tests, a process for each file: `python -m bench.gpu.kernel_tests <expression> <file or directory> …`.

After an illegal access nothing more runs in a process, and a kernel that waits for what never comes holds its process
for ever. So a file is all that one of them takes along. Several run side by side.
"""

import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.gpu.report import ROOT, TESTS

AT_ONCE = 4
LIMIT_S = 50
LAST_LINES = 30
ON_A_DEVICE = re.compile(r"\b(device|fastest): Device\b")
NOTHING_CHOSEN = 5  # pytest's status


def files_of(places: list[str]) -> list[Path]:
    """Find the files whose tests run on a device."""
    found = [path for place in places for path in (sorted(Path(place).glob("test_*.py")) or [Path(place)])]
    return [path for path in found if ON_A_DEVICE.search(path.read_text("utf-8"))]


def run_file(expression: str, path: Path) -> tuple[int, float, str]:
    """Run one file's tests; give the status, 124 where its time was over, the seconds and the output."""
    command = [sys.executable, *TESTS, f"--confcutdir={path.parent}", "--tb=short", "-k", expression, str(path)]
    started = time.monotonic()
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "4"},
            timeout=LIMIT_S,
        )
        status, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired as expired:
        status, output = 124, expired.stdout or b""
    return status, time.monotonic() - started, output.decode("utf-8", "replace")


def main(expression: str, *places: str) -> int:
    """Print what failed, then a line for each file; the number of files that failed."""
    files, failed, lines = files_of(list(places)), 0, []
    with ThreadPoolExecutor(AT_ONCE) as threads:
        ended = threads.map(lambda path: run_file(expression, path), files)
        for path, (status, seconds, output) in zip(files, ended, strict=True):
            good = status in (0, NOTHING_CHOSEN)
            failed += not good
            lines.append(f"{path.name}: {'ok' if good else f'FAILED ({status})'}, {seconds:.0f} s")
            if not good:
                print(f"{path.name}:\n" + "\n".join(output.splitlines()[-LAST_LINES:]), flush=True)
    print("\n".join(lines))
    return failed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
