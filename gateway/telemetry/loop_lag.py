"""How late the event loop is: what everything on it suffers, measured by a timer that ought to be punctual."""

import asyncio

EVERY_S = 0.1


class LoopLag:
    """Sets a timer again and again and keeps the worst delay since it was last read."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._worst = 0.0
        self._due = self._loop.time() + EVERY_S
        self._timer = self._loop.call_at(self._due, self._tick)

    def read(self) -> float:
        """Give the worst delay in seconds since the last reading, and begin anew."""
        worst, self._worst = self._worst, 0.0
        return worst

    def close(self) -> None:
        """Stop measuring."""
        self._timer.cancel()

    def _tick(self) -> None:
        now = self._loop.time()
        self._worst = max(self._worst, now - self._due)
        self._due = now + EVERY_S
        self._timer = self._loop.call_at(self._due, self._tick)
