"""Who waits for room at the upstreams, and in which order they go: by priority, then fairly among clients, then by
arrival.

The room is bounded. When it is full, a newcomer does not simply lose against those who came before, or one client that
sends twenty times its share would keep everybody else out: it takes the place of whoever would go last, if that one
stands behind it. That is a lower priority's, or the latest of the client that fills more of the room for its weight
than the newcomer's would.

Fairness is `policies.fairness`; of clients that have had the same, the one with fewer waiting goes first, which halves
the median wait of who asks little beside who floods (measured in simulation). Charged are the tokens that are known
here: the input when a call is let in, what it produced when that is known.

What waits is anything that can be hashed. Nothing here wakes anybody, looks at a clock or knows an upstream: who waits
is given in order, and whoever asks takes the first for whom there is room.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

from msgspec import Struct

from policies.fairness import VirtualTokenCounter

T = TypeVar("T", bound=Hashable)


class Line(Generic[T]):
    """One client's waiting calls of one priority."""

    __slots__ = ("key", "waiting", "weight")

    def __init__(self, key: str, weight: float) -> None:
        self.key = key
        self.weight = weight
        self.waiting: OrderedDict[T, None] = OrderedDict()


class Rank(Generic[T]):
    """All who wait with one priority, and the counters of the clients that ever did."""

    __slots__ = ("counters", "lines", "num_waiting")

    def __init__(self) -> None:
        self.counters = VirtualTokenCounter()
        self.lines: dict[str, Line[T]] = {}
        self.num_waiting = 0


class RoomSnapshot(Struct, frozen=True):
    """How many wait by priority, and how many clients they are of."""

    waiting: dict[int, int]
    clients: int


class WaitingRoom(Generic[T]):
    """An ordered, bounded room. A higher number is a higher priority. Joining and leaving are O(log clients)."""

    __slots__ = ("_place", "_ranks", "max_waiting")

    def __init__(self, max_waiting: int) -> None:
        if max_waiting < 1:
            raise ValueError(f"a room for {max_waiting}; expected at least 1")
        self.max_waiting = max_waiting
        self._ranks: dict[int, Rank[T]] = {}
        self._place: dict[T, tuple[Rank[T], Line[T]]] = {}

    def __len__(self) -> int:
        return len(self._place)

    def __contains__(self, item: T) -> bool:
        return item in self._place

    def __iter__(self) -> Iterator[T]:
        """Give everybody in order, as it stands now: whoever lets somebody go begins anew. O(clients) for the first."""
        for priority in sorted(self._ranks, reverse=True):
            rank = self._ranks[priority]
            if rank.num_waiting:
                lines = sorted(rank.lines.values(), key=lambda line: (rank.counters.rank(line.key), len(line.waiting)))
                for line in lines:
                    yield from line.waiting

    def loser(self, key: str, priority: int, weight: float = 1.0) -> T | None:
        """Tell who has to leave a full room for a newcomer; None if the newcomer has to. O(clients), only when full."""
        lowest = min((each for each, rank in self._ranks.items() if rank.num_waiting), default=priority)
        if lowest > priority:
            return None
        lines = self._ranks[lowest].lines if lowest in self._ranks else {}
        fullest = max(lines.values(), key=lambda line: len(line.waiting) / line.weight, default=None)
        if fullest is None:
            return None
        if lowest == priority:
            own = lines.get(key)
            if fullest is own or len(fullest.waiting) / fullest.weight <= (len(own.waiting) + 1 if own else 1) / weight:
                return None
        return next(reversed(fullest.waiting))

    def join(self, item: T, key: str, *, priority: int = 0, weight: float = 1.0) -> None:
        """Let somebody wait behind the others of the same client. The room is not full: see `loser`."""
        assert len(self._place) < self.max_waiting, "the room is full"
        assert item not in self._place, "nobody waits twice"
        rank = self._ranks.get(priority)
        if rank is None:
            rank = self._ranks[priority] = Rank()
        line = rank.lines.get(key)
        if line is None:
            line = rank.lines[key] = Line(key, weight)
        line.weight = weight
        line.waiting[item] = None
        rank.num_waiting += 1
        rank.counters.arrive(key, weight)
        self._place[item] = rank, line

    def start(self, item: T, cost: float) -> None:
        """Let somebody go who got room, and charge the client for the input."""
        rank, line = self._remove(item)
        rank.counters.start(line.key, cost)

    def leave(self, item: T) -> None:
        """Let somebody go who did not: given up, too late, or crowded out."""
        rank, line = self._remove(item)
        rank.counters.leave(line.key)

    def pass_by(self, key: str, cost: float, *, priority: int = 0, weight: float = 1.0) -> None:
        """Let somebody go who never had to wait, and charge the client for the input.

        What it had while there was room for all is no debt: nobody else's counter stands back behind it.
        """
        rank = self._ranks.get(priority)
        if rank is None:
            rank = self._ranks[priority] = Rank()
        rank.counters.pass_by(key, cost, weight)

    def charge(self, key: str, cost: float, *, priority: int = 0, weight: float = 1.0) -> None:
        """A client got service: what was produced for it."""
        rank = self._ranks.get(priority)
        if rank is None:
            rank = self._ranks[priority] = Rank()
        rank.counters.charge(key, cost, weight)

    def ahead(self, key: str, priority: int = 0, weight: float = 1.0) -> int:
        """How many go before a newcomer, if service is shared as it should be. O(clients).

        A higher priority's do, those of its own client do, and of every other client as many as its weight allows for
        while the own ones are served.
        """
        num = sum(rank.num_waiting for each, rank in self._ranks.items() if each > priority)
        rank = self._ranks.get(priority)
        if rank is None:
            return num
        own = rank.lines.get(key)
        turns = (len(own.waiting) if own else 0) + 1
        for line in rank.lines.values():
            num += turns - 1 if line is own else min(len(line.waiting), int(turns * line.weight / weight))
        return num

    def snapshot(self) -> RoomSnapshot:
        """What stands, for metrics."""
        waiting = {priority: rank.num_waiting for priority, rank in self._ranks.items()}
        return RoomSnapshot(waiting, sum(len(rank.lines) for rank in self._ranks.values()))

    def _remove(self, item: T) -> tuple[Rank[T], Line[T]]:
        rank, line = self._place.pop(item)
        del line.waiting[item]
        rank.num_waiting -= 1
        if not line.waiting:
            del rank.lines[line.key]
        return rank, line
