"""Whether a call waits or is told when to come back, and what that does to an overload."""

from collections.abc import Callable
from heapq import heappop, heappush
from math import inf
from random import Random
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.concurrency import ConcurrencyLimiter, FixedLimit
from policies.shedding import Shedder, SheddingTerms
from policies.waiting_room import WaitingRoom

START = 1000.0


def shedder(*holds: float, **terms: float) -> Shedder:
    tested = Shedder(SheddingTerms(**terms), rng=Random(1))
    for hold in holds:
        tested.freed(START, hold)
    return tested


def test_a_wait_is_the_places_ahead_by_the_time_between_two_that_become_free() -> None:
    tested = shedder(2.0, 2.0, 2.0)

    assert tested.predict(START, 0, 20) == pytest.approx(0.1)
    assert tested.predict(START, 9, 20) == pytest.approx(1.0)


def test_while_nothing_is_known_everybody_may_wait() -> None:
    tested = shedder()

    assert tested.predict(START, 5, 20) is None
    assert tested.shed(START, 0.001, None) is None


def test_a_silence_longer_than_a_hold_is_believed() -> None:
    tested = shedder(*[1.0] * 50)

    assert tested.predict(START + 0.9, 0, 20) == pytest.approx(0.05)
    assert tested.predict(START + 8, 0, 20) == pytest.approx(0.4)


def test_what_cannot_be_served_in_time_is_shed_at_once() -> None:
    tested = shedder(max_wait_s=5.0)

    assert tested.shed(START, 60, 4.9) is None
    assert tested.shed(START, 60, 5.1) is not None
    assert tested.shed(START, 2.0, 2.1) is not None
    assert tested.snapshot().shed == 2


@given(st.integers(0, 2**32), st.floats(0.5, 60))
def test_retry_after_is_never_sooner_than_the_room_is_empty_and_not_the_same_for_all(seed: int, drain: float) -> None:
    tested = Shedder(SheddingTerms(max_wait_s=0.4), rng=Random(seed))
    told = tested.shed(START, 60, 0.45, drain)

    assert told is not None
    assert drain <= told <= drain * 1.25
    assert told != tested.shed(START, 60, 0.45, drain)


class Arrival(NamedTuple):
    at: float
    key: str


class Server:
    """A room before an upstream of so many slots, an answer takes 1 s. In virtual time."""

    def __init__(self, slots: int = 20, *, shedding: bool = True, max_wait_s: float = 2.0) -> None:
        self.slots = slots
        self.limiter = ConcurrencyLimiter(FixedLimit(slots))
        self.room: WaitingRoom[Arrival] = WaitingRoom(256)
        self.shedder = Shedder(SheddingTerms(max_wait_s=max_wait_s), rng=Random(2))
        self.rng = Random(3)
        self.shedding = shedding
        self.max_wait_s = max_wait_s
        self.ends: list[tuple[float, float]] = []
        self.served: list[tuple[Arrival, float]] = []
        self.refused: list[tuple[Arrival, float]] = []

    def run(self, arrivals: list[Arrival], until: float) -> None:
        for arrival in [*arrivals, Arrival(until, "")]:
            while self.ends and self.ends[0][0] <= arrival.at:
                now, hold = heappop(self.ends)
                self.limiter.release()
                self.shedder.freed(now, hold)
                self._next(now)
            if arrival.key:
                self._arrive(arrival)

    def _arrive(self, arrival: Arrival) -> None:
        now, key = arrival
        if not self.room and self.limiter.acquire():
            self.room.charge(key, 1.0)
            self._serve(arrival, now)
            return
        if self.shedding:
            wait = self.shedder.predict(now, self.room.ahead(key), self.slots)
            told = self.shedder.shed(now, 30.0, wait, self.shedder.predict(now, len(self.room), self.slots))
            if told is not None:
                self.refused.append((arrival, told))
                return
        if len(self.room) == self.room.max_waiting:
            loser = self.room.loser(key, 0)
            if loser is None:
                self.refused.append((arrival, inf))
                return
            self.room.leave(loser)
            self.refused.append((loser, inf))
        self.room.join(arrival, key)

    def _next(self, now: float) -> None:
        while self.room and self.limiter.free:
            first = next(iter(self.room))
            if now - first.at > self.max_wait_s and self.shedding:
                self.room.leave(first)
                self.refused.append((first, inf))
            elif self.limiter.acquire():
                self.room.start(first, 1.0)
                self._serve(first, now)

    def _serve(self, arrival: Arrival, now: float) -> None:
        hold = self.rng.uniform(0.8, 1.2)
        heappush(self.ends, (now + hold, hold))
        self.served.append((arrival, now - arrival.at))


def poisson(
    seed: int, rate: Callable[[float], float], seconds: float, key: str = "a", most: float = 1000
) -> list[Arrival]:
    rng, now, arrivals = Random(seed), START, []
    while now < START + seconds:
        now += rng.expovariate(most)
        if rng.random() < rate(now - START) / most:
            arrivals.append(Arrival(now, key))
    return arrivals


def test_five_times_too_much_and_back_keeps_the_goodput_and_leaves_nothing_behind() -> None:
    """15 calls a second where 20 would do, 75 from the 30th to the 60th second. Good is what waited 2 s at the most."""
    server = Server()
    server.run(poisson(4, lambda at: 75.0 if 30 <= at < 60 else 15.0, 90), START + 90)

    def good(begin: float, end: float) -> float:
        return sum(begin <= arrival.at + wait - START < end and wait <= 2.0 for arrival, wait in server.served) / (
            end - begin
        )

    peak = 20.0
    before = sorted(wait for arrival, wait in server.served if 5 <= arrival.at - START < 30)
    after = sorted(wait for arrival, wait in server.served if arrival.at - START >= 70)
    assert good(32, 60) >= 0.9 * peak
    assert all(arrival.at - START < 70 for arrival, _ in server.refused)
    assert after[int(0.99 * len(after))] <= before[int(0.99 * len(before))] + 0.2


def test_without_shedding_the_goodput_collapses() -> None:
    """The control arm: the room is always full, and whoever gets out of it has waited too long."""
    server = Server(shedding=False)
    server.run(poisson(4, lambda at: 75.0, 60), START + 60)
    late = [wait for arrival, wait in server.served if arrival.at >= START + 30]

    assert sum(wait <= 2.0 for wait in late) <= 0.1 * len(late)


def test_the_neighbour_of_who_asks_twenty_times_too_much_waits_little_and_is_never_refused() -> None:
    """A share is 50 calls a second of 100. The first seconds, in which all slots are taken at once, are left out."""

    def p99(*flood: Arrival) -> float:
        server = Server(100)
        server.run(sorted([*neighbour, *flood]), START + 34)
        assert [arrival for arrival, _ in server.refused if arrival.key == "b"] == []
        mine = [(arrival, wait) for arrival, wait in server.served if arrival.key == "b"]
        assert len(mine) == len(neighbour)
        waits = sorted(wait for arrival, wait in mine if arrival.at >= START + 5)
        return 1.2 + waits[int(0.99 * len(waits))]  # an answer takes 1.2 s at the most

    neighbour = poisson(5, lambda at: 25.0, 30, "b")
    alone, beside = p99(), p99(*poisson(6, lambda at: 1000.0, 30, "a", 2000))

    assert beside <= 1.2 * alone


def test_whoever_comes_back_when_told_is_served_at_once_if_nobody_else_came() -> None:
    for seed in range(20):
        server = Server()
        arrivals = poisson(seed, lambda at: 75.0, 10)
        server.run(arrivals, arrivals[-1].at)
        refused, told = [each for each in server.refused if each[1] != inf][-1]
        back = Arrival(refused.at + told, "back")
        server.run([arrival for arrival in [back] if arrival.at > arrivals[-1].at], back.at + 5)

        assert back.at <= arrivals[-1].at or (back, 0.0) in server.served


@pytest.mark.parametrize("wrong", [{"max_wait_s": 0}, {"smoothing": 2}, {"least_retry_s": 200}])
def test_terms_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        SheddingTerms(**wrong)
