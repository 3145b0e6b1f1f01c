"""One call's reservation in the ledger: an async context manager that counts, extends ahead of need, and settles."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from cache.errors import StoreError, StoreUnavailable
from cache.guard import DOWN, Guard
from cache.store import Store
from policies.account import Account, shares
from policies.bucket import NEVER, Limit
from policies.holder import Holder, Rule
from policies.reservation import Answer, Step, Verdict

if TYPE_CHECKING:
    from cache.ledger import Ledger


@dataclass(frozen=True, slots=True)
class Home:
    """Where steps go. `instant` takes them without waiting; `replicas` of more than 1 holds shares of the limits."""

    store: Store
    guard: Guard | None = None
    instant: Callable[[str, Step], Answer] | None = None
    replicas: int = 0

    async def take(self, organisation: str, step: Step) -> Answer:
        """Take a step. Raises `StoreError`."""
        if self.instant is not None:
            return self.instant(organisation, step)
        return await (self.guard or self.store).apply(organisation, step)


class Standing(Struct, frozen=True):
    """How a limit stands after a step: what is free of it, and the µs until nothing of it is spent."""

    limit: Limit
    free: int
    reset_us: int


def standings(step: Step, answer: Answer) -> tuple[Standing, ...]:
    """Name the limits that an answer tells about."""
    pairs = zip(step.claims, answer.standings, strict=True)
    return tuple([Standing(claim.limit, free, reset_us) for claim, (free, reset_us) in pairs])


class LimitExceeded(Exception):
    """A limit refuses a call. `wait_us` is when to come back, None if the call can never fit."""

    def __init__(self, limit: Limit, wait_us: int | None, standings: tuple[Standing, ...], free: int) -> None:
        super().__init__(f"the limit {limit.key} leaves {free} of {limit.capacity}")
        self.limit = limit
        self.wait_us = wait_us
        self.free = free
        self.standings = standings


class Reservation:
    """What one call was promised. Made by the ledger; enter it before use.

    Count what is produced with `count`, and never produce more than `room()`; at 0, `more()` waits for the next slice
    or says that there is none, and `edge` names the limit. `usage` replaces the counts where somebody knows better.
    `degraded` says that it is a promise of this process alone, because the store is down; `shadowed` are the shadow
    limits that would have refused it or cut it short so far; `tight` is what cut the first slice, if anything did;
    `tried` is the first step and its answer, where it was a rehearsal.
    Who produces on another thread reads `granted` and `good_until_us`, and sets `on_grant` to be told when they change.
    """

    __slots__ = (
        "_account",
        "_extension",
        "_final",
        "_home",
        "_least",
        "_ledger",
        "_rehearses",
        "_rules",
        "_slice",
        "degraded",
        "edge",
        "holder",
        "max_output",
        "on_grant",
        "shadowed",
        "standings",
        "tight",
        "tried",
    )

    def __init__(
        self,
        ledger: "Ledger",
        account: Account,
        rules: tuple[Rule, ...],
        name: str,
        least: int,
        max_output: int,
        *,
        exact: bool = True,
        whole: bool = False,
        apart: bool = False,
    ) -> None:
        self._ledger = ledger
        self._rehearses = ledger.rehearses
        self._account = account
        self._rules = rules
        self._least = least
        self.max_output = max_output
        self._slice = max_output if whole or not any(rule.output for rule in rules) else account.slice
        self._home: Home | None = None
        self._extension: asyncio.Task[None] | None = None
        self._final = False  # the last answer cut the grant: asking ahead again is of no use
        self.holder = Holder(name, rules, lease_us=ledger.lease_us, patience_us=ledger.patience_us, exact=exact)
        self.edge: Limit | None = None
        self.tight: Limit | None = None
        self.tried: tuple[Step, Answer] | None = None
        self.degraded = apart
        self.on_grant: Callable[[], None] | None = None
        self.standings: tuple[Standing, ...] = ()
        self.shadowed: tuple[Limit, ...] = ()

    @property
    def granted(self) -> int:
        """How many tokens of output have been granted in all; production may go on up to here."""
        return min(self.max_output, self.holder.edge) if self._home is not None else self.max_output

    @property
    def good_until_us(self) -> int | None:
        """Until when, on the ledger's clock (`time.monotonic()` in µs), what is granted holds; None for ever."""
        return self.holder.good_until if self._home is not None else None

    async def __aenter__(self) -> "Reservation":
        if self._rules:
            home = self._ledger.home(self._account, apart=self.degraded)
            try:
                await self._begin(home)
            except StoreError as error:
                if home.instant is not None:
                    raise
                await self._begin(self._ledger.refuge(self._account, error))
            if not self._rehearses:
                self._ledger.begun(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._home is None or self._rehearses:
            return
        self._ledger.ended(self)
        if self._extension is not None:
            self._extension.cancel()
        home, organisation = self._home, self._account.organisation
        self._home = None
        self._ledger.insist(home, organisation, self.holder.settle(home.store.clock(organisation)))

    def room(self) -> int:
        """Tell how many tokens may be produced now."""
        left = self.max_output - self.holder.output
        if self._home is None:
            return left
        if self._ledger.clock() >= self.holder.good_until:
            self._lapse(self._home)
        return min(left, self.holder.in_hand)

    def count(self, tokens: int) -> None:
        """Count tokens that were produced, and ask for the next slice while half of this one is left."""
        holder = self.holder
        holder.output += tokens
        if self._home is not None and not self._final and 2 * holder.in_hand <= self._slice and (want := self._want()):
            self._extend_soon(want)

    async def more(self, want: int = 1) -> int:
        """Wait until tokens may be produced; 0 says that there will be none: `edge` names the limit, if one it is.

        Asks for `want` where that is more than a slice.
        """
        if self._extension is not None:
            await asyncio.wait([self._extension])
        if self.room() > 0 or self._home is None or self._want() == 0:
            return self.room()
        await self._extend(self._want(want))
        return self.room()

    def usage(self, *, input_tokens: int, cached_tokens: int, output_tokens: int) -> None:
        """Take the final counts from whoever knows them."""
        holder = self.holder
        holder.input, holder.cached, holder.output = input_tokens, cached_tokens, output_tokens

    def renew(self) -> None:
        """Keep what is in hand for another lease."""
        if self._home is not None:
            self._extend_soon(0)

    def _want(self, least: int = 0) -> int:
        left = self.max_output - self.holder.output - self.holder.in_hand
        return max(0, min(max(self._slice, least), left))

    async def _begin(self, home: Home) -> None:
        self.degraded = home.replicas > 0
        if self.degraded:
            self.holder = self.holder.anew(shares(self._rules, home.replicas))
        organisation, want = self._account.organisation, self._want() if self._least else 0
        for attempt in range(2):
            step = self.holder.reserve(home.store.clock(organisation), want=want, least=self._least)
            if self._rehearses:
                step = replace(step, rehearsal=True)
            sent = self._ledger.clock()
            try:
                answer = await home.take(organisation, step)
            except BaseException as error:
                if not (self._rehearses or (isinstance(error, StoreUnavailable) and error.reason == DOWN)):
                    self._take_back(home)
                raise
            if answer.verdict is not Verdict.LATE or attempt:
                break  # else the store's clock was set; the answer told us how it stands now
        self._hear(home, step, answer, sent, 0)
        if self._rehearses:
            self.tried = step, answer
        if answer.verdict is Verdict.REFUSED:
            wait_us = None if answer.wait_us == NEVER else answer.wait_us
            limit = step.claims[answer.limit].limit
            raise LimitExceeded(limit, wait_us, self.standings, answer.standings[answer.limit][0])
        if answer.verdict is not Verdict.GRANTED:
            raise StoreUnavailable(f"the reservation was {answer.verdict.name.lower()}", reason="late")
        if answer.limit >= 0:
            self.tight = step.claims[answer.limit].limit
        self._home = home

    def _extend_soon(self, want: int) -> None:
        home = self._home
        if self._extension is not None or home is None:
            return
        if home.instant is not None:
            organisation = self._account.organisation
            step, sent, edge = self._extension_step(home, want)
            self._extended(home, step, home.instant(organisation, step), sent, edge)
        else:
            self._extension = self._ledger.start(self._extend_apart(want))

    async def _extend_apart(self, want: int) -> None:
        try:
            await self._extend(want)
        finally:
            self._extension = None

    async def _extend(self, want: int) -> None:
        """Extend where the reservation is; when that fails and nothing is in hand, where the account may go instead."""
        assert self._home is not None
        home = self._home
        try:
            await self._extend_at(home, want)
        except StoreError as error:
            if home.instant is not None or self.holder.in_hand or not want:
                return
            try:
                refuge = self._ledger.refuge(self._account, error)
            except StoreError:
                return
            self._move(refuge)
            await self._extend_at(refuge, want)

    async def _extend_at(self, home: Home, want: int) -> None:
        step, sent, edge = self._extension_step(home, want)
        answer = await home.take(self._account.organisation, step)
        self._extended(home, step, answer, sent, edge)

    def _extension_step(self, home: Home, want: int) -> tuple[Step, int, int]:
        sent = self._ledger.clock()
        if sent >= self.holder.good_until:
            self._lapse(home)
        return self.holder.extend(home.store.clock(self._account.organisation), want), sent, self.holder.edge

    def _extended(self, home: Home, step: Step, answer: Answer, sent: int, edge: int) -> None:
        if self._home is None:
            return  # settled meanwhile, which counts
        self._hear(home, step, answer, sent, edge)
        if answer.limit >= 0 and step.want:
            self.edge = step.claims[answer.limit].limit
        self._final = answer.verdict is not Verdict.GRANTED or (step.want > 0 and answer.granted == 0)

    def _hear(self, home: Home, step: Step, answer: Answer, sent: int, edge: int) -> None:
        self.holder.heard(step, answer, sent, edge)
        if answer.standings:
            self.standings = standings(step, answer)
            for index in answer.shadowed:
                limit = step.claims[index].limit
                if limit not in self.shadowed:
                    self.shadowed += (limit,)
        if self.on_grant is not None:
            self.on_grant()

    def _lapse(self, home: Home) -> None:
        organisation = self._account.organisation
        settlement = self.holder.lapse(self._ledger.clock(), home.store.clock(organisation))
        if settlement is not None:
            self._ledger.insist(home, organisation, settlement)

    def _move(self, home: Home) -> None:
        """Go on at another store: what was used so far is settled where it was promised."""
        assert self._home is not None
        old, organisation = self._home, self._account.organisation
        self._ledger.insist(old, organisation, self.holder.settle(old.store.clock(organisation)))
        self.holder = self.holder.anew(shares(self._rules, max(1, home.replicas)), begun=True)
        self._home = home
        self.degraded = home.replicas > 0

    def _take_back(self, home: Home) -> None:
        organisation = self._account.organisation
        self._ledger.insist(home, organisation, self.holder.abandon(home.store.clock(organisation)))
