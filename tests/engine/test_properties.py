"""What holds whatever happens: a state machine submits, steps, grants, closes, aborts, lets steps fail, in any order.

The scripted runner checks every row's whole history in its blocks, so a block that was shared, evicted or reused
wrongly fails the step that would have read it.
"""

import logging
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.allowance import Allowance
from engine.blocks import Block, BlockPool
from engine.config import EngineConfig
from engine.loop import Engine
from engine.output import GenerateRequest, Output
from engine.params import SamplingParams
from engine.sequence import FinishReason, Sequence
from tests.engine.scripted import ScriptedRunner

SIZE = 4
MAX_STEPS = 3000
MAX_MODEL_LEN = 48


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that fail on purpose fill the log."""
    monkeypatch.setattr(logging.getLogger("engine"), "disabled", True)


class TightPool(BlockPool):
    """A pool whose hash has eight values, so that nearly every key collides."""

    def __init__(self, num_blocks: int) -> None:
        super().__init__(num_blocks, SIZE, hash_block=lambda parent, content: bytes([sum(parent + content) % 8]))


class UnchainedPool(BlockPool):
    """A pool whose hash says nothing of what stands before a block."""

    def __init__(self, num_blocks: int) -> None:
        super().__init__(num_blocks, SIZE, hash_block=lambda parent, content: content)


class Trusting(TightPool):
    """A planted bug: hits are not verified."""

    def _holds(self, block: Block, parent: int | bytes, content: bytes) -> bool:
        return True


class Nearsighted(UnchainedPool):
    """A planted bug: hits are verified by their own tokens, and not by what stands before them."""

    def _holds(self, block: Block, parent: int | bytes, content: bytes) -> bool:
        return block.content == content


class Hasty(BlockPool):
    """A planted bug: blocks are indexed when they are given out, before they are computed."""

    def __init__(self, num_blocks: int) -> None:
        super().__init__(num_blocks, SIZE)

    def allocate(self, sequence: Sequence, found: list[int]) -> None:
        super().allocate(sequence, found)
        for i in range(len(found), len(sequence.token_ids) // SIZE):
            self._enter(sequence, i)


def plain(num_blocks: int) -> BlockPool:
    return BlockPool(num_blocks, SIZE)


class Life(RuleBasedStateMachine):
    """Requests come, run, are aborted and fail; prompts come from few prefixes, so that much is shared.

    Some have an allowance, which is raised, left to run out, renewed and closed at any moment.
    """

    new_pool: Callable[[int], BlockPool] = staticmethod(plain)

    @initialize(
        num_blocks=st.integers(4, 24),
        max_sequences=st.integers(1, 6),
        more_tokens=st.integers(0, 20),
        chunk=st.integers(1, 48),
    )
    def begin(self, num_blocks: int, max_sequences: int, more_tokens: int, chunk: int) -> None:
        self.runner = ScriptedRunner(num_blocks, SIZE, MAX_MODEL_LEN)
        self.pool = self.new_pool(num_blocks)
        self.budget = max_sequences + more_tokens
        self.chunk = chunk
        self.max_sequences = max_sequences
        config = EngineConfig(max_batch_tokens=self.budget, max_sequences=max_sequences, max_prefill_chunk=chunk)
        self.outputs: dict[tuple[str, int], list[Output]] = {}
        self.calls = 0
        self.now = 0.0
        self.engine = Engine(self.runner, config, None, self.deliver, pool=self.pool, clock=lambda: self.now)
        self.limit = min(MAX_MODEL_LEN, num_blocks * SIZE)
        self.requests: dict[str, GenerateRequest] = {}
        self.disturbed: set[str] = set()  # aborted, failed or with a deadline
        self.produced: dict[str, int] = {}  # tokens, by request
        self.nudges = 0
        self.told: dict[str, int] = {}  # by request: the nudges at the latest word that it is short
        self.idle_steps = 0

    def deliver(self, outputs: list[Output]) -> None:
        self.calls += 1
        for output in outputs:
            told = self.outputs.setdefault((output.request_id, output.index), [])
            assert not told or told[-1].finish is None, "an answer went on after its end"
            if output.short:
                self.told[output.request_id] = self.nudges
            told.append(output)

    @rule(
        prefix=st.sampled_from([0, 4, 8, 9, 20, 31]),
        stem=st.integers(0, 2),
        rest=st.lists(st.integers(0, 3), max_size=8),
        max_tokens=st.integers(1, 60),
        n=st.sampled_from([1, 1, 1, 2, 3]),
        priority=st.sampled_from([0, 0, 0, 1, 2]),
        salt=st.sampled_from([b"", b"", b"other"]),
        patience=st.sampled_from([None, None, None, 3.0]),
        seed=st.integers(0, 3),
        granted=st.sampled_from([None, None, 0, 1, 2, 5, 30]),
    )
    def submit(
        self,
        prefix: int,
        stem: int,
        rest: list[int],
        max_tokens: int,
        n: int,
        priority: int,
        salt: bytes,
        patience: float | None,
        seed: int,
        granted: int | None,
    ) -> None:
        prompt = (*(stem * (i % 5) for i in range(prefix)), *rest)[: self.limit - 1] or (7,)
        name = f"r{len(self.requests)}"
        params = SamplingParams(max_tokens=max_tokens, seed=seed)
        deadline = None if patience is None else self.now + patience
        allowance = None if granted is None else Allowance(granted)
        made = GenerateRequest(
            name, prompt, params, n=n, priority=priority, salt=salt, deadline=deadline, allowance=allowance
        )
        self.requests[name] = made
        if patience is not None:
            self.disturbed.add(name)
        self.engine.submit(made)

    @precondition(lambda self: self.limited())
    @rule(data=st.data(), more=st.integers(1, 9))
    def grant(self, data: st.DataObject, more: int) -> None:
        self.draw_allowance(data).granted += more
        self.nudge()

    @precondition(lambda self: self.limited())
    @rule(data=st.data(), patience=st.sampled_from([None, 0, 1, 4]))
    def renew(self, data: st.DataObject, patience: int | None) -> None:
        self.draw_allowance(data).good_until = None if patience is None else self.now + patience
        self.nudge()

    @precondition(lambda self: self.limited())
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        self.draw_allowance(data).closed = True
        self.nudge()

    def limited(self) -> list[str]:
        return sorted(name for name, made in self.requests.items() if made.allowance is not None)

    def draw_allowance(self, data: st.DataObject) -> Allowance:
        allowance = self.requests[data.draw(st.sampled_from(self.limited()))].allowance
        assert allowance is not None
        return allowance

    def nudge(self) -> None:
        self.nudges += 1
        self.engine.nudge()

    def unfinished(self) -> list[str]:
        told = self.outputs
        return [
            name
            for name, made in self.requests.items()
            if any(not told.get((name, i)) or told[name, i][-1].finish is None for i in range(made.n))
        ]

    @rule(times=st.integers(1, 12))
    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self.one_step()

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.requests)))
        self.engine.abort(name)
        self.disturbed.add(name)
        self.one_step()

        assert all(sequence.request_id != name for sequence in self.engine.scheduler.running)
        assert all(self.outputs[name, index][-1].finish for index in range(self.requests[name].n))

    @precondition(lambda self: self.engine.scheduler.running)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        names = sorted({sequence.request_id for sequence in self.engine.scheduler.running})
        self.runner.fail_on = {data.draw(st.sampled_from(names))}
        steps = len(self.runner.batches)
        self.one_step()
        for batch in self.runner.batches[steps : steps + 1]:
            failing = [row for row in batch.rows if row.sequence.request_id in self.runner.fail_on]
            failed = [row for row in batch.rows if row.sequence.finish is FinishReason.ERROR]
            assert len(failing) != 1 or failed == failing, "one that fails takes another along"
            assert all(row in failed for row in failing)
            self.disturbed |= {row.sequence.request_id for row in failed}
        self.runner.fail_on = set()

    def one_step(self) -> None:
        """Step, and hold the batch against what is promised."""
        steps, calls = len(self.runner.batches), self.calls
        running = self.engine.scheduler.running
        decoding = [s for s in running if len(s.token_ids) - s.num_computed == 1]
        before = {s: (s.num_generated, s.num_preemptions) for s in decoding}
        self.now += 1
        left = {name: self.left(name) for name in self.limited()}
        self.engine.step()

        rations = self.engine.scheduler.rations
        assert self.calls <= calls + 1
        assert len(self.runner.batches) <= steps + 1 or self.runner.fail_on
        assert all(left[sequence.request_id] == 0 for sequence in rations.parked)
        if len(self.runner.batches) == steps:
            self.idle_steps += 1
            assert not self.engine.scheduler.has_work or self.idle_steps < 3, "an engine without work does not sleep"
            return
        self.idle_steps = 0
        batch = self.runner.batches[steps]  # one that fails is run again in parts
        taken: dict[str, int] = {}
        brought: dict[str, int] = {}
        for row in batch.rows:
            name, failed = row.sequence.request_id, row.sequence.finish is FinishReason.ERROR
            taken[name] = taken.get(name, 0) + row.samples
            brought[name] = brought.get(name, 0) + (row.samples and not failed)
        for name, most in left.items():
            assert taken.get(name, 0) <= most, "a token past the allowance"
            self.produced[name] = self.produced.get(name, 0) + brought.get(name, 0)
            allowance = self.requests[name].allowance
            assert allowance is not None
            assert allowance.used == self.produced.get(name, 0)
        assert batch.num_tokens <= self.budget
        assert len(batch.rows) <= self.max_sequences
        assert all(row.count <= self.chunk for row in batch.rows)
        for sequence, (num_generated, num_preemptions) in before.items():
            moved = sequence.num_generated > num_generated or sequence in rations.parked or sequence in rations.resting
            assert moved or sequence.finish or sequence.num_preemptions > num_preemptions, "an answer starves"
        errors = {outputs[-1].error for outputs in self.outputs.values()}
        assert errors <= {None, "deadline", "the step failed: RuntimeError('the device is gone')"}

    def left(self, name: str) -> int:
        allowance = self.requests[name].allowance
        assert allowance is not None
        return allowance.left(self.now)

    def run_dry(self) -> None:
        """Step until nothing is to do: who has not ended then is short, and has been told so since the last nudge."""
        steps = 0
        while self.engine.has_work:
            self.one_step()
            steps += 1
            assert steps < MAX_STEPS, "the engine does not come to an end"
        for name in self.unfinished():
            assert self.requests[name].allowance is not None, "an answer waits for nobody"
            assert self.left(name) == 0, "an answer waits beside the tokens that it was granted"
            assert self.told[name] == self.nudges, "nobody was told that an answer is short"

    @invariant()
    def blocks_are_conserved(self) -> None:
        if hasattr(self, "engine"):
            self.pool.check_integrity(self.engine.scheduler.running)

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        self.run_dry()
        for more in (1, 3, 0):
            for name in self.unfinished():
                allowance = self.requests[name].allowance
                assert allowance is not None
                allowance.good_until = None
                allowance.granted += more
                allowance.closed = allowance.closed or not more
            self.nudge()
            self.run_dry()
        assert not self.unfinished()
        rations = self.engine.scheduler.rations
        assert not [*rations.limited, *rations.parked, *rations.shelved, *rations.resting]
        self.pool.check_integrity()
        assert self.pool.num_available == self.pool.num_blocks
        assert self.engine.scheduler.num_waiting == 0
        assert self.engine.scheduler.waiting.num_tokens == 0
        for name, made in self.requests.items():
            for index in range(made.n):
                self.check_answer(made, self.outputs[name, index])

    def check_answer(self, made: GenerateRequest, outputs: list[Output]) -> None:
        """The tokens are those of an undisturbed run, all of them unless somebody ended it."""
        tokens = [token for output in outputs for token in output.token_ids]
        whole = min(made.params.max_tokens, self.limit - len(made.prompt_ids))
        expected = self.runner.undisturbed(
            made.prompt_ids, whole, salt=made.salt, seed=made.params.seed, index=outputs[0].index
        )
        assert tokens == expected[: len(tokens)]
        if outputs[-1].limited:
            assert outputs[-1].finish is FinishReason.LENGTH
            assert made.allowance is not None
            assert made.allowance.closed
            assert len(tokens) < len(expected)
        elif outputs[-1].finish is FinishReason.LENGTH:
            assert tokens == expected
        else:
            assert made.id in self.disturbed


class CollidingLife(Life):
    """The same with a hash that collides nearly always."""

    new_pool = staticmethod(TightPool)


PATIENT = 600  # seconds: a machine that is busy with something else is no failure
QUICK = settings(
    max_examples=300,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)

TestLife = pytest.mark.timeout(PATIENT)(Life.TestCase)
TestLife.settings = QUICK
TestCollidingLife = pytest.mark.timeout(PATIENT)(CollidingLife.TestCase)
TestCollidingLife.settings = QUICK


@pytest.mark.parametrize(
    ("new_pool", "steps_between", "sound"),
    [
        (plain, 0, True),
        (plain, 2, True),
        (TightPool, 2, True),
        (UnchainedPool, 2, True),
        (Trusting, 2, False),
        (Nearsighted, 2, False),
        (Hasty, 0, False),
    ],
)
def test_the_scripted_runner_finds_each_planted_bug(
    new_pool: Callable[[int], BlockPool], steps_between: int, sound: bool
) -> None:
    """Four requests over two prefixes of the same sum, with the same second block, are enough."""
    ends: list[Output] = []
    runner = ScriptedRunner(24, SIZE, MAX_MODEL_LEN)
    config = EngineConfig(max_batch_tokens=16, max_sequences=4, max_prefill_chunk=5)
    engine = Engine(runner, config, None, ends.extend, pool=new_pool(24))
    for name, start in {"a": (0, 0, 3, 0), "b": (0, 0, 0, 3), "c": (0, 0, 3, 0), "d": (0, 0, 0, 3)}.items():
        engine.submit(GenerateRequest(name, (*start, 5, 5, 5, 5, 5), SamplingParams(max_tokens=20)))
        for _ in range(steps_between):
            engine.step()
    while engine.has_work:
        engine.step()
    wrong = [output.error for output in ends if "is not what the block holds" in (output.error or "")]

    assert bool(wrong) != sound
