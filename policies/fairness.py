"""Virtual token counters: whoever waits is served in the order of how little it has had, by weight.

"Fairness in Serving Large Language Models" (Sheng et al., OSDI 2024, arXiv 2401.00588). Every client has a counter of
the service it got, w_p for each input token and w_q for each output token, divided by its weight. Next is whoever waits
and has the smallest counter: the input is charged when it is let in, the output as it is produced, so nobody needs to
know in advance how long an answer will be. A client that had nothing waiting is lifted to the smallest counter of those
who wait (if nobody does: to that of who was let in last), so that nobody saves up for later by staying away. A server
that has something to do is never idle for fairness' sake.

With U the most service that one client's requests may still get from the moment that the last of them is let in, the
counters of any two that wait differ by U / (smaller weight) at most, and over any stretch in which both have something
waiting (W service, w weight):

    | W_f / w_f - W_g / w_g |  <=  2 U / min(w_f, w_g),        U <= max(w_p, w_q) × M

where M is how many tokens fit into the batch. Property tests hold both.

Idle clients that are behind the lift are forgotten, since they would be lifted past what is remembered of them. If more
than `MAX_IDLE` idle ones are ahead of it, those least ahead are forgotten too: a credit of less than U for each.
"""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from heapq import heappop, heappush, heapreplace
from typing import Protocol

from msgspec import Struct

SWEEP_AT = 256
MAX_IDLE = 4096


@dataclass(frozen=True, slots=True)
class TokenCost:
    """What an input token and an output token count. The paper's are 1 and 2: decoding one takes longer."""

    input: float = 1.0
    output: float = 2.0

    def __post_init__(self) -> None:
        if self.input < 0 or self.output < 0 or self.input + self.output <= 0:
            raise ValueError(f"{self}; expected no negative cost, and not both 0")


class Client:
    """One client's counter, in cost by weight, and how many of its requests wait."""

    __slots__ = ("counter", "queued", "waiting", "weight")

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.counter = 0.0
        self.waiting = 0
        self.queued = False  # whether it has an entry in the heap


class CounterSnapshot(Struct, frozen=True):
    """How many clients are remembered, how many wait, and the smallest and the largest counter of those who wait."""

    clients: int
    waiting: int
    least: float
    most: float


class VirtualTokenCounter:
    """The counters of clients that compete with each other. Every call is O(log clients) amortised."""

    __slots__ = ("_clients", "_heap", "_last", "_serial", "_sweep_at")

    def __init__(self) -> None:
        self._clients: dict[str, Client] = {}
        # Those who wait, by a counter that may have grown since; looked at again when it comes up.
        self._heap: list[tuple[float, int, Client]] = []
        self._serial = 0
        self._last = Client(1.0)  # who was let in last
        self._sweep_at = SWEEP_AT

    def arrive(self, key: str, weight: float = 1.0) -> None:
        """A request of a client begins to wait. A weight of 2 is twice the service; the latest told holds."""
        assert weight > 0, "a client without weight would never be served"
        client = self._clients.get(key) or self._welcome(key, weight)
        client.weight = weight
        if not client.waiting:
            client.counter = max(client.counter, self._lift())
            if not client.queued:
                self._serial += 1
                client.queued = True
                heappush(self._heap, (client.counter, self._serial, client))
        client.waiting += 1

    def start(self, key: str, cost: float) -> None:
        """A client's waiting request is let in, at the cost of its input."""
        client = self._clients[key]
        client.waiting -= 1
        client.counter += cost / client.weight
        self._last = client

    def pass_by(self, key: str, cost: float, weight: float = 1.0) -> None:
        """A client's request is let in that never had to wait: `arrive` and `start` in one."""
        client = self._clients.get(key) or self._welcome(key, weight)
        client.weight = weight
        if not client.waiting:
            client.counter = max(client.counter, self._lift())
        client.counter += cost / weight
        self._last = client

    def leave(self, key: str) -> None:
        """A client's waiting request goes away unserved."""
        self._clients[key].waiting -= 1

    def charge(self, key: str, cost: float, weight: float = 1.0) -> None:
        """Service that a client got, whether something of it waits or not."""
        client = self._clients.get(key)
        if client is None:
            client = self._welcome(key, weight)
            client.counter = self._lift()
        client.counter += cost / client.weight

    def rank(self, key: str) -> float:
        """How soon a client is next: the smallest goes first."""
        return self._clients[key].counter

    def snapshot(self) -> CounterSnapshot:
        """What stands, for metrics. O(clients)."""
        counters = [client.counter for client in self._clients.values() if client.waiting]
        least, most = (min(counters), max(counters)) if counters else (self._last.counter, self._last.counter)
        return CounterSnapshot(len(self._clients), len(counters), least, most)

    def _lift(self) -> float:
        """Give the smallest counter of those who wait, or of who was let in last."""
        heap = self._heap
        while heap:
            counter, serial, client = heap[0]
            if not client.waiting:
                heappop(heap)
                client.queued = False
            elif counter != client.counter:
                heapreplace(heap, (client.counter, serial, client))
            else:
                return counter
        return self._last.counter

    def _welcome(self, key: str, weight: float) -> Client:
        if len(self._clients) >= self._sweep_at:
            self._sweep()
        client = self._clients[key] = Client(weight)
        return client

    def _sweep(self) -> None:
        lift = self._lift()
        ahead = sorted(
            (client.counter, key)
            for key, client in self._clients.items()
            if not client.waiting and client.counter > lift
        )
        kept = {key for _, key in ahead[-MAX_IDLE:]}
        self._clients = {key: client for key, client in self._clients.items() if client.waiting or key in kept}
        self._heap = []
        for serial, client in enumerate(self._clients.values()):
            client.queued = client.waiting > 0
            if client.queued:
                heappush(self._heap, (client.counter, serial, client))
        self._serial = len(self._clients)
        self._sweep_at = max(SWEEP_AT, 2 * len(self._clients))


class Sequence(Protocol, Hashable):
    """What the engine's order needs of a sequence; `engine.sequence.Sequence` has it."""

    order_key: str
    weight: float
    priority: int
    num_prompt: int
    num_cached: int

    @property
    def status(self) -> object: ...

    @property
    def finish(self) -> object | None: ...


class Lane:
    """A client's waiting sequences of one priority, in order of arrival, each with the status of one that waits."""

    __slots__ = ("counters", "key", "waiting")

    def __init__(self, key: str, counters: VirtualTokenCounter) -> None:
        self.key = key
        self.counters = counters
        self.waiting: OrderedDict[Sequence, object] = OrderedDict()


class FairOrder:
    """Implements the engine's `Order`: lanes are clients, compared with those of their own priority.

    The engine does not tell who was let in, or who left; both are seen from a sequence's status, at the latest when the
    next is ranked or a step's service is told. Whoever is let in is charged the prompt at once (less what was found in
    the prefix cache, which costs nobody anything), so that several places that become free in one step do not all go to
    the same client. What is computed again after a preemption is charged to nobody. On the engine's thread only.
    """

    __slots__ = ("_cost", "_counters", "_lane_of", "_lanes", "_sweep_at")

    def __init__(self, cost: TokenCost | None = None) -> None:
        self._cost = cost or TokenCost()
        self._counters: dict[int, VirtualTokenCounter] = {}  # by priority
        self._lanes: dict[str, Lane] = {}
        self._lane_of: dict[Sequence, Lane] = {}  # those not yet seen to be let in or gone
        self._sweep_at = SWEEP_AT

    def lane(self, sequence: Sequence) -> str:
        """Name the lane of a sequence."""
        return f"{sequence.priority} {sequence.order_key}"

    def rank(self, lane: str) -> float:
        """Give the counter of a lane in which somebody waits."""
        found = self._lanes[lane]
        self._settle(found)
        return found.counters.rank(found.key)

    def arrived(self, sequence: Sequence) -> None:
        """Take note that a sequence begins to wait."""
        if len(self._lane_of) + len(self._lanes) >= self._sweep_at:
            self._sweep()
        name = self.lane(sequence)
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = Lane(sequence.order_key, self._room(sequence.priority))
        else:
            self._settle(lane)
        lane.counters.arrive(lane.key, sequence.weight)
        lane.waiting[sequence] = sequence.status
        self._lane_of[sequence] = lane

    def served(self, sequence: Sequence, num_computed: int, num_generated: int) -> None:
        """Charge what a step generated for a sequence."""
        lane = self._lane_of.get(sequence)
        if lane is not None:
            self._settle(lane)
            if sequence in lane.waiting:  # ended within the step that it was let in for
                self._started(lane, sequence)
        if num_generated:
            cost = num_generated * self._cost.output
            self._room(sequence.priority).charge(sequence.order_key, cost, sequence.weight)

    def snapshot(self) -> dict[int, CounterSnapshot]:
        """What stands by priority, for metrics. On the engine's thread only."""
        return {priority: counters.snapshot() for priority, counters in self._counters.items()}

    def _room(self, priority: int) -> VirtualTokenCounter:
        counters = self._counters.get(priority)
        if counters is None:
            counters = self._counters[priority] = VirtualTokenCounter()
        return counters

    def _settle(self, lane: Lane) -> None:
        """Find out who at the front of a lane waits no more: they are let in, or gone, in order of arrival."""
        waiting = lane.waiting
        while waiting:
            sequence = next(iter(waiting))
            if sequence.status is waiting[sequence]:
                return
            if sequence.finish is None:
                self._started(lane, sequence)
            else:
                self._left(lane, sequence)

    def _started(self, lane: Lane, sequence: Sequence) -> None:
        del lane.waiting[sequence], self._lane_of[sequence]
        lane.counters.start(lane.key, (sequence.num_prompt - sequence.num_cached) * self._cost.input)

    def _left(self, lane: Lane, sequence: Sequence) -> None:
        del lane.waiting[sequence], self._lane_of[sequence]
        lane.counters.leave(lane.key)

    def _sweep(self) -> None:
        """Find out who has left from the middle of a lane, and drop the lanes that nobody waits in."""
        for sequence, lane in list(self._lane_of.items()):
            if sequence.finish is not None:
                self._left(lane, sequence)
        self._lanes = {name: lane for name, lane in self._lanes.items() if lane.waiting}
        self._sweep_at = max(SWEEP_AT, 2 * (len(self._lane_of) + len(self._lanes)))
