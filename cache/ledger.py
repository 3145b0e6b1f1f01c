"""The ledger: what calls may use, and what they have used, whichever store keeps the numbers.

`allow` lets a call in, `reserve` promises it tokens; both are entered on the scope of what they are for and settle when
that scope ends, however it ends. Between two slices of output a reservation counts for itself; the next slice is asked
for before the last one is used up. Settling, renewing and taking back happen off the caller's path, on tasks that the
ledger owns: it has to be running (`async with ledger`) while it is used.

While the store is down, accounts that say so are served from books of this process, which hold a share of each limit;
the others are refused. A stream that the store promised a slice may use it up; past it, it asks where new calls ask.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from copy import copy
from types import TracebackType

from cache.embedded import EmbeddedStore
from cache.errors import StoreError, StoreMisused, StoreUnavailable
from cache.guard import DOWN, Guard, Health
from cache.reservation import Home, Reservation, Standing, standings
from cache.store import Store
from policies.account import Account, OnFailure, shares
from policies.reservation import RETENTION_US, Claim, Step

INSIST_EVERY_S = 0.2
UNBOUNDED = 1 << 31


def monotonic_us() -> int:
    """Tell the process' clock."""
    return time.monotonic_ns() // 1000


class Ledger:
    """Reservations over one store. `replicas` is how many gateways share it, for the shares they hold without it.

    A reservation that reaches the store later than `patience_s` after it was sent is not made any more: whoever asked
    has been told otherwise by then. At most 5 s, as long as the store surely remembers.
    """

    def __init__(
        self,
        store: Store,
        *,
        replicas: int = 1,
        lease_s: float = 30.0,
        patience_s: float = 0.5,
        close_s: float = 2.0,
        clock: Callable[[], int] = monotonic_us,
    ) -> None:
        self.clock = clock
        self.lease_us = round(lease_s * 1_000_000)
        self.patience_us = round(patience_s * 1_000_000)
        self.rehearses = False
        self.replicas = replicas
        self._close_s = close_s
        self._guard: Guard | None = None
        if isinstance(store, EmbeddedStore):
            self._home = Home(store, instant=store.take)
        else:
            self._guard = Guard(store)
            self._home = Home(store, guard=self._guard)
        own = EmbeddedStore()
        self._shares = Home(own, instant=own.take, replicas=replicas)
        self._open: set[Reservation] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self._watching: list[asyncio.Task[None]] = []

    @property
    def health(self) -> Health:
        """Whether the store is up."""
        return self._guard.health if self._guard is not None else Health()

    def on_change(self, listener: Callable[[Health], None]) -> None:
        """Call back whenever the store goes down or comes back."""
        if self._guard is not None:
            self._guard.on_change(listener)

    async def look_around(self) -> None:
        """Find out now whether the store is there, instead of from the first call."""
        if self._guard is not None:
            await self._guard.look_around()

    def rehearsing(self) -> "Ledger":
        """Give this ledger for trying out: who enters what it promises is told what would be said now.

        Nothing of that is kept, nor has to be settled, and nothing can be counted against it.
        """
        twin = copy(self)
        twin.rehearses = True
        return twin

    def allow(self, account: Account, call_id: str) -> Reservation:
        """Let a call in: enter it, or `LimitExceeded`, `StoreError`. `call_id` is ours and unique, not the caller's."""
        return Reservation(self, account, account.entry, f"{call_id}:a", 0, UNBOUNDED)

    def reserve(
        self,
        account: Account,
        call_id: str,
        *,
        input_tokens: int,
        cached_tokens: int = 0,
        max_output: int | None,
        exact: bool = True,
        least: int = 1,
        whole: bool = False,
        apart: bool = False,
    ) -> Reservation:
        """Promise a call its input and, slice by slice, its output: enter it, or `LimitExceeded`, `StoreError`.

        `exact` says that the counts are the served model's own and not estimates; `least` how much output is worth
        beginning for; `whole` that nobody will count what is produced until it is there, so that all of `max_output` is
        asked for at once, where it has a bound; `apart` that the call was let in by this process alone because the
        store had failed: it is not sent to wait for the store a second time.
        """
        bound = UNBOUNDED if max_output is None else max_output
        whole = whole and max_output is not None
        rules, least = account.tokens, min(least, bound)
        reservation = Reservation(self, account, rules, call_id, least, bound, exact=exact, whole=whole, apart=apart)
        reservation.holder.input, reservation.holder.cached = input_tokens, cached_tokens
        return reservation

    async def look(self, account: Account) -> tuple[Standing, ...]:
        """Tell how an account's limits stand, without leaving a trace: a step that is too late on purpose.

        Raises `StoreError`.
        """
        rules = (*account.entry, *account.tokens)
        home = self.home(account)
        if home.replicas:
            rules = shares(rules, home.replicas)
        step = Step("look", 1, tuple([Claim(rule.limit) for rule in rules]), 0, force=True, not_after=1)
        answer = await home.take(account.organisation, step)
        return standings(step, answer)

    async def __aenter__(self) -> "Ledger":
        loop = asyncio.get_running_loop()
        self._watching = [loop.create_task(self._renew())]
        if self._guard is not None:
            self._watching.append(loop.create_task(self._guard.watch()))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=self._close_s)
        ending = [*self._watching, *self.tasks]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    def renew_all(self) -> None:
        """Tell the store anew what every running call uses and holds, at once: it has lost its memory."""
        for reservation in list(self._open):
            reservation.renew()

    # For reservations.

    def home(self, account: Account, *, apart: bool = False) -> Home:
        """Tell where an account's steps go now, or those of a call that is apart. Raises `StoreUnavailable`."""
        if apart:
            return self._shares
        if self.health.up:
            return self._home
        return self.refuge(account, StoreUnavailable(f"the store is down: {self.health.reason}", reason=DOWN))

    def refuge(self, account: Account, error: StoreError) -> Home:
        """Tell where to go after the store has failed. Raises the error where there is no such place."""
        if account.on_failure is OnFailure.CLOSED:
            raise error
        return self._shares

    def begun(self, reservation: Reservation) -> None:
        """Keep a reservation's lease from now on."""
        self._open.add(reservation)

    def ended(self, reservation: Reservation) -> None:
        """Keep it no longer."""
        self._open.discard(reservation)

    def start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Do something off the caller's path, on a task of the ledger's."""
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def insist(self, home: Home, organisation: str, step: Step) -> None:
        """Bring a last step to the store, at once if it is here, else until it has answered."""
        if home.instant is not None:
            home.instant(organisation, step)
        else:
            self.start(self._insist(home, organisation, step))

    async def _insist(self, home: Home, organisation: str, step: Step) -> None:
        """Send again as long as the store surely remembers the call; after that its lease has settled it."""
        until = self.clock() + RETENTION_US // 2 - 1_000_000
        while True:
            try:
                await home.take(organisation, step)
            except StoreMisused:
                return
            except StoreUnavailable:
                if self.clock() >= until:
                    return
                await asyncio.sleep(INSIST_EVERY_S)
            else:
                return

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self.lease_us / 6_000_000)
            for reservation in list(self._open):
                if reservation.holder.good_until - self.clock() < self.lease_us // 2:
                    reservation.renew()
