"""The protocol of reservations: what one step of one call does to all its limits at once.

A call reserves before it runs (its input, and a slice of output), extends ahead of need while it streams, and settles
when it ends. Each is the same thing, a `Step`, and states totals, not differences: of every limit, how much the call
has used since it began and how much it wants to hold from now on. A step that was lost is made good by the next one; a
step that arrives twice, or after a later one, is known by its number and changes nothing. Nothing is ever refunded
(see `policies.bucket`), so nothing can be refunded twice.

    no record --reserve--> OPEN --extend--> OPEN --settle--> CLOSED --retention--> forgotten
        |                   |                                 ^
        |               lease ran out --> EXPIRED --settle----+     forgotten after the retention too
        |                                                     |
        +--settle (the reservation's reply was lost)----------+     so that a late reserve finds the grave

A lease that ran out charges what was held, because the holder may have produced it: the slice in hand, at most. Gauges
are free again. A holder that comes back later opens another reservation: what was charged at the lease's end has begun
to flow back, so it cannot pay for tokens that are produced now.

A record is remembered for a while after its end; whoever sends a step says (`not_after`, on the store's clock) how long
it is sure that no record can have been forgotten. Without a record and past that moment a step does nothing (LATE) but
tell how the limits stand: so a command that sat in a frozen server's buffer charges nobody for a call that was given up
long ago. Within it, a missing record means that the store lost its memory, and the totals put the call's share back.
"""

from copy import copy
from enum import IntEnum
from heapq import heappop, heappush

from msgspec import Struct

from policies.bucket import NEVER, Kind, Level, Limit

RETENTION_US = 20_000_000
MAX_EXPIRED_A_STEP = 32


class Claim(Struct, frozen=True):
    """What one step says of one limit: the total used, and what to hold: `base`, and `per` for each token granted."""

    limit: Limit
    used: int = 0
    base: int = 0
    per: int = 0


class Step(Struct, frozen=True):
    """One step of one call. All steps of a call list the same limits in the same order, each once.

    `want` tokens are granted, or as many as every limit can hold; fewer than `least` is a refusal. `force` takes what
    there is and refuses nothing (extending, settling). A `lease_us` of 0 ends it all. `not_after` of 0 is for ever.

    A `rehearsal` is answered as a call's first step would be, and changes nothing.
    """

    id: str
    seq: int
    claims: tuple[Claim, ...]
    lease_us: int
    want: int = 0
    least: int = 0
    force: bool = False
    not_after: int = 0
    rehearsal: bool = False


class Verdict(IntEnum):
    """GRANTED (a duplicate too), REFUSED by a limit, STALE: a later step was there first, LATE: too old to act on."""

    GRANTED = 0
    REFUSED = 1
    STALE = 2
    LATE = 3


class Answer(Struct, frozen=True):
    """What became of a step, on the store's clock.

    `limit` is the index of the claim that refused or that cut the grant, −1 if none. `wait_us` is when to come back
    after a refusal, `policies.bucket.NEVER` if that is useless. `shadowed` are the claims whose shadow limit would have
    refused or cut. `standings` hold, claim by claim, the tokens free afterwards and the µs until nothing is spent.
    `waits`, of rehearsals only, hold how long until each limit, shadow or not, would have room: 0 where it has it now.
    """

    verdict: Verdict
    now: int
    granted: int = 0
    limit: int = -1
    wait_us: int = 0
    shadowed: tuple[int, ...] = ()
    standings: tuple[tuple[int, int], ...] = ()
    waits: tuple[int, ...] = ()


class State(IntEnum):
    """Where a record stands."""

    OPEN = 0
    EXPIRED = 1
    CLOSED = 2


class Record:
    """What is known of one call: `used` and `held` by limit as of step `seq`; `until` its lease or its memory ends.

    `granted`, `bound` and `wait_us` are the answer to that step; `granted` is NEVER when it was refused.
    """

    __slots__ = ("bound", "granted", "held", "keys", "seq", "state", "until", "used", "wait_us")

    def __init__(self, keys: tuple[str, ...]) -> None:
        self.keys = keys
        self.used = [0] * len(keys)
        self.held = [0] * len(keys)
        self.seq = -1
        self.granted = 0
        self.bound = -1
        self.wait_us = 0
        self.state = State.OPEN
        self.until = 0


class Book:
    """One organisation's limits and reservations. Pure: the clock is an argument, and each step is applied whole."""

    def __init__(self) -> None:
        self.levels: dict[str, Level] = {}
        self.records: dict[str, Record] = {}
        self._leases: list[tuple[int, str]] = []  # a heap; an entry counts if its record is open until just then
        self._ended: list[tuple[int, str]] = []  # a heap, by when they are forgotten
        self._sweep_at = 64

    def apply(self, step: Step, now: int) -> Answer:
        """Take one step: all of it, or, when refused, nothing."""
        self._expire(now)
        self._forget(now)
        if len(self.levels) > self._sweep_at:
            self._sweep(now)
        record = None if step.rehearsal else self.records.get(step.id)
        if record is not None and record.state is not State.OPEN and now >= record.until:
            record = None
        if record is None:
            if step.not_after and now > step.not_after:
                levels = [self._level(claim.limit, now) for claim in step.claims]
                return Answer(Verdict.LATE, now, standings=_standings(levels, now))
        elif record.state is not State.CLOSED and record.keys != tuple([claim.limit.key for claim in step.claims]):
            raise ValueError(f"step {step.seq} of {step.id} lists other limits than the first")
        elif step.seq < record.seq or (step.seq > record.seq and not _takes(record.state, step)):
            return Answer(Verdict.STALE, now)
        levels = [self._level(claim.limit, now, apart=step.rehearsal) for claim in step.claims]
        if record is None:
            record = Record(tuple([claim.limit.key for claim in step.claims]))
        elif step.seq == record.seq:
            verdict = Verdict.REFUSED if record.granted == NEVER else Verdict.GRANTED
            granted = max(0, record.granted)
            return Answer(verdict, now, granted, record.bound, record.wait_us, standings=_standings(levels, now))
        return self._take(step, record, levels, now)

    def _take(self, step: Step, record: Record, levels: list[Level], now: int) -> Answer:
        granted, bound = step.want, -1
        refused, wait_us = -1, 0
        shadowed: list[int] = []
        waits: list[int] = []  # of rehearsals
        for index, (claim, level) in enumerate(zip(step.claims, levels, strict=True)):
            growth = max(0, claim.used - record.used[index]) + claim.base - record.held[index]
            need = growth + step.least * claim.per
            free = level.free()
            if step.rehearsal:
                waits.append(level.wait_us(need, now) if need > free and need > 0 else 0)
            if need > free and need > 0 and not step.force:
                if claim.limit.shadow:
                    shadowed.append(index)
                    continue
                longer = level.wait_us(need, now)
                if refused < 0 or (wait_us != NEVER and (longer == NEVER or longer > wait_us)):
                    refused, wait_us = index, longer
            elif claim.per and (most := max(0, (free - growth) // claim.per)) < granted:
                if claim.limit.shadow:
                    shadowed.append(index)
                else:
                    granted, bound = most, index
        if refused >= 0:
            if step.not_after and record.seq < 0 and not step.rehearsal:
                # Otherwise a copy that comes a moment later might be granted, to a holder that has long gone away.
                record.seq, record.granted, record.bound, record.wait_us = step.seq, NEVER, refused, wait_us
                self.records[step.id] = record
                self._end(step.id, record, State.CLOSED, step.not_after + 1)
            told = _standings(levels, now)
            return Answer(Verdict.REFUSED, now, 0, refused, wait_us, tuple(shadowed), told, tuple(waits))
        for index, (claim, level) in enumerate(zip(step.claims, levels, strict=True)):
            used = max(record.used[index], claim.used)  # once a lease ran out, more is charged than is claimed
            hold = claim.base + granted * claim.per
            level.spent += (used - record.used[index]) * level.terms.unit
            level.held += hold - record.held[index]
            record.used[index], record.held[index] = used, hold
        if step.rehearsal:
            told = _standings(levels, now)
            return Answer(Verdict.GRANTED, now, granted, bound, 0, tuple(shadowed), told, tuple(waits))
        record.seq, record.granted, record.bound = step.seq, granted, bound
        self.records[step.id] = record
        if step.lease_us:
            record.state, record.until = State.OPEN, now + step.lease_us
            heappush(self._leases, (record.until, step.id))
        else:
            self._end(step.id, record, State.CLOSED, now + RETENTION_US)
        return Answer(Verdict.GRANTED, now, granted, bound, 0, tuple(shadowed), _standings(levels, now))

    def _level(self, limit: Limit, now: int, *, apart: bool = False) -> Level:
        level = self.levels.get(limit.key)
        if level is None:
            level = Level(limit, now)
            if not apart:
                self.levels[limit.key] = level
        else:
            level.advance(now)
            if apart:
                level = copy(level)
            if level.terms is not limit:
                level.agree(limit, now)
        return level

    def _expire(self, now: int) -> None:
        for _ in range(MAX_EXPIRED_A_STEP):
            while self._leases and not self._current(*self._leases[0]):
                heappop(self._leases)
            if not self._leases or self._leases[0][0] > now:
                return
            _, name = heappop(self._leases)
            record = self.records[name]
            for index, key in enumerate(record.keys):
                held = record.held[index]
                if not held:
                    continue
                level = self.levels[key]
                level.advance(now)
                level.held -= held
                record.held[index] = 0
                if level.terms.kind is not Kind.GAUGE:
                    level.spent += held * level.terms.unit
                    record.used[index] += held
            self._end(name, record, State.EXPIRED, now + RETENTION_US)

    def _current(self, until: int, name: str) -> bool:
        record = self.records.get(name)
        return record is not None and record.state is State.OPEN and record.until == until

    def _end(self, name: str, record: Record, state: State, until: int) -> None:
        record.state, record.until = state, until
        heappush(self._ended, (until, name))

    def _forget(self, now: int) -> None:
        while self._ended and self._ended[0][0] <= now:
            until, name = heappop(self._ended)
            record = self.records.get(name)
            if record is not None and record.state is not State.OPEN and record.until == until:
                del self.records[name]

    def _sweep(self, now: int) -> None:
        """Drop levels that say nothing; a sweep happens each time their number has doubled."""
        for level in self.levels.values():
            level.advance(now)
        self.levels = {key: level for key, level in self.levels.items() if level.spent or level.held}
        self._sweep_at = max(64, 2 * len(self.levels))


def _takes(state: State, step: Step) -> bool:
    """Whether a record takes a further step; one whose lease ran out takes only the settlement."""
    return state is State.OPEN or (state is State.EXPIRED and not step.lease_us)


def _standings(levels: list[Level], now: int) -> tuple[tuple[int, int], ...]:
    return tuple([(level.free(), level.reset_us(now)) for level in levels])
