"""Looks whether an engine's step comes to an end.

A step that hangs (a kernel that spins, a driver that waits for a device that is gone) holds every answer of its model,
and nothing in the engine's thread can end it. So somebody else looks, from the event loop: a step that takes longer
than its bound makes the process not ready, and is told once with the place where it stands. One that takes twice as
long is given up: the process seals its journal, tells every caller and ends, and the supervisor starts another.

The bound is the operator's, or so many times what a step takes by now, whichever is longer: a slow machine is no hang.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

LOOK_S = 0.5
TIMES = 50.0  # what a step usually takes


class Stepping(Protocol):
    """What is looked at. `step_started` is None between steps; it is read without a lock."""

    step_started: float | None

    def usual_step_s(self) -> float: ...

    def where(self) -> str: ...


class Watchdog:
    """Watches one engine. `say` tells the operator; `give_up` is called once, with the reason, when it is too long."""

    def __init__(
        self,
        model: str,
        engine: Stepping,
        bound_s: float,
        *,
        say: Callable[[str], None],
        give_up: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        self._engine = engine
        self._bound_s = bound_s
        self._say = say
        self._give_up = give_up
        self._clock = clock
        self._told: float | None = None  # the beginning of the step that was told of
        self._given_up = False
        self._timer: asyncio.TimerHandle | None = None
        self.stalls = 0  # steps that took longer than their bound

    def start(self) -> None:
        """Look again and again, on the running loop."""
        self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._ring)

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def reason(self) -> str | None:
        """Say why nothing should be sent here, for as long as a step hangs."""
        over_s = self._over_s()
        return None if over_s is None else f"the engine of {self._model} hangs in a step"

    def look(self) -> None:
        """Tell of a step that takes too long, or give it up."""
        over_s, started = self._over_s(), self._engine.step_started
        if over_s is None or started is None:
            return
        if self._told != started:
            self._told = started
            self.stalls += 1
            bound_s = self._bound()
            self._say(f"a step of the engine of {self._model} takes longer than {bound_s:g} s. {self._engine.where()}")
        if over_s > self._bound() and not self._given_up and self._give_up is not None:
            self._given_up = True
            self._give_up(f"the engine of {self._model} hangs in a step")

    def _ring(self) -> None:
        self.start()
        self.look()

    def _bound(self) -> float:
        return max(self._bound_s, TIMES * self._engine.usual_step_s())

    def _over_s(self) -> float | None:
        """By how much the step under way has passed its bound; None where it has not."""
        started = self._engine.step_started
        over_s = 0.0 if started is None else self._clock() - started - self._bound()
        return over_s if over_s > 0 else None
