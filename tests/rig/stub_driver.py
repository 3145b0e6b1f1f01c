"""A libcuda.so.1 that runs nothing (`stub_driver.cpp`), for processes that have no GPU and want to launch."""

import os
import subprocess
from pathlib import Path

LIBRARY = "libcuda.so.1"


def build(directory: Path) -> None:
    """Put the stub into a directory."""
    source = Path(__file__).with_suffix(".cpp")
    subprocess.run(["g++", "-O2", "-shared", "-fPIC", str(source), "-o", str(directory / LIBRARY)], check=True)


def stubbed(directory: Path, log: Path | None = None) -> dict[str, str]:
    """The environment of a process that finds the stub of that directory instead of a driver.

    `log` is where it writes down what it was asked. Such a process must not compile: NVRTC looks at the driver too.
    """
    told = {} if log is None else {"STUB_DRIVER_LOG": str(log)}
    return {**os.environ, "LD_LIBRARY_PATH": str(directory), **told}
