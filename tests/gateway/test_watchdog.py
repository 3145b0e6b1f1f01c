"""A step that does not end is told of once, makes the process not ready, and is given up when it goes on."""

from gateway.process.watchdog import TIMES, Watchdog


class Engine:
    def __init__(self) -> None:
        self.step_started: float | None = None
        self.step_s = 0.0

    def usual_step_s(self) -> float:
        return self.step_s

    def where(self) -> str:
        return "in a loop"


class Rig:
    def __init__(self, bound_s: float = 10.0) -> None:
        self.now = 0.0
        self.engine = Engine()
        self.said: list[str] = []
        self.given_up: list[str] = []
        self.dog = Watchdog(
            "m", self.engine, bound_s, say=self.said.append, give_up=self.given_up.append, clock=lambda: self.now
        )

    def look_at(self, now: float) -> tuple[bool, int, int]:
        """Give whether it is ready, and how often something was told and given up."""
        self.now = now
        self.dog.look()
        return self.dog.reason() is None, len(self.said), len(self.given_up)


def test_an_engine_that_rests_or_steps_in_time_is_left_alone() -> None:
    rig = Rig()

    assert rig.look_at(100.0) == (True, 0, 0)

    rig.engine.step_started = 100.0

    assert rig.look_at(110.0) == (True, 0, 0)


def test_a_step_that_takes_too_long_is_told_of_once_and_counted() -> None:
    rig = Rig()
    rig.engine.step_started = 0.0

    assert [rig.look_at(now) for now in (10.5, 11.0, 19.0)] == [(False, 1, 0)] * 3
    assert rig.dog.stalls == 1
    assert rig.said == ["a step of the engine of m takes longer than 10 s. in a loop"]


def test_it_is_ready_again_when_the_step_ends_and_another_hang_is_told_anew() -> None:
    rig = Rig()
    rig.engine.step_started = 0.0
    rig.look_at(15.0)
    rig.engine.step_started = None

    assert rig.look_at(16.0) == (True, 1, 0)

    rig.engine.step_started = 16.0

    assert rig.look_at(27.0) == (False, 2, 0)
    assert rig.dog.stalls == 2


def test_a_step_that_takes_twice_as_long_is_given_up_once() -> None:
    rig = Rig()
    rig.engine.step_started = 0.0

    assert [rig.look_at(now) for now in (20.5, 30.0)] == [(False, 1, 1)] * 2
    assert rig.given_up == ["the engine of m hangs in a step"]


def test_a_slow_machine_is_no_hang() -> None:
    rig = Rig(bound_s=1.0)
    rig.engine.step_s = 0.5
    rig.engine.step_started = 0.0

    assert rig.look_at(TIMES * 0.5) == (True, 0, 0)
    assert rig.look_at(TIMES * 0.5 + 1) == (False, 1, 0)
