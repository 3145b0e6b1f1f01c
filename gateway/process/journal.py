"""Which requests are computed right now, written where a death of the process cannot take it along.

A request that kills the worker (a fault in a kernel, memory that the system takes back by killing) takes along what was
known of the running ones, unless that lies outside. So each worker has a piece of shared memory that the supervisor
made: a place of 16 bytes for each request, filled before the engine is asked and emptied behind it. No system call, no
lock: two writes into memory a request. After a death the supervisor reads which places are filled.

What is written is a keyed hash of tenant and body. The key is the supervisor's own, made at its start and told nobody.

The *docket* is what the supervisor makes of several deaths:

- Who was in flight at one death has a strike, and nothing follows from it.
- Who of those is in flight at a second death, and alone has most strikes, is quarantined: refused until that expires.
- Where several have as many, because all callers of the first death tried again together, each of them becomes a
  *suspect*. Suspects are let in one at a time, so that the next death has one name.
- Who ends well is acquitted: no strike is left.

Strikes and quarantine expire. A worker is forked with the docket as it stands; acquittals travel back through its
memory when it dies.
"""

import mmap
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, auto
from hashlib import blake2b

SIZE = 16  # bytes of a fingerprint
PLACES = 4096  # for requests in flight; who finds none is not written down
ACQUITTALS = 1024  # the latest of one worker's
NOTHING = bytes(SIZE)

STRIKE_S = 600.0  # how long a strike is remembered
QUARANTINE_S = 3600.0


class Journal:
    """One worker's piece of shared memory. Made by the supervisor, written by the worker, read after its death."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, (PLACES + ACQUITTALS) * SIZE)
        self._free = list(range(PLACES - 1, -1, -1))
        self._acquitted = 0
        self._sealed = False

    def enter(self, fingerprint: bytes) -> int:
        """Write down a request; gives its place, -1 where none is free."""
        if not self._free:
            return -1
        place = self._free.pop()
        self._memory[place * SIZE : place * SIZE + SIZE] = fingerprint
        return place

    def leave(self, place: int) -> None:
        """Take a request out that has ended, however it did."""
        if place >= 0 and not self._sealed:
            self._memory[place * SIZE : place * SIZE + SIZE] = NOTHING
            self._free.append(place)

    def acquit(self, fingerprint: bytes) -> None:
        """Write down that a request with strikes ended well."""
        at = (PLACES + self._acquitted % ACQUITTALS) * SIZE
        self._memory[at : at + SIZE] = fingerprint
        self._acquitted += 1

    def seal(self) -> None:
        """Let what is in flight now stand, for a worker that is about to end itself on its account."""
        self._sealed = True

    def in_flight(self) -> set[bytes]:
        """Give what was never taken out."""
        return self._read(0, PLACES)

    def acquitted(self) -> set[bytes]:
        """Give what ended well."""
        return self._read(PLACES, ACQUITTALS)

    def close(self) -> None:
        """Give the memory back."""
        self._memory.close()

    def _read(self, first: int, number: int) -> set[bytes]:
        found = self._memory[first * SIZE : (first + number) * SIZE]
        return {found[at : at + SIZE] for at in range(0, len(found), SIZE)} - {NOTHING}


class Verdict(Enum):
    """What the docket says of a request."""

    FREE = auto()
    SUSPECT = auto()  # only while no other suspect is in flight
    QUARANTINED = auto()


@dataclass(slots=True)
class Case:
    """What is held against one fingerprint; monotonic seconds."""

    strikes: int
    until: float
    verdict: Verdict = Verdict.FREE


class Docket:
    """What several deaths say together. Written by the supervisor; a worker has a copy, and only acquits in it."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, key: bytes | None = None) -> None:
        self._clock = clock
        self._key = os.urandom(32) if key is None else key
        self._cases: dict[bytes, Case] = {}
        self.deaths = 0

    def fingerprint(self, tenant: str, body: bytes) -> bytes:
        """Name a request so that nobody can tell what it asked."""
        digest = blake2b(tenant.encode(), digest_size=SIZE, key=self._key)
        digest.update(b"\0")
        digest.update(body)
        return digest.digest()

    def died(self, in_flight: Iterable[bytes], acquitted: Iterable[bytes]) -> bytes | None:
        """Take in a death; gives the fingerprint that is quarantined for it."""
        now = self._clock()
        self.deaths += 1
        for fingerprint in acquitted:
            self._drop(fingerprint)
        self._cases = {name: case for name, case in self._cases.items() if case.until > now}
        there = sorted(set(in_flight))
        again = [name for name in there if name in self._cases]
        most = max((self._cases[name].strikes for name in again), default=0)
        worst = [name for name in again if self._cases[name].strikes == most]
        if len(worst) == 1:  # found: the others are no longer asked about
            self._cases[worst[0]] = Case(most + 1, now + QUARANTINE_S, Verdict.QUARANTINED)
            return worst[0]
        for name in there:
            strikes = self._cases[name].strikes + 1 if name in self._cases else 1
            self._cases[name] = Case(strikes, now + STRIKE_S, Verdict.SUSPECT if strikes > 1 else Verdict.FREE)
        return None

    def verdict(self, fingerprint: bytes) -> Verdict:
        """Say what to do with a request."""
        case = self._cases.get(fingerprint)
        return Verdict.FREE if case is None or case.until <= self._clock() else case.verdict

    def acquit(self, fingerprint: bytes) -> bool:
        """Take back the strikes of a request that ended well; whether there were any."""
        return self._drop(fingerprint)

    def strikes(self, fingerprint: bytes) -> int:
        """Tell at how many deaths a request was being computed."""
        case = self._cases.get(fingerprint)
        return 0 if case is None else case.strikes

    def count(self, verdict: Verdict) -> int:
        """Tell how many there are of a kind, for metrics."""
        now = self._clock()
        return sum(case.verdict is verdict and case.until > now for case in self._cases.values())

    def _drop(self, fingerprint: bytes) -> bool:
        case = self._cases.get(fingerprint)
        if case is None or case.verdict is Verdict.QUARANTINED:
            return False
        del self._cases[fingerprint]
        return True
