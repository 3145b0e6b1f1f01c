"""A prompt that cannot be computed before its deadline costs no step; one that can is never sent away."""

import pytest

from engine.batch import Batch, Row
from engine.config import EngineConfig
from engine.loop import Engine
from engine.meter import Meter
from engine.output import GenerateRequest, Output
from engine.params import SamplingParams
from engine.sequence import FinishReason, Sequence
from tests.engine.scripted import ScriptedRunner

CHUNK, PACE = 16, 1000.0  # tokens of a full chunk, tokens a second


class Timed(ScriptedRunner):
    """A runner whose steps take the time of their tokens."""

    def __init__(self) -> None:
        super().__init__(num_blocks=64, block_size=4)
        self.now = 100.0

    def run(self, batch: Batch):  # type: ignore[no-untyped-def]
        self.now += batch.num_tokens / PACE
        return super().run(batch)


class World:
    def __init__(self) -> None:
        self.outputs: list[Output] = []
        self.runner = Timed()
        config = EngineConfig(max_batch_tokens=CHUNK, max_sequences=4, max_prefill_chunk=CHUNK)
        self.engine = Engine(self.runner, config, None, self.outputs.extend, clock=lambda: self.runner.now)

    def ask(self, name: str, tokens: int, within_s: float | None, *, first: int = 0) -> None:
        deadline = None if within_s is None else self.runner.now + within_s
        prompt = tuple(range(first, first + tokens))
        self.engine.submit(GenerateRequest(name, prompt, SamplingParams(max_tokens=2), deadline=deadline))

    def drive(self) -> None:
        while self.engine.has_work:
            self.engine.step()
        self.engine.scheduler.pool.check_integrity()

    def end(self, name: str) -> Output:
        (end,) = [output for output in self.outputs if output.request_id == name and output.finish is not None]
        return end


@pytest.fixture
def world() -> World:
    """An engine that knows its pace."""
    world = World()
    world.ask("before", 64, None, first=500)
    world.drive()
    world.runner.num_computed_tokens = 0
    return world


def test_who_cannot_be_in_time_is_ended_at_once_and_costs_no_step(world: World) -> None:
    world.ask("late", 100, 0.05)
    world.drive()

    end = world.end("late")
    assert (end.finish, end.error, end.num_prompt, end.num_generated) == (FinishReason.ERROR, "too late", 0, 0)
    assert world.runner.num_computed_tokens == 0


def test_who_can_be_in_time_is_served(world: World) -> None:
    world.ask("tight", 100, 0.11)
    world.drive()

    assert world.end("tight").finish is FinishReason.LENGTH


def test_what_is_cached_need_not_be_computed(world: World) -> None:
    world.ask("again", 64, 0.02, first=500)
    world.drive()

    assert world.end("again").finish is FinishReason.LENGTH


def test_those_behind_the_one_who_was_shed_are_served_in_the_same_step(world: World) -> None:
    world.ask("late", 100, 0.05)
    world.ask("later", 100, 0.06, first=200)
    world.ask("fine", 8, 0.06, first=400)
    world.drive()

    assert world.end("late").error == world.end("later").error == "too late"
    assert world.end("fine").finish is FinishReason.LENGTH


def test_while_the_pace_is_not_known_nobody_is_shed() -> None:
    world = World()
    world.ask("first", 100, 0.05)
    world.engine.step()

    assert world.outputs == []


def test_who_has_no_deadline_is_never_shed(world: World) -> None:
    world.ask("patient", 200, None)
    world.drive()

    assert world.end("patient").finish is FinishReason.LENGTH


def batch_of(tokens: int) -> Batch:
    sequence = Sequence("a", 0, [0] * (tokens + 1), tokens + 1, SamplingParams(max_tokens=1))
    return Batch((Row(sequence, 0, tokens, False),), tokens)


def test_the_best_pace_is_that_of_full_chunks_and_fades() -> None:
    meter = Meter(CHUNK)
    meter.observe(batch_of(2), 0.1, 0.1)  # most of it is spent once a step
    assert meter.best_prefill_tokens_per_s == 0.0
    meter.observe(batch_of(CHUNK), 0.016, 0.016)
    assert meter.best_prefill_tokens_per_s == pytest.approx(1000.0)
    meter.observe(batch_of(2), 0.1, 0.1)
    assert meter.best_prefill_tokens_per_s == pytest.approx(1000.0)
    for _ in range(400):
        meter.observe(batch_of(CHUNK), 0.032, 0.032)
    assert meter.best_prefill_tokens_per_s == pytest.approx(500.0, rel=0.01)
