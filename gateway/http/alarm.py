"""A deadline that moves with every request and seldom costs a timer.

Arming and cancelling a timer per request is dearer than the request's parsing. Deadlines nearly always move later, so
the timer is left where it stands: when it goes off too early it looks at the deadline and is set again. A connection
that is never idle for long thus touches its timer about once a timeout.
"""

import asyncio
from collections.abc import Callable
from math import inf


class Alarm:
    """One movable deadline in loop seconds; `ring` is called once it has passed."""

    __slots__ = ("_armed", "_loop", "_ring", "_timer", "due")

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        self._loop = loop
        self._ring = ring
        self._timer: asyncio.TimerHandle | None = None
        self._armed = inf  # when the timer goes off
        self.due = inf  # may be moved later, or to infinity, by writing it; earlier only by `set`

    def set(self, when: float) -> None:
        """Ring at `when` instead of whatever was set."""
        self.due = when
        if when < self._armed:
            if self._timer is not None:
                self._timer.cancel()
            self._armed = when
            self._timer = self._loop.call_at(when, self._awake)

    def close(self) -> None:
        """Never ring again."""
        self.due = self._armed = inf
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _awake(self) -> None:
        self._timer = None
        self._armed = inf
        if self.due == inf:
            return
        # Timers may go off up to a clock tick early; a tick is not worth another timer.
        if self.due > self._loop.time() + 0.001:
            self.set(self.due)
            return
        self.due = inf
        self._ring()
