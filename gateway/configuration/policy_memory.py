"""The texts of the policy in force, in memory that outlives a worker: the next one goes on where it stopped.

A worker that died while the files on disk were broken, or gone, would else fall back to what they were when the gateway
started, and believe keys that were taken away since. The memory is made before the worker is forked; it has two
places, written in turn, each with a digest, so that a death in the middle of writing leaves the older one whole.
"""

import os
import sys
import tempfile
import weakref
from collections.abc import Sequence
from hashlib import blake2b

import msgspec

from policies.compile import Source

DIGEST_BYTES = 16


class Kept(msgspec.Struct, frozen=True, array_like=True):
    """What one place holds: the texts, and how often something was written before."""

    number: int
    sources: tuple[tuple[str, str, str], ...]


class PolicyMemory:
    """Make it in the supervisor; keep and recall in its workers, one at a time."""

    def __init__(self) -> None:
        self._places = (anonymous_file(), anonymous_file())
        weakref.finalize(self, close_all, self._places)  # a configuration that is read again brings another memory

    def keep(self, sources: Sequence[Source]) -> None:
        """Remember texts that are in force from now on. Raises `OSError` where there is no memory left."""
        last = self._last()
        number = 0 if last is None else last.number + 1
        content = msgspec.msgpack.encode(Kept(number, tuple((each.file, each.text, each.base) for each in sources)))
        place = self._places[number % 2]
        os.ftruncate(place, 0)
        written, content = 0, digest_of(content) + content
        while written < len(content):
            written += os.pwrite(place, content[written:], written)

    def recall(self) -> list[Source] | None:
        """Give what was last remembered, if anything was."""
        last = self._last()
        return None if last is None else [Source(*each) for each in last.sources]

    def _last(self) -> Kept | None:
        found = [kept for kept in map(read_place, self._places) if kept is not None]
        return max(found, key=lambda kept: kept.number, default=None)


def read_place(place: int) -> Kept | None:
    """Give what a place holds, None if it was never written, or not to the end."""
    content = os.pread(place, os.fstat(place).st_size, 0)
    digest, content = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
    return msgspec.msgpack.decode(content, type=Kept) if digest == digest_of(content) else None


def close_all(places: Sequence[int]) -> None:
    """Let go of places that nobody writes any more."""
    for place in places:
        os.close(place)


def digest_of(content: bytes) -> bytes:
    return blake2b(content, digest_size=DIGEST_BYTES).digest()


def anonymous_file() -> int:
    """Open a file that has no name: in memory where the system can, so that no disk is needed."""
    if sys.platform == "linux":
        return os.memfd_create("penstock-policy")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
