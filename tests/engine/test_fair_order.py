"""The engine's scheduler in the fair order: the bound on service, weights, and nobody left behind."""

from collections import defaultdict
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import EngineConfig
from engine.loop import Engine
from engine.output import GenerateRequest, Output
from engine.params import SamplingParams
from engine.sequence import FinishReason, Sequence
from policies.fairness import FairOrder, TokenCost
from tests.engine.scripted import ScriptedRunner

BLOCKS, SIZE, ROWS = 64, 4, 4
LONGEST = 24  # tokens of a prompt, or of an answer


class World:
    """A real engine with the fair order over a scripted runner, stepped by hand; it books what each tenant got."""

    def __init__(self, *, seed: int = 0, cost: TokenCost | None = None, **config: int) -> None:
        self.cost = cost or TokenCost()
        self.outputs: list[Output] = []
        limits = {"max_batch_tokens": 32, "max_sequences": ROWS, "max_prefill_chunk": 16} | config
        runner = ScriptedRunner(BLOCKS, SIZE)
        self.engine = Engine(runner, EngineConfig(**limits), None, self.outputs.extend, FairOrder(cost))
        self.rng = Random(seed)
        self.served: dict[str, float] = defaultdict(float)
        self.requests: dict[str, str] = {}
        self._num = 0

    def ask(self, tenant: str, *, weight: float = 1.0, priority: int = 0, prompt: int = 8, answer: int = 8) -> str:
        self._num += 1
        name = f"{tenant} {self._num}"
        ids = tuple(self.rng.randrange(1000) for _ in range(prompt))
        self.engine.submit(
            GenerateRequest(
                name, ids, SamplingParams(max_tokens=answer), order_key=tenant, weight=weight, priority=priority
            )
        )
        self.requests[name] = tenant
        return name

    def waiting(self) -> set[str]:
        return {sequence.order_key for sequence in self.engine.scheduler.waiting}

    def step(self) -> None:
        """One step; what it let in and brought is booked as the paper counts it."""
        known: dict[Sequence, tuple[bool, int]] = {}
        scheduler = self.engine.scheduler
        self.engine._drain(self.outputs)
        for sequence in [*scheduler.running, *scheduler.waiting]:
            known[sequence] = (sequence.begun, sequence.num_generated)
        self.engine.step()
        for sequence, (begun, generated) in known.items():
            if sequence.begun and not begun:
                self.served[sequence.order_key] += (sequence.num_prompt - sequence.num_cached) * self.cost.input
            self.served[sequence.order_key] += (sequence.num_generated - generated) * self.cost.output

    def drive(self) -> None:
        while self.engine.has_work:
            self.step()
        self.engine.scheduler.pool.check_integrity()


arrivals = st.lists(
    st.tuples(
        st.sampled_from("abc"),  # who
        st.integers(1, LONGEST),  # prompt
        st.integers(1, LONGEST),  # answer
        st.integers(0, 6),  # steps before it
    ),
    min_size=10,
    max_size=80,
)


@settings(max_examples=60, deadline=None)
@given(arrivals, st.tuples(*[st.sampled_from([0.5, 1.0, 3.0])] * 3))
def test_of_any_two_that_wait_neither_gets_more_than_the_bound_ahead(
    asked: list[tuple[str, int, int, int]], chosen: tuple[float, float, float]
) -> None:
    """|W_f / w_f - W_g / w_g| <= 2 U / min(w): U, what one client's running requests may still get, and its next."""
    world, weights = World(), dict(zip("abc", chosen, strict=True))
    most = (world.cost.input + world.cost.output) * LONGEST * ROWS
    begun: dict[tuple[str, str], dict[str, float]] = {}
    todo = list(asked)
    pause = 0
    while todo or world.engine.has_work:
        while todo and pause == 0:
            who, prompt, answer, pause = todo.pop(0)
            world.ask(who, weight=weights[who], prompt=prompt, answer=answer)
        pause = max(pause - 1, 0)
        if not world.engine.has_work:
            continue
        world.step()
        waiting = world.waiting()
        for f, g in (("a", "b"), ("a", "c"), ("b", "c")):
            if not {f, g} <= waiting:
                begun.pop((f, g), None)
                continue
            then = begun.setdefault((f, g), dict(world.served))
            got_f, got_g = ((world.served[each] - then.get(each, 0.0)) / weights[each] for each in (f, g))
            assert abs(got_f - got_g) <= 2 * most / min(weights[f], weights[g])
    world.engine.scheduler.pool.check_integrity()


def test_a_flood_does_not_keep_a_newcomer_waiting_and_without_the_order_it_does() -> None:
    def place(world: World) -> int:
        for _ in range(60):
            world.ask("flood")
        world.step()
        quiet = world.ask("quiet")
        world.drive()
        ends = [output.request_id for output in world.outputs if output.finish is not None]
        return ends.index(quiet)

    fair = World()
    control = World()
    control.engine = Engine(
        ScriptedRunner(BLOCKS, SIZE),
        EngineConfig(max_batch_tokens=32, max_sequences=ROWS, max_prefill_chunk=16),
        None,
        control.outputs.extend,
    )

    assert place(fair) <= 2 * ROWS
    assert place(control) == 60


@pytest.mark.parametrize("weight", [1.0, 2.0, 4.0])
def test_service_follows_the_weights_while_both_wait(weight: float) -> None:
    world = World()
    for _ in range(400):
        world.ask("heavy", weight=weight)
        world.ask("light")
    world.step()
    while world.waiting() == {"heavy", "light"}:
        world.step()

    assert world.served["heavy"] / world.served["light"] == pytest.approx(weight, rel=0.1)


def test_tenants_of_a_higher_priority_go_first_and_are_fair_among_themselves() -> None:
    world = World()
    for _ in range(20):
        world.ask("low", priority=-1)
        world.ask("a")
        world.ask("b")
    world.drive()
    ends = [world.requests[output.request_id] for output in world.outputs if output.finish is not None]

    assert set(ends[:40]) == {"a", "b"}
    assert 8 <= ends[:20].count("a") <= 12


def test_what_leaves_the_queue_is_charged_to_nobody() -> None:
    world = World()
    for _ in range(20):
        world.ask("a")
    world.step()
    gone = [world.ask("b", prompt=24) for _ in range(10)]
    world.step()
    for name in gone:
        world.engine.abort(name)
    world.step()
    stayed = world.ask("b")
    world.drive()
    ends = [output for output in world.outputs if output.finish is not None]

    aborted = [output for output in ends if output.finish is FinishReason.ABORT]
    never = [output for output in aborted if output.num_generated == 0 and output.num_prompt == 0]
    assert len(never) >= 10 - ROWS
    order = [output.request_id for output in ends if output.finish is not FinishReason.ABORT]
    assert order.index(stayed) < 15
