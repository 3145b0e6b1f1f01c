"""Where CUDA's own headers are: pip packages, else an installed toolkit."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from engine.errors import CompileError

PROOF = "cuda_bf16.h"
VERSION = re.compile(r"^#define CUDART_VERSION\s+(\d+)", re.MULTILINE)


def header_directory(places: Iterable[Path] | None = None) -> Path:
    """The directory of `cuda_bf16.h` and its kin. Raises `CompileError`."""
    tried = []
    for place in candidates(os.environ) if places is None else places:
        if (place / PROOF).is_file():
            return place
        tried.append(str(place))
    raise CompileError(PROOF, f"install nvidia-cuda-runtime and nvidia-cuda-crt; not in {', '.join(tried)}")


def header_version(directory: Path) -> int:
    """Such as 13000 for CUDA 13.0."""
    found = VERSION.search((directory / "cuda_runtime_api.h").read_text("utf-8"))
    if found is None:
        raise CompileError("cuda_runtime_api.h", f"no CUDART_VERSION in {directory}")
    return int(found[1])


def candidates(environment: Mapping[str, str]) -> Iterator[Path]:
    """Where headers may be, best first: the wheels that are installed, `CUDA_HOME`, the usual place."""
    try:
        from cuda.pathfinder import find_nvidia_header_directory
    except ImportError:  # an older one does not tell
        pass
    else:
        if found := find_nvidia_header_directory("cudart"):
            yield Path(found)
    if home := environment.get("CUDA_HOME"):
        yield Path(home) / "include"
    yield Path("/usr/local/cuda/include")
