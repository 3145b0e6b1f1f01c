"""An upstream whose answers take thirty seconds instead of one, at three times what it can serve then. Virtual time."""

import asyncio
from collections.abc import Callable
from random import Random

import pytest

from gateway.errors import Overloaded
from policies.shedding import Shedder
from tests.rig.shop import Gate, Shop, arrivals, p99
from tests.rig.virtual_time import START, run_virtually

SLOTS, USUAL_S, SLOWER, DEADLINE_S = 50, 1.0, 30.0, 75.0
CAPACITY = SLOTS / (USUAL_S * SLOWER)
SLOW, KNOWN, OVER = START + 60, START + 120, START + 420  # slow from then on; and a round of answers later


def becomes_slow(shop: Shop) -> Gate:
    async def main() -> Gate:
        gate, rng = Gate(shop, max_wait_s=DEADLINE_S), Random(19)
        visits = [*arrivals(rng, 3 * CAPACITY, START, OVER, service_s=USUAL_S, spread=0.2, patience_s=DEADLINE_S)]

        async def worsen() -> None:
            await asyncio.sleep(SLOW - START)
            shop.pace = SLOWER

        async with asyncio.TaskGroup() as group:
            group.create_task(worsen())
            group.create_task(gate.open(visits))
        for task in tuple(shop.working):
            task.cancel()
        return gate

    return run_virtually(main())


def told_at_once(gate: Gate) -> float:
    """The share of those refused who heard it in the moment in which they came."""
    refused = [each for each in gate.between(KNOWN, OVER) if isinstance(each.error, Overloaded)]
    return sum(each.seconds == 0.0 for each in refused) / max(len(refused), 1)


def in_time(gate: Gate) -> float:
    """The share of those let in who had their answer within their deadline."""
    let_in = [each for each in gate.between(KNOWN, OVER - DEADLINE_S) if not isinstance(each.error, Overloaded)]
    return sum(each.good for each in let_in) / max(len(let_in), 1)


def nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> Shop:
    monkeypatch.setattr(Shedder, "shed", lambda self, now, patience_s, wait_s, drain_s: None)
    return Shop(slots=SLOTS)


def everybody_is_sent(monkeypatch: pytest.MonkeyPatch) -> Shop:
    return Shop(counters=SLOTS)


@pytest.mark.fault_row(19)
def test_who_cannot_be_served_in_time_is_told_at_once_and_who_can_be_is() -> None:
    gate = becomes_slow(Shop(slots=SLOTS))

    good = [each.seconds for each in gate.between(KNOWN, OVER) if each.good]
    assert told_at_once(gate) >= 0.95
    assert in_time(gate) >= 0.99
    assert p99(good) <= DEADLINE_S
    assert gate.goodput(KNOWN, OVER) >= 0.9 * CAPACITY


@pytest.mark.fault_row(19, removed=True)
@pytest.mark.parametrize("removal", [nobody_is_told, everybody_is_sent])
def test_without_the_defence_it_is_not_so(
    removal: Callable[[pytest.MonkeyPatch], Shop], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = becomes_slow(removal(monkeypatch))

    assert told_at_once(gate) < 0.1
    assert in_time(gate) < 0.5
    assert gate.goodput(KNOWN, OVER) < 0.6 * CAPACITY
