"""The store in this process' memory: exact for one process, forgotten when it ends."""

import time
from collections.abc import Callable

from policies.reservation import Answer, Book, Step


def steady_clock() -> Callable[[], int]:
    """Make a clock in µs since 1970 that is set once and never jumps when the machine's is set."""
    offset_us = time.time_ns() // 1000 - time.monotonic_ns() // 1000
    return lambda: time.monotonic_ns() // 1000 + offset_us


class EmbeddedStore:
    """Books by organisation. Nothing is awaited between a step's check and its charge."""

    def __init__(self, clock: Callable[[], int] | None = None) -> None:
        self._clock = clock or steady_clock()
        self._books: dict[str, Book] = {}

    async def apply(self, organisation: str, step: Step, now: int | None = None) -> Answer:
        """Take one step."""
        return self.take(organisation, step, now)

    def take(self, organisation: str, step: Step, now: int | None = None) -> Answer:
        """Take one step, without having to wait."""
        book = self._books.get(organisation)
        if book is None:
            book = self._books[organisation] = Book()
        return book.apply(step, self._clock() if now is None else now)

    def clock(self, organisation: str) -> int:
        """Tell the time that steps are taken on."""
        return self._clock()

    async def probe(self) -> None:
        """Live as long as the process does."""

    async def aclose(self) -> None:
        """Forget everything."""
        self._books.clear()
