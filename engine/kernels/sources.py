"""The CUDA sources on the disk: where they lie, what a file includes, and the digest of all of it.

A checkout has them in `cuda/`; a wheel carries a copy inside this package, since `cuda/` in site-packages is
cuda-python's.
"""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from engine.errors import CompileError

INCLUDE = re.compile(rb'^[ \t]*#[ \t]*include[ \t]+"([^"\n]+)"', re.MULTILINE)
EMULATOR = "emu"


def installed_sources(here: Path = Path(__file__).resolve().parent) -> Path:  # noqa: B008 - it does not change
    """The directory of the `.cu` files: the packaged copy beside this file where there is one, else the checkout's."""
    packaged = here / "cuda_src"
    return packaged if packaged.is_dir() else here.parent.parent / "cuda"


class Sources:
    """CUDA files, looked for in several directories as a compiler with as many `-I` does."""

    def __init__(self, *roots: Path) -> None:
        self.roots = roots or (installed_sources(),)

    def find(self, name: str) -> Path:
        """The file of this name. Raises `CompileError`."""
        for root in self.roots:
            if (path := root / name).is_file():
                return path
        raise CompileError(name, f"not found in {', '.join(map(str, self.roots))}")

    def closure(self, name: str) -> dict[Path, bytes]:
        """The file and every file of ours that it includes, but none of the emulator's.

        Conditions are not followed: a file that either branch of an `#if` includes is in.
        """
        found: dict[Path, bytes] = {}
        to_read = [self.find(name).resolve()]
        while to_read:
            path = to_read.pop()
            if path not in found:
                found[path] = path.read_bytes()
                to_read += self._included(path, found[path])
        return found

    def _included(self, path: Path, text: bytes) -> Iterator[Path]:
        for match in INCLUDE.finditer(text):
            name = match[1].decode()
            if not name.startswith(f"{EMULATOR}/"):
                beside = path.parent / name
                yield (beside if beside.is_file() else self.find(name)).resolve()

    def digest(self, name: str) -> str:
        """The same for the same text, wherever it lies."""
        return digest(*sorted((path.name, text) for path, text in self.closure(name).items()))

    def emulator_digest(self) -> str:
        """The same for the same emulator."""
        directory = self.find(f"{EMULATOR}/emu.h").parent
        files = sorted(path for path in directory.rglob("*") if path.is_file())
        return digest(*((str(path.relative_to(directory)), path.read_bytes()) for path in files))


def digest(*parts: object) -> str:
    """A name for these parts, 128 bits in hexadecimal."""
    whole = hashlib.sha256()
    for part in parts:
        raw = part if isinstance(part, bytes) else repr(part).encode()
        whole.update(len(raw).to_bytes(8, "little") + raw)
    return whole.hexdigest()[:32]
