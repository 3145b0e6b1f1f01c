"""Overload: five times what can be served, an upstream that becomes slow, and callers that come back. In virtual time;
`test_admission_real.py` has it over sockets.
"""

import asyncio
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import Overloaded
from tests.rig.shop import Gate, Shop, Visit, arrivals, p99
from tests.rig.virtual_time import START, run_virtually

SLOTS, SERVICE_S = 50, 0.5
CAPACITY = SLOTS / SERVICE_S
CALM, BUSY, AFTER, OVER = START, START + 15, START + 30, START + 55


def overload(*, defended: bool) -> Gate:
    """Half of the capacity, five times that, and half again; callers have 3 s, and come back twice when told."""

    async def main() -> Gate:
        shop = Shop(slots=SLOTS) if defended else Shop(counters=SLOTS)
        gate, rng = Gate(shop), Random(7)
        steps = ((0.5, CALM, BUSY), (2.5, BUSY, AFTER), (0.5, AFTER, OVER))
        visits = [
            visit
            for share, begin, end in steps
            for visit in arrivals(rng, share * CAPACITY, begin, end, service_s=SERVICE_S, patience_s=3.0, retries=2)
        ]
        await gate.open(visits)
        return gate

    return run_virtually(main())


@pytest.fixture(scope="module")
def gate() -> Gate:
    return overload(defended=True)


@pytest.mark.fault_row(45)
def test_at_five_times_the_load_nine_tenths_of_the_peak_are_served(gate: Gate) -> None:
    assert gate.goodput(BUSY + 2, AFTER) >= 0.9 * CAPACITY


@pytest.mark.fault_row(45)
def test_ten_seconds_later_nothing_is_left_of_it(gate: Gate) -> None:
    before, after = gate.between(CALM + 5, BUSY), gate.between(AFTER + 10, OVER - 5)

    assert all(each.good and each.tries == 1 for each in before)
    assert all(each.good and each.tries == 1 for each in after)
    assert p99([each.seconds for each in after]) <= 1.2 * p99([each.seconds for each in before])
    assert len(gate.vacancy.queue_of((gate.shop,))) == 0
    assert gate.shop.leased == 0


def test_whoever_is_let_in_is_served_in_time(gate: Gate) -> None:
    """But for one in ten at the most, whose service takes longer than was to be foreseen."""
    let_in = [each for each in gate.outcomes if not isinstance(each.error, Overloaded)]

    assert sum(each.good for each in let_in) >= 0.9 * len(let_in)


@pytest.mark.fault_row(45, removed=True)
def test_without_the_defence_nearly_nobody_is_served_in_time() -> None:
    control = overload(defended=False)
    after = control.between(AFTER + 10, OVER - 5)

    assert control.goodput(BUSY + 5, AFTER) <= 0.3 * CAPACITY
    assert sum(each.good for each in after) < 0.5 * len(after)  # and it does not come back by itself


@pytest.mark.fault_row(19)
def test_an_upstream_that_becomes_slow_sheds_at_once_and_serves_what_it_can_in_time() -> None:
    """Ten times slower for half a minute: what is taken in is answered within its deadline, the rest at once."""

    async def main() -> Gate:
        shop = Shop(slots=SLOTS)
        gate, rng = Gate(shop), Random(3)
        visits = [*arrivals(rng, 0.8 * CAPACITY, START, START + 90, service_s=SERVICE_S, patience_s=20.0)]

        async def weather() -> None:
            await asyncio.sleep(20)
            shop.pace = 10.0
            await asyncio.sleep(30)
            shop.pace = 1.0

        async with asyncio.TaskGroup() as group:
            group.create_task(weather())
            group.create_task(gate.open(visits))
        return gate

    gate = run_virtually(main())

    assert gate.goodput(START + 30, START + 50) >= 0.9 * CAPACITY / 10
    assert all(each.good for each in gate.between(START + 65, START + 85))
    shed = [each for each in gate.outcomes if isinstance(each.error, Overloaded)]
    assert sum(each.seconds == 0.0 for each in shed) >= 0.8 * len(shed)  # the others waited before it was known
    assert max(each.seconds for each in shed) <= 10.1
    assert all(each.seconds <= 20.0 for each in gate.outcomes if each.good)


def test_who_comes_back_when_told_is_served_at_once_if_nobody_else_came() -> None:
    async def main() -> tuple[Gate, Visit]:
        gate = Gate(Shop(slots=SLOTS))
        known = [Visit(START + 0.01 * i, service_s=SERVICE_S) for i in range(100)]
        crowd = [Visit(START + 5, service_s=SERVICE_S * (0.5 + i % 50 / 49), patience_s=20.0) for i in range(250)]
        hasty = Visit(START + 5.1, service_s=SERVICE_S, patience_s=1.1 * SERVICE_S, retries=1)
        await gate.open([*known, *crowd, hasty])
        return gate, hasty

    gate, hasty = run_virtually(main())

    (outcome,) = gate.between(hasty.at, hasty.at + 0.01)
    ((_, _, told_s),) = gate.refusals
    assert outcome.tries == 2
    assert outcome.good
    assert outcome.seconds == pytest.approx(told_s + SERVICE_S, abs=0.05)


visits = st.lists(
    st.tuples(
        st.sampled_from("ab"),
        st.floats(0, 2),  # when it comes
        st.floats(0.01, 0.5),  # how long it is served
        st.floats(0.01, 1.5),  # when it leaves
        st.integers(0, 1),  # how often it comes back
    ),
    min_size=1,
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(visits, st.integers(1, 4), st.integers(0, 8))
def test_whoever_comes_and_goes_nothing_stays_behind_and_no_slot_is_idle_while_somebody_waits(
    asked: list[tuple[str, float, float, float, int]], slots: int, max_waiting: int
) -> None:
    async def main() -> Gate:
        gate = Gate(Shop(slots=slots), max_waiting=max_waiting)
        queue = gate.vacancy.queue_of((gate.shop,))

        async def watch() -> None:
            while True:
                await asyncio.sleep(0.0173)
                assert not len(queue) or gate.shop.leased == slots
                assert len(queue) <= max_waiting

        watching = asyncio.ensure_future(watch())
        await gate.open([Visit(START + at, who, service, left, 5, again) for who, at, service, left, again in asked])
        assert not watching.done(), watching.exception()
        watching.cancel()
        return gate

    gate = run_virtually(main())

    queue = gate.vacancy.queue_of((gate.shop,))
    assert len(gate.outcomes) == len(asked)
    assert (gate.shop.leased, gate.shop.running, len(queue)) == (0, 0, 0)
    assert queue._awaited == {}
    assert queue._timer is None
