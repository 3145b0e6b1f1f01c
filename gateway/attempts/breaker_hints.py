"""What replicas tell each other of their breakers, through the store that they share: a hint, and never truth.

Whose breaker opens says so; whoever reads it is quicker to believe its own next failures (`CircuitBreaker.hint`), and
does nothing else. Without a shared store, or while it does not answer, every replica finds out alone.
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from cache.errors import StoreError
from gateway.call import Model

LOOK_S = 1.0
NOTE_S = 5.0  # how long what one said can be read


class Board(Protocol):
    """Where notes hang, by name."""

    async def post(self, name: str, text: str, ttl_s: float) -> None: ...

    async def read(self, names: Sequence[str]) -> Sequence[str | None]: ...


class BreakerHints:
    """Tells of this replica's breakers and hears of the others'."""

    def __init__(
        self,
        models: Iterable[Model],
        board: Board,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._board = board
        self._clock = clock
        self._author = secrets.token_hex(8)
        self._breakers = {
            f"breaker:{model.name}:{upstream.name}": breaker
            for model in models
            for upstream, breaker in model.recovery.breakers.items()
            if not upstream.takes_ids  # an engine is nobody else's
        }
        self._opened = dict.fromkeys(self._breakers, 0)

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while self._breakers:
            await asyncio.sleep(LOOK_S)
            try:
                await self.look()
            except StoreError:
                continue  # its guard tells of it, and nothing here depends on it

    async def look(self) -> None:
        """Tell what has opened since the last look, and hear what has elsewhere. Raises `StoreError`."""
        now = self._clock()
        for name, breaker in self._breakers.items():
            opened = breaker.snapshot(now).opened
            if opened != self._opened[name]:
                await self._board.post(name, self._author, NOTE_S)
                self._opened[name] = opened
        for breaker, author in zip(self._breakers.values(), await self._board.read(list(self._breakers)), strict=True):
            if author is not None and author != self._author:
                breaker.hint(now)
