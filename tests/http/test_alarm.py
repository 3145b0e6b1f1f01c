"""A movable deadline, on a clock of the test's own."""

import asyncio
from math import inf
from typing import cast

from gateway.http.alarm import Alarm

from .clock import FakeLoop


def make() -> tuple[FakeLoop, Alarm, list[float]]:
    loop = FakeLoop()
    rung: list[float] = []
    return loop, Alarm(cast(asyncio.AbstractEventLoop, loop), lambda: rung.append(loop.now)), rung


def test_it_rings_once_at_its_time() -> None:
    loop, alarm, rung = make()
    alarm.set(10.0)
    loop.advance(100.0)

    assert rung == [10.0]


def test_a_deadline_that_moves_later_costs_no_timer() -> None:
    loop, alarm, rung = make()
    for now in range(1000):
        loop.advance(now / 1000)
        alarm.set(now / 1000 + 10.0)
    loop.advance(9.0)

    assert (loop.made, rung) == (1, [])
    loop.advance(100.0)
    assert (loop.made, rung) == (2, [10.999])


def test_a_deadline_that_moves_earlier_is_kept() -> None:
    loop, alarm, rung = make()
    alarm.set(10.0)
    alarm.set(3.0)
    loop.advance(100.0)

    assert rung == [3.0]


def test_a_deadline_taken_away_does_not_ring() -> None:
    loop, alarm, rung = make()
    alarm.set(10.0)
    alarm.due = inf
    loop.advance(100.0)
    assert rung == []

    alarm.set(110.0)
    loop.advance(200.0)
    assert rung == [110.0]


def test_a_closed_alarm_leaves_no_timer() -> None:
    loop, alarm, rung = make()
    alarm.set(10.0)
    alarm.close()

    assert all(timer.cancelled for timer in loop.timers)
    loop.advance(100.0)
    assert rung == []
