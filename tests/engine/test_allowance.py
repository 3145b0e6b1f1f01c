"""What an allowance promises: not a token past it, nobody held up by who has none, and a word to whoever can help."""

import threading
import time

import pytest

from engine.allowance import Allowance
from engine.blocks import BlockPool
from engine.config import EngineConfig
from engine.loop import Engine
from engine.output import GenerateRequest, Output
from engine.params import SamplingParams
from engine.sequence import FinishReason, Status
from tests.engine.scripted import ScriptedRunner
from tests.engine.test_loop import WAIT_S, Listener, spelled
from tests.engine.test_scheduler import Bench, rows


def request(name: str, allowance: Allowance | None, n: int = 1, deadline: float | None = None) -> GenerateRequest:
    params = SamplingParams(max_tokens=40)
    return GenerateRequest(name, (1, 2, 3), params, n=n, deadline=deadline, allowance=allowance)


def engine(runner: ScriptedRunner, listener: Listener, now: list[float] | None = None, **config: int) -> Engine:
    clock = time.monotonic if now is None else lambda: now[0]
    return Engine(runner, EngineConfig(**({"max_sequences": 8} | config)), spelled, listener, clock=clock)


def drive(served: Engine) -> None:
    while served.has_work:
        served.step()
        served.scheduler.pool.check_integrity(served.scheduler.running)


def tokens(outputs: list[Output]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


def test_an_answer_stops_at_the_edge_goes_on_when_granted_and_ends_when_closed() -> None:
    runner, listener = ScriptedRunner(), Listener()
    served = engine(runner, listener)
    allowance = Allowance(5)
    served.submit(request("a", allowance))
    drive(served)

    assert tokens(listener.of("a")) == runner.undisturbed((1, 2, 3), 5)
    assert [output.short for output in listener.of("a")] == [False] * 5 + [True]
    assert served.stats.parked == 1

    allowance.granted = 7
    served.nudge()
    drive(served)

    assert allowance.used == 7
    assert [output.short for output in listener.of("a")][6:] == [False, False, True]

    allowance.closed = True
    served.nudge()
    drive(served)

    last = listener.of("a")[-1]
    assert (last.finish, last.limited, last.num_generated) == (FinishReason.LENGTH, True, 7)
    assert tokens(listener.of("a")) == runner.undisturbed((1, 2, 3), 7)
    assert served.stats.parked == served.stats.running == 0


def test_what_is_closed_may_still_be_used_up() -> None:
    runner, listener = ScriptedRunner(), Listener()
    served = engine(runner, listener)
    served.submit(request("a", Allowance(5, closed=True)))
    drive(served)

    assert len(tokens(listener.of("a"))) == 5
    assert not any(output.short for output in listener.of("a"))
    assert listener.of("a")[-1].limited


def test_a_limit_that_is_just_met_is_no_limit() -> None:
    listener = Listener()
    served = engine(ScriptedRunner(), listener)
    allowance = Allowance(40, closed=True)
    served.submit(request("a", allowance))
    drive(served)

    assert allowance.used == 40
    assert (listener.of("a")[-1].finish, listener.of("a")[-1].limited) == (FinishReason.LENGTH, False)


def test_nothing_is_produced_once_a_lease_has_run_out() -> None:
    now = [0.0]
    listener = Listener()
    served = engine(ScriptedRunner(), listener, now)
    allowance = Allowance(30, good_until=10.0)
    served.submit(request("a", allowance))
    for _ in range(4):
        served.step()
    now[0] = 10.0
    drive(served)

    assert allowance.used == 4
    assert listener.of("a")[-1].short

    allowance.good_until = 20.0
    served.nudge()
    served.step()

    assert allowance.used == 5


def test_tokens_whose_text_is_withheld_are_told_of_at_once_and_flushed_at_the_end() -> None:
    runner, listener = ScriptedRunner(), Listener()
    runner.script["a"] = [ord(c) for c in "a~~~~~"]
    served = engine(runner, listener)
    allowance = Allowance(2)
    served.submit(request("a", allowance))
    drive(served)

    assert [(output.text, output.num_generated) for output in listener.of("a")] == [("a", 1), ("", 2), ("", 2)]

    allowance.closed = True
    served.nudge()
    drive(served)

    assert (listener.of("a")[-1].text, listener.of("a")[-1].token_ids) == ("~", (126,))
    assert listener.of("a")[-1].limited


@pytest.mark.parametrize("granted", [1, 7, 8, 9, 10, 30])
def test_choices_take_turns_and_share_evenly(granted: int) -> None:
    runner, listener = ScriptedRunner(), Listener()
    served = engine(runner, listener)
    allowance = Allowance(granted, closed=True)
    served.submit(request("a", allowance, n=3))
    drive(served)

    counts = [listener.of("a", index)[-1].num_generated for index in range(3)]
    assert counts == [granted // 3 + (index < granted % 3) for index in range(3)]
    assert allowance.used == granted


def test_requests_of_one_call_share_its_allowance() -> None:
    listener = Listener()
    served = engine(ScriptedRunner(), listener)
    allowance = Allowance(11, closed=True)
    served.submit(request("a", allowance))
    served.submit(request("b", allowance))
    drive(served)

    assert [listener.of(name)[-1].num_generated for name in "ab"] == [6, 5]


def test_who_has_nothing_left_is_the_first_to_give_blocks_whatever_the_standing() -> None:
    bench = Bench(num_blocks=6)
    (parked,) = bench.add("parked", 8, priority=5)
    parked.allowance = Allowance(1)
    bench.scheduler.rations.add(parked)
    (moving,) = bench.add("moving", 7, priority=0)
    (cheap,) = bench.add("cheap", 3, priority=-1)
    for _ in range(12):
        if parked.num_preemptions:
            break
        bench.scheduler.ration(0.0)
        bench.step()

    assert parked in bench.scheduler.rations.shelved
    assert (parked.status, parked.block_table) == (Status.WAITING, [])
    assert (moving.status, cheap.num_preemptions) == (Status.RUNNING, 0)
    assert bench.scheduler.num_waiting == 1


def test_who_has_nothing_left_keeps_no_place_from_others() -> None:
    runner, listener = ScriptedRunner(), Listener()
    served = engine(runner, listener, max_sequences=1)
    allowance = Allowance(2)
    served.submit(request("a", allowance))
    drive(served)
    served.submit(request("b", None))
    drive(served)

    assert listener.of("b")[-1].finish is FinishReason.LENGTH

    allowance.granted = 40
    served.nudge()
    drive(served)

    assert tokens(listener.of("a")) == runner.undisturbed((1, 2, 3), 40)


def test_who_has_nothing_to_begin_with_computes_nothing() -> None:
    runner, listener = ScriptedRunner(), Listener()
    served = engine(runner, listener)
    allowance = Allowance(0)
    served.submit(request("a", allowance))
    drive(served)

    assert runner.batches == []
    assert [output.short for output in listener.of("a")] == [True]
    assert served.stats.waiting == 1

    allowance.closed = True
    served.nudge()
    drive(served)

    assert runner.batches == []
    assert (listener.of("a")[-1].finish, listener.of("a")[-1].limited) == (FinishReason.LENGTH, True)


def test_shared_blocks_of_the_parked_deadlock_nobody() -> None:
    """Two choices share every full block of their prompt, so that neither alone would free one."""
    runner, listener = ScriptedRunner(num_blocks=6, block_size=4), Listener()
    pool = BlockPool(6, 4)
    settings = EngineConfig(max_sequences=4)
    served = Engine(runner, settings, None, listener, pool=pool)
    prompt = tuple(range(16))
    params = SamplingParams(max_tokens=4)
    allowance = Allowance(2)
    served.submit(GenerateRequest("a", prompt, params, n=2, allowance=allowance))
    drive(served)
    served.submit(GenerateRequest("b", tuple(range(50, 70)), params))
    drive(served)

    assert listener.of("b")[-1].finish is FinishReason.LENGTH

    allowance.granted = 8
    served.nudge()
    drive(served)

    assert [listener.of("a", index)[-1].num_generated for index in range(2)] == [4, 4]


def test_a_prompt_is_computed_but_for_its_last_token_where_the_grant_ran_out_on_the_way() -> None:
    bench = Bench(max_prefill_chunk=4)
    (made,) = bench.add("a", 10)
    made.allowance = Allowance(1)
    bench.scheduler.rations.add(made)
    bench.scheduler.ration(0.0)
    bench.step()
    made.allowance.granted = 0
    taken = []
    for _ in range(4):
        bench.scheduler.ration(0.0)
        batch = bench.step()
        taken.append(rows(batch) if batch is not None else None)

    assert taken == [[("a", 4, 4, False)], [("a", 8, 1, False)], None, None]
    assert not bench.scheduler.has_work


def test_an_engine_whose_answers_are_all_short_sleeps_until_it_is_nudged() -> None:
    listener = Listener()
    served = engine(ScriptedRunner(), listener)
    steps = []
    step = served.step

    def counted() -> None:
        steps.append(1)
        step()

    served.step = counted  # type: ignore[method-assign]
    allowance = Allowance(3)
    with served:
        served.submit(request("a", allowance))
        listener.wait(lambda: any(output.short for output in listener.of("a")))
        asleep = len(steps)
        allowance.granted = 40
        served.nudge()
        listener.wait(lambda: bool(listener.ended()))

    assert asleep == 4
    assert len(steps) == asleep + 37


def test_a_deadline_wakes_an_engine_whose_answers_are_all_short() -> None:
    now = [0.0]
    listener = Listener()
    served = engine(ScriptedRunner(), listener, now)
    with served:
        served.submit(request("a", Allowance(3), deadline=0.05))
        listener.wait(lambda: any(output.short for output in listener.of("a")))
        now[0] = 0.05  # nobody nudges: the sleep itself is bounded by the deadline
        listener.wait(lambda: bool(listener.ended()))

    assert (listener.ended()[0].finish, listener.ended()[0].error) == (FinishReason.ERROR, "deadline")


def test_grants_from_another_thread_lose_nobody() -> None:
    """A reader for each answer grants a token or two whenever the engine says that it is short."""
    runner, listener = ScriptedRunner(), Listener()
    allowances = {f"r{i}": Allowance(i % 3) for i in range(12)}
    pending: list[str] = []
    ready = threading.Condition()

    def deliver(outputs: list[Output]) -> None:
        listener(outputs)
        with ready:
            pending.extend(output.request_id for output in outputs if output.short)
            ready.notify()

    served = Engine(runner, EngineConfig(max_sequences=5), spelled, deliver)
    done = threading.Event()

    def grant() -> None:
        while not done.is_set():
            with ready:
                ready.wait_for(lambda: bool(pending) or done.is_set(), 0.05)
                names, pending[:] = list(pending), []
            for name in names:
                allowance = allowances[name]
                if not allowance.left(0.0):
                    allowance.granted = allowance.used + 1 + allowance.used % 2
                served.nudge()

    granter = threading.Thread(target=grant)
    granter.start()
    with served:
        for name, allowance in allowances.items():
            served.submit(request(name, allowance))
        with listener._changed:
            assert listener._changed.wait_for(lambda: len(listener.ended()) == 12, WAIT_S)
    done.set()
    granter.join()

    for name in allowances:
        assert tokens(listener.of(name)) == runner.undisturbed((1, 2, 3), 40)


def test_those_who_wait_for_a_quota_and_give_way_by_dozens_are_no_storm() -> None:
    runner, listener = ScriptedRunner(), Listener()
    served = engine(runner, listener, max_sequences=20)
    for number in range(20):
        served.submit(request(f"short-{number}", Allowance(1)))
    drive(served)
    for number in range(20):
        served.submit(request(f"other-{number}", None))
    drive(served)

    assert served.stats.preemptions == 20
    assert served.stats.preemption_storms == 0
