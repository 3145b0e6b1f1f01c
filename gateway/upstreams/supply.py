"""Feeds an engine's allowance from a reservation, and tells the reservation what the engine has used.

The engine counts, because it alone knows of every token, shown or not. So the reservation's count follows the
allowance's, whoever reads the answer and however slowly, and the next slice is on its way before this one is used up.
Only when it did not come in time, or there is none, does the engine stop, at the edge exactly, and say so; then whoever
reads the answer asks once more, and no is the end of it.
"""

import time
from collections.abc import Callable
from typing import Protocol

from cache.reservation import Reservation
from gateway.call import Usage

STORE = "store"
"""Stands in a limit's place where nothing more was to be had because the store of the limits is lost."""


class Granted(Protocol):
    """The engine's allowance (`engine.allowance.Allowance`), as it is seen from here."""

    granted: int
    good_until: float | None
    closed: bool
    used: int

    def left(self, now: float) -> int: ...


class Supply:
    """One attempt's allowance and the reservation behind it. `limit` names what ended it, once it is closed.

    `num_prompts` prompts are to say how much of them was cached. Until all have, the reservation's counts are not
    exact: what it called used at the full price could not be taken back.
    """

    __slots__ = ("_allowance", "_counted", "_exact", "_nudge", "_open", "_reservation", "_unknown", "limit", "short")

    def __init__(
        self, reservation: Reservation, allowance: Granted, nudge: Callable[[], None], num_prompts: int
    ) -> None:
        self._reservation = reservation
        self._allowance = allowance
        self._nudge = nudge
        self._open = False
        self._counted = allowance.used = reservation.holder.output  # an earlier attempt may have produced some
        self._unknown = num_prompts
        self._exact = reservation.holder.exact
        reservation.holder.exact = False
        self.limit: str | None = None
        self.short = False

    def open(self) -> None:
        """Let the engine begin; until now nothing was granted. Whoever calls sees to it that the engine looks."""
        self._open = True
        self._reservation.on_grant = self._granted
        self._pass_on()

    def cached(self, num_tokens: int) -> None:
        """Learn how much of one prompt was cached."""
        holder = self._reservation.holder
        holder.cached += num_tokens
        self._unknown -= 1
        if not self._unknown:
            holder.exact = self._exact

    def count(self) -> None:
        """Tell the reservation what was produced since last time."""
        produced = self._allowance.used - self._counted
        if produced:
            self._counted += produced
            self._reservation.count(produced)

    async def refill(self) -> None:
        """Get tokens for an engine that is short of them, or close the allowance where there are none."""
        self.short = False
        self.count()
        if not self._allowance.left(time.monotonic()) and not await self._reservation.more():
            self._close()
        self._granted()

    def end(self, *, forfeit: bool) -> None:
        """Count the rest. With `forfeit` that is all that was granted: nobody knows how much of it was used."""
        reservation = self._reservation
        reservation.on_grant = None
        most = reservation.granted if self._open and forfeit else 0
        counted = max(most, self._allowance.used)
        reservation.holder.output += counted - self._counted
        self._counted = counted

    def usage(self) -> Usage:
        """Tell what was counted."""
        holder = self._reservation.holder
        return Usage(holder.input, holder.output, holder.cached)

    def _granted(self) -> None:
        self._pass_on()
        self._nudge()

    def _pass_on(self) -> None:
        """Pass on what the reservation holds. The order matters: `engine.allowance` says why."""
        reservation, allowance = self._reservation, self._allowance
        good_until_us = reservation.good_until_us
        allowance.granted = reservation.granted
        allowance.good_until = None if good_until_us is None else good_until_us / 1_000_000

    def _close(self) -> None:
        reservation = self._reservation
        if reservation.edge is not None:
            self.limit = reservation.edge.key
        elif reservation.holder.output < reservation.max_output:
            self.limit = STORE
        self._allowance.closed = True
