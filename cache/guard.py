"""Stands before a store that can fail: knows when it is down, says so at once, and finds out when it is back.

A frozen store must cost its callers one deadline, not one each: after a broken connection, an answer that says "not
now", or a few silences in a row the store is down, and nobody waits for it until a probe has gone through. The probe
writes, because a server that is full or has become a replica still answers to a ping.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from cache.errors import StoreError, StoreUnavailable
from cache.store import Store
from policies.reservation import Answer, Step

DOWN = "down"
SILENCES = 3
PATIENT = frozenset({"timeout", "busy"})
ELSEWHERE = frozenset({"ask", "tryagain"})  # one slot of a cluster is on its way


@dataclass(frozen=True, slots=True)
class Health:
    """Whether the store is asked; if not, why not. `reason` is a label of few values."""

    up: bool = True
    reason: str = ""


class Guard:
    """A store's breaker. `watch` has to run for it to close again."""

    def __init__(self, store: Store, *, probe_every_s: float = 0.25) -> None:
        self.store = store
        self.health = Health()
        self._probe_every_s = probe_every_s
        self._silences = 0
        self._down = asyncio.Event()
        self._listeners: list[Callable[[Health], None]] = []

    def on_change(self, listener: Callable[[Health], None]) -> None:
        """Call back whenever the health changes, to announce it."""
        self._listeners.append(listener)

    async def apply(self, organisation: str, step: Step) -> Answer:
        """Take a step, if the store is up. Raises `StoreError`; with `reason` DOWN nothing was sent."""
        if not self.health.up:
            raise StoreUnavailable(f"the store is down: {self.health.reason}", reason=DOWN)
        try:
            answer = await self.store.apply(organisation, step)
        except StoreUnavailable as error:
            self._failed(error.reason)
            raise
        self._silences = 0
        return answer

    async def look_around(self) -> None:
        """Find out now whether the store is there, instead of from the first call that needs it."""
        try:
            await self.store.probe()
        except StoreError as error:
            self._go_down(error.reason)

    async def watch(self) -> None:
        """Probe while the store is down, until cancelled."""
        while True:
            await self._down.wait()
            try:
                await self.store.probe()
            except StoreError:
                await asyncio.sleep(self._probe_every_s)
            else:
                self._silences = 0
                self._down.clear()
                self._become(Health())

    def _failed(self, reason: str) -> None:
        if reason in ELSEWHERE:
            return
        self._silences += 1
        if self._silences >= SILENCES or reason not in PATIENT:
            self._go_down(reason)

    def _go_down(self, reason: str) -> None:
        self._down.set()
        if self.health.up:
            self._become(Health(up=False, reason=reason))

    def _become(self, health: Health) -> None:
        self.health = health
        for listener in self._listeners:
            listener(health)
