"""Those who wait for blocks: by priority, then those who were admitted before, then in the fair order."""

from bisect import insort
from collections import OrderedDict
from collections.abc import Iterator

from engine.order import Order
from engine.sequence import Sequence


class WaitingRoom:
    """Every waiting sequence of one priority: the resumed ones by arrival, and the fresh ones lane by lane."""

    def __init__(self) -> None:
        self.resumed: list[Sequence] = []
        self.lanes: dict[str, OrderedDict[Sequence, None]] = {}


class WaitingQueue:
    """Gives the sequence that should be admitted next; a sequence leaves in O(1) or, if resumed, in O(resumed).

    A higher priority goes first, strictly. Resumed sequences (preempted ones, and choices whose request has begun)
    stand before fresh ones of their priority: what they were admitted for once, they need not win again.
    """

    def __init__(self, order: Order) -> None:
        self._order = order
        self._rooms: dict[int, WaitingRoom] = {}
        self._lane_of: dict[Sequence, str | None] = {}  # None: resumed
        self.num_tokens = 0  # to compute for everybody here if nothing is found in the prefix index

    def __len__(self) -> int:
        return len(self._lane_of)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._lane_of)

    def push(self, sequence: Sequence) -> None:
        """Let a fresh sequence wait at the end of its lane."""
        lane = self._order.lane(sequence)
        self._order.arrived(sequence)
        self._room(sequence).lanes.setdefault(lane, OrderedDict())[sequence] = None
        self._enter(sequence, lane)

    def push_resumed(self, sequence: Sequence) -> None:
        """Let a sequence wait that was admitted before, or whose request was."""
        insort(self._room(sequence).resumed, sequence, key=_arrival)
        self._enter(sequence, None)

    def discard(self, sequence: Sequence) -> bool:
        """Let a sequence go; false if it is not here."""
        if sequence not in self._lane_of:
            return False
        lane = self._lane_of.pop(sequence)
        self.num_tokens -= len(sequence.token_ids)
        room = self._rooms[sequence.priority]
        if lane is None:
            room.resumed.remove(sequence)
        else:
            del room.lanes[lane][sequence]
            if not room.lanes[lane]:
                del room.lanes[lane]
        if not room.resumed and not room.lanes:
            del self._rooms[sequence.priority]
        return True

    def head(self) -> Sequence | None:
        """Give the next to be admitted, without letting it go."""
        if not self._rooms:
            return None
        room = self._rooms[max(self._rooms)]
        if room.resumed:
            return room.resumed[0]
        heads = ((self._order.rank(lane), next(iter(waiting))) for lane, waiting in room.lanes.items())
        return min(heads, key=lambda head: (head[0], head[1].arrival))[1]

    def _room(self, sequence: Sequence) -> WaitingRoom:
        return self._rooms.setdefault(sequence.priority, WaitingRoom())

    def _enter(self, sequence: Sequence, lane: str | None) -> None:
        self._lane_of[sequence] = lane
        self.num_tokens += len(sequence.token_ids)


def _arrival(sequence: Sequence) -> int:
    return sequence.arrival
