"""KV blocks run out again and again: everybody ends, and with the answer of who has all blocks to itself."""

import random

import pytest

from engine.scheduler import Scheduler
from engine.sequence import FinishReason, Sequence
from tests.engine.scripted import ScriptedRunner
from tests.engine.test_careful import drive, serving, submit

BLOCKS, SIZE = 16, 16


def let_go(self: Scheduler, sequence: Sequence) -> None:
    """The defence taken out: who has to give its blocks away does not come back."""
    self.finish(sequence, FinishReason.ERROR)


@pytest.mark.fault_row(40)
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("defended", [True, False])
def test_two_hundred_requests_over_sixteen_blocks_end_as_if_each_were_alone(
    defended: bool, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not defended:
        monkeypatch.setattr(Scheduler, "_preempt", let_go)
    chance = random.Random(seed)
    runner = ScriptedRunner(num_blocks=BLOCKS, block_size=SIZE)
    engine, answers = serving(runner, max_sequences=12, max_batch_tokens=64)
    wishes = {
        f"r{number}": (tuple(chance.choices(range(5), k=chance.randint(1, 120))), chance.randint(1, 120))
        for number in range(200)
    }
    for name, (prompt, max_tokens) in wishes.items():
        submit(engine, [name], prompt=prompt, max_tokens=max_tokens)
        if chance.random() < 0.3:
            engine.step()
    drive(engine, 50_000)
    alone = {name: runner.undisturbed(prompt, most) for name, (prompt, most) in wishes.items()}

    assert not engine.has_work
    assert engine.scheduler.pool.num_available == BLOCKS
    assert (answers.tokens == alone and answers.ends.keys() == wishes.keys() and not answers.failed()) is defended
    assert engine.stats.preemptions > 20 or not defended
