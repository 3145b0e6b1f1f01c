"""What goes wrong in a step costs those who make it go wrong, and nobody else."""

import random
from collections.abc import Sequence as Seq

import pytest

from engine.batch import Batch, Sampled
from engine.careful import Careful, Portion
from engine.config import EngineConfig
from engine.loop import Engine
from engine.meter import Meter
from engine.output import GenerateRequest, Output
from engine.params import SamplingParams
from engine.sequence import FinishReason
from tests.engine.scripted import ScriptedRunner

TRIALS = 1_000


class Faulty(ScriptedRunner):
    """Finds no memory for a step of more than `room` tokens; `run_error` is raised by every step."""

    def __init__(self, **settings: int) -> None:
        super().__init__(**settings)
        self.room: int | None = None
        self.run_error: Exception | None = None
        self.tried: list[int] = []

    def run(self, batch: Batch) -> list[Sampled]:
        self.tried.append(len(batch.rows))
        if self.run_error is not None:
            raise self.run_error
        if self.room is not None and batch.num_tokens > self.room:
            raise MemoryError("no room for activations")
        return super().run(batch)


class Answers:
    """What came of each request."""

    def __init__(self) -> None:
        self.tokens: dict[str, list[int]] = {}
        self.ends: dict[str, Output] = {}

    def __call__(self, outputs: list[Output]) -> None:
        for output in outputs:
            self.tokens.setdefault(output.request_id, []).extend(output.token_ids)
            if output.finish is not None:
                assert output.request_id not in self.ends, "an answer ended twice"
                self.ends[output.request_id] = output

    def failed(self) -> set[str]:
        return {name for name, end in self.ends.items() if end.finish is FinishReason.ERROR}


def serving(runner: ScriptedRunner, **settings: int) -> tuple[Engine, Answers]:
    answers = Answers()
    return Engine(runner, EngineConfig(**settings), None, answers), answers


def submit(engine: Engine, names: Seq[str], *, prompt: Seq[int] = (1, 2, 3), max_tokens: int = 4) -> None:
    for name in names:
        engine.submit(GenerateRequest(name, tuple(prompt), SamplingParams(max_tokens=max_tokens)))


def drive(engine: Engine, steps: int = 500) -> None:
    for _ in range(steps):
        if not engine.has_work:
            break
        engine.step()
    engine.scheduler.pool.check_integrity()


@pytest.mark.fault_row(37)
def test_of_a_thousand_random_steps_that_fail_only_the_culprit_pays(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL", "engine")
    chance = random.Random(37)
    for trial in range(TRIALS):
        runner = ScriptedRunner(num_blocks=256)
        engine, answers = serving(runner, max_sequences=chance.randint(1, 40), max_batch_tokens=64)
        names = [f"{trial}.{number}" for number in range(chance.randint(1, 40))]
        prompts = {name: tuple(chance.choices(range(5), k=chance.randint(1, 40))) for name in names}
        for name in names:
            submit(engine, [name], prompt=prompts[name])
        culprit = chance.choice(names)
        for _ in range(chance.randint(0, 5)):
            engine.step()
        runner.fail_on = {culprit} - answers.ends.keys()
        drive(engine)

        assert answers.failed() == runner.fail_on
        assert answers.ends.keys() == set(names)
        assert engine.scheduler.pool.num_available == 256
        for name in answers.ends.keys() - runner.fail_on:
            assert answers.tokens[name] == runner.undisturbed(prompts[name], 4)


@pytest.mark.fault_row(37)
def test_a_device_that_is_gone_fails_everybody_within_a_few_runs(caplog: pytest.LogCaptureFixture) -> None:
    runner = Faulty(num_blocks=256)
    runner.run_error = RuntimeError("the device is gone")
    engine, answers = serving(runner, max_sequences=100, max_batch_tokens=512)
    names = [f"r{number}" for number in range(100)]
    submit(engine, names)
    engine.step()

    assert answers.failed() == set(names)
    assert len(runner.tried) <= 1 + 2 * 7
    assert engine.stats.failed_steps == 1
    engine.scheduler.pool.check_integrity()


@pytest.mark.fault_row(39)
def test_a_step_without_memory_is_run_again_with_half_and_nobody_fails() -> None:
    runner = Faulty(num_blocks=256)
    runner.room = 30
    engine, answers = serving(runner, max_sequences=20, max_batch_tokens=64)
    names = [f"r{number}" for number in range(20)]
    submit(engine, names, max_tokens=6)
    drive(engine)

    assert answers.failed() == set()
    assert {name: answers.tokens[name] for name in names} == dict.fromkeys(names, runner.undisturbed((1, 2, 3), 6))
    assert engine.stats.memory_shortages >= 1
    assert engine.stats.failed_steps == 0


@pytest.mark.fault_row(39)
def test_a_half_that_finds_no_memory_either_costs_the_newest() -> None:
    runner = Faulty(num_blocks=64)
    engine, answers = serving(runner, max_sequences=8, max_batch_tokens=64)
    names = ["a", "b", "c", "d"]
    submit(engine, names, max_tokens=3)
    engine.step()
    runner.room = 0
    engine.step()
    runner.room = None
    drive(engine)

    assert answers.failed() == {"b"}  # of the half that was tried
    assert answers.ends["b"].error == "the step failed: MemoryError('no room for activations')"
    assert all(answers.tokens[name] == runner.undisturbed((1, 2, 3), 3) for name in ("a", "c", "d"))


def test_steps_stay_small_after_a_shortage_and_grow_again() -> None:
    runner = Faulty(num_blocks=256)
    engine, answers = serving(runner, max_sequences=32, max_batch_tokens=128)
    submit(engine, [f"r{number}" for number in range(32)], max_tokens=60)
    engine.step()
    runner.room = 31
    engine.step()
    runner.room = None
    runner.tried.clear()
    drive(engine)

    assert runner.tried[0] <= 17
    assert max(runner.tried) == 32
    assert answers.failed() == set()


def test_a_row_that_fails_alone_is_counted() -> None:
    class NotFinite(ScriptedRunner):
        def run(self, batch: Batch) -> list[Sampled]:
            sampled = super().run(batch)
            return [Sampled((), error="the logits are not finite"), *sampled[1:]]

    engine, answers = serving(NotFinite(), max_sequences=4)
    submit(engine, ["a", "b"], max_tokens=1)
    engine.step()

    assert answers.failed() == {"a"}
    assert (engine.stats.row_errors, engine.stats.failed_steps) == (1, 0)


def test_a_storm_of_preemptions_is_counted_once_until_it_is_over() -> None:
    meter, batch, preemptions = Meter(), Batch((), 0), 0
    seen = []
    for per_step in (0, 1, 0, *[3] * 40, *[0] * 40, *[3] * 40):
        preemptions += per_step
        meter.observe(batch, 0.01, 0.01, preemptions)
        seen.append(meter.storms)

    assert (seen[2], seen[42], seen[82], seen[-1]) == (0, 1, 1, 2)


# What the same would be without the care.


@pytest.mark.fault_row(37, removed=True)
def test_without_it_one_culprit_fails_the_whole_step(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Careful, "_apart", lambda self, failed: [failed])
    runner = ScriptedRunner()
    runner.fail_on = {"b"}
    engine, answers = serving(runner, max_sequences=4)
    submit(engine, ["a", "b", "c"])
    drive(engine)

    assert answers.failed() == {"a", "b", "c"}


@pytest.mark.fault_row(39, removed=True)
def test_without_it_a_shortage_of_memory_fails_everybody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Careful, "_with_less", lambda self, batch: [Portion(batch, (), MemoryError())])
    runner = Faulty(num_blocks=256)
    runner.room = 30
    engine, answers = serving(runner, max_sequences=20, max_batch_tokens=64)
    submit(engine, [f"r{number}" for number in range(20)])
    drive(engine)

    assert len(answers.failed()) == 20
