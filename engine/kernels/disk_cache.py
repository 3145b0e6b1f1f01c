"""Compiled kernels on the disk: `<key>.<kind>` and `<key>.json`, which says what it is and its checksum.

The key is the digest of all that the result depends on, so an entry is never out of date. Both files are written under
names of their own and renamed, the description last: whoever finds a description finds the whole, and processes that
build the same at the same time do the work twice and harm nothing. What does not fit its checksum counts as missing.
"""

import hashlib
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

DIRECTORY = "PENSTOCK_KERNEL_CACHE"


def cache_directory(environment: Mapping[str, str]) -> Path:
    """Where compiled kernels are kept: `PENSTOCK_KERNEL_CACHE`, else `penstock/kernels` in the user's cache."""
    if chosen := environment.get(DIRECTORY):
        return Path(chosen)
    user = environment.get("XDG_CACHE_HOME")
    return (Path(user) if user else Path.home() / ".cache") / "penstock" / "kernels"


@dataclass(frozen=True, slots=True)
class Entry:
    """What was compiled. `facts` is what its maker wants to know of it later, as JSON."""

    path: Path
    data: bytes
    facts: Mapping[str, object]


class DiskCache:
    """The entries of one directory, which is made when the first is written."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def find(self, key: str, kind: str) -> Entry | None:
        """The entry, or None where it is missing or damaged."""
        path = self.directory / f"{key}.{kind}"
        try:
            description = json.loads((self.directory / f"{key}.json").read_bytes())
            data = path.read_bytes()
        except (OSError, ValueError):
            return None
        if not isinstance(description, dict) or description.get("sha256") != hashlib.sha256(data).hexdigest():
            return None
        facts = description.get("facts")
        return Entry(path, data, facts) if isinstance(facts, dict) else None

    def store(self, key: str, kind: str, data: bytes, facts: Mapping[str, object]) -> Entry:
        """Keep an entry. Raises `OSError` where the directory cannot be written."""
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / f"{key}.{kind}"
        description = {"sha256": hashlib.sha256(data).hexdigest(), "facts": dict(facts)}
        self._publish(path, data)
        self._publish(self.directory / f"{key}.json", json.dumps(description, indent=1).encode())
        return Entry(path, data, facts)

    def _publish(self, path: Path, data: bytes) -> None:
        temporary = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            temporary.write_bytes(data)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
