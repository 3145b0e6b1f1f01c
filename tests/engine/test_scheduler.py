"""What the scheduler promises: who runs, how much, and who gives way."""

from collections.abc import Callable

import pytest

from engine.batch import Batch, Row, Sampled
from engine.blocks import BlockPool
from engine.config import EngineConfig
from engine.errors import InvalidConfig, PromptEmpty, PromptTooLong
from engine.order import FirstCome
from engine.params import SamplingParams
from engine.scheduler import Scheduler
from engine.sequence import FinishReason, Sequence, Status
from tests.engine.scripted import ScriptedRunner

SIZE = 4


class Bench:
    """A scheduler with a scripted runner, stepped by hand."""

    def __init__(self, num_blocks: int = 32, max_model_len: int = 512, **config: int) -> None:
        self.runner = ScriptedRunner(num_blocks, SIZE, max_model_len)
        self.pool = BlockPool(num_blocks, SIZE)
        settings = EngineConfig(**({"max_batch_tokens": 64, "max_sequences": 8, "max_prefill_chunk": 64} | config))
        self.scheduler = Scheduler(settings, self.pool, max_model_len, FirstCome(), self.runner.forget)

    def add(self, name: str, prompt: list[int] | int, n: int = 1, **fields: object) -> list[Sequence]:
        """Add a request; an integer prompt is that many tokens that nobody else has."""
        start = sum(map(ord, name)) * 1000
        tokens = [(start + i) % 999 for i in range(prompt)] if isinstance(prompt, int) else prompt
        own = {key: fields.pop(key) for key in ("priority", "deadline", "salt") if key in fields}
        params = SamplingParams(**({"max_tokens": 100} | fields))
        choices = [Sequence(name, i, list(tokens), len(tokens), params, **own) for i in range(n)]
        self.scheduler.add(choices)
        return choices

    def step(self) -> Batch | None:
        batch = self.scheduler.schedule()
        if batch is not None:
            self.scheduler.commit(batch, self.runner.run(batch))
            self.pool.check_integrity(self.scheduler.running)
        return batch

    def run(self, until: Callable[[], bool] = lambda: False) -> None:
        for _ in range(2000):
            if until() or self.step() is None:
                return
        raise AssertionError("the scheduler does not come to an end")


def rows(batch: Batch | None) -> list[tuple[str, int, int, bool]]:
    assert batch is not None
    return [(row.sequence.request_id, row.start, row.count, row.samples) for row in batch.rows]


def test_running_answers_come_before_prompts_and_the_budget_holds() -> None:
    bench = Bench(max_batch_tokens=8)
    bench.add("a", 5)

    assert rows(bench.step()) == [("a", 0, 5, True)]

    bench.add("b", 20)

    assert rows(bench.step()) == [("a", 5, 1, True), ("b", 0, 7, False)]
    assert rows(bench.step()) == [("a", 6, 1, True), ("b", 7, 7, False)]
    assert rows(bench.step()) == [("a", 7, 1, True), ("b", 14, 6, True)]
    assert rows(bench.step()) == [("a", 8, 1, True), ("b", 20, 1, True)]


@pytest.mark.parametrize("chunk", [1, 3, 4, 64])
def test_chunks_are_as_long_as_said_and_change_no_token(chunk: int) -> None:
    bench = Bench(max_prefill_chunk=chunk)
    (made,) = bench.add("a", 21, max_tokens=5)
    sizes = []
    while made.num_generated == 0:
        batch = bench.step()
        assert batch is not None
        sizes.append(batch.rows[0].count)
    bench.run()

    assert max(sizes) == min(chunk, 21)
    assert made.token_ids[21:] == bench.runner.undisturbed(made.token_ids[:21], 5)


def test_a_flood_of_prompts_never_holds_up_an_answer() -> None:
    bench = Bench(num_blocks=200, max_batch_tokens=8)
    (made,) = bench.add("a", 3)
    bench.step()
    for i in range(20):
        bench.add(f"flood{i}", 30)
        generated = made.num_generated
        bench.step()

        assert made.num_generated == generated + 1


def test_no_more_sequences_run_than_allowed() -> None:
    bench = Bench(max_sequences=2)
    for name in "abc":
        bench.add(name, 5)
    bench.step()

    assert [s.request_id for s in bench.scheduler.running] == ["a", "b"]
    assert bench.scheduler.num_waiting == 1


def test_higher_priority_first_and_arrival_among_equals() -> None:
    bench = Bench(max_sequences=1)
    bench.add("a", 5, priority=0, max_tokens=1)
    bench.add("b", 5, priority=0, max_tokens=1)
    bench.add("c", 5, priority=1, max_tokens=1)

    assert [rows(bench.step())[0][0] for _ in range(3)] == ["c", "a", "b"]


def test_a_higher_priority_takes_the_place_of_the_cheapest_lower_one() -> None:
    bench = Bench(max_sequences=2)
    (long,) = bench.add("long", 20, max_tokens=4)
    (short,) = bench.add("short", 5, max_tokens=4)
    bench.step()
    bench.add("urgent", 5, priority=1, max_tokens=1)
    batch = bench.step()

    assert {row[0] for row in rows(batch)} == {"long", "urgent"}
    assert short.status is Status.WAITING

    bench.run()

    assert short.token_ids[5:] == bench.runner.undisturbed(short.token_ids[:5], 4)
    assert long.token_ids[20:] == bench.runner.undisturbed(long.token_ids[:20], 4)


def test_a_higher_priority_takes_no_more_than_it_needs() -> None:
    bench = Bench(num_blocks=6, max_sequences=4)
    lower = [bench.add(name, 5)[0] for name in "ab"]
    bench.step()
    (urgent,) = bench.add("urgent", 7, priority=1)
    bench.step()

    assert urgent.status is Status.RUNNING
    assert [made.num_preemptions for made in lower] == [0, 0]


def test_who_gave_way_does_not_come_back_in_the_same_step() -> None:
    bench = Bench(num_blocks=16)
    (short,) = bench.add("short", 17)
    (long,) = bench.add("long", 37)
    bench.step()
    bench.add("urgent", 25, priority=1, max_tokens=3)  # takes both their blocks, and leaves enough for the short one

    assert [row[0] for row in rows(bench.step())] == ["urgent"]
    assert [row[0] for row in rows(bench.step())] == ["urgent", "short"]
    assert [made.num_preemptions for made in (short, long)] == [1, 1]


def test_an_urgent_prompt_does_not_wait_for_the_rest_of_a_long_one() -> None:
    bench = Bench(max_batch_tokens=8, num_blocks=100)
    bench.add("long", 100)
    bench.step()
    bench.add("urgent", 5, priority=1)

    assert rows(bench.step()) == [("urgent", 0, 5, True), ("long", 8, 3, False)]


def test_an_equal_priority_does_not_preempt() -> None:
    bench = Bench(max_sequences=1)
    bench.add("a", 5)
    bench.step()
    bench.add("b", 5)
    bench.step()

    assert bench.scheduler.num_preemptions == 0


def test_nothing_is_preempted_for_what_would_not_fit_anyway() -> None:
    bench = Bench(num_blocks=8)
    (high,) = bench.add("high", 20, priority=1)
    (low,) = bench.add("low", 4)
    bench.step()
    bench.add("urgent", 16, priority=1)
    bench.step()

    assert (high.num_preemptions, low.num_preemptions) == (0, 0)


def test_when_blocks_run_out_the_lowest_priority_gives_way_though_it_loses_most() -> None:
    bench = Bench(num_blocks=8)
    (first,) = bench.add("first", 7, priority=1)
    (second,) = bench.add("second", 3, priority=1)
    (low,) = bench.add("low", 11)
    bench.run(until=lambda: bench.scheduler.num_preemptions > 0)

    assert (first.num_preemptions, second.num_preemptions, low.num_preemptions) == (0, 0, 1)


def test_among_equals_the_one_that_loses_the_least_work_gives_way() -> None:
    bench = Bench(num_blocks=10)
    (first,) = bench.add("first", 7)
    (short,) = bench.add("short", 3)
    (long,) = bench.add("long", 13)
    bench.run(until=lambda: bench.scheduler.num_preemptions > 0)

    assert (first.num_preemptions, short.num_preemptions, long.num_preemptions) == (0, 1, 0)


def test_who_stands_lowest_gives_way_itself() -> None:
    bench = Bench(num_blocks=6)
    (first,) = bench.add("first", 8, max_tokens=8)
    (second,) = bench.add("second", 7, max_tokens=8)
    bench.run(until=lambda: bench.scheduler.num_preemptions > 0)

    assert (first.num_preemptions, second.num_preemptions) == (0, 1)

    bench.run()

    for made, num_prompt in ((first, 8), (second, 7)):
        assert made.token_ids[num_prompt:] == bench.runner.undisturbed(made.token_ids[:num_prompt], 8)


def test_a_preempted_answer_is_resumed_before_fresh_requests_and_finds_its_blocks() -> None:
    bench = Bench(num_blocks=12)
    (first,) = bench.add("first", 16, max_tokens=24)
    (second,) = bench.add("second", 20, max_tokens=10)
    bench.run(until=lambda: second.num_preemptions > 0)
    (fresh,) = bench.add("fresh", 4, max_tokens=4)
    lost = len(second.token_ids)
    bench.run(until=lambda: second.num_computed > 0 or fresh.num_computed > 0)
    resumed = next(row for row in bench.runner.batches[-1].rows if row.sequence is second)

    assert first.num_preemptions == 0
    assert 0 < resumed.start < lost

    bench.run()

    assert second.token_ids[20:] == bench.runner.undisturbed(second.token_ids[:20], 10)


def test_preemption_under_overload_repeats_little_work() -> None:
    bench = Bench(num_blocks=40, max_sequences=16)
    made = [bench.add(f"r{i}", 10 + i, max_tokens=40)[0] for i in range(24)]
    bench.run()
    wanted = sum(len(sequence.token_ids) - 1 for sequence in made)

    assert all(sequence.finish is FinishReason.LENGTH for sequence in made)
    assert bench.runner.num_computed_tokens <= 1.25 * wanted


def test_one_request_that_needs_the_whole_pool_finishes() -> None:
    bench = Bench(num_blocks=4)
    (made,) = bench.add("a", 10, max_tokens=1000)
    bench.add("b", 10, max_tokens=1000)
    bench.run()

    assert made.finish is FinishReason.LENGTH
    assert len(made.token_ids) == 16
    assert bench.pool.num_available == 4


def test_the_context_ends_an_answer_at_its_edge() -> None:
    bench = Bench(max_model_len=20)
    (made,) = bench.add("a", 10, max_tokens=1000)
    bench.run()

    assert made.finish is FinishReason.LENGTH
    assert len(made.token_ids) == 20


@pytest.mark.parametrize(("num_blocks", "max_model_len", "limit"), [(4, 512, 16), (32, 20, 20)])
def test_what_can_never_run_is_refused_with_both_numbers(num_blocks: int, max_model_len: int, limit: int) -> None:
    bench = Bench(num_blocks=num_blocks, max_model_len=max_model_len)
    bench.scheduler.check_fits(limit - 1)

    with pytest.raises(PromptTooLong) as refused:
        bench.scheduler.check_fits(limit)

    assert (refused.value.num_tokens, refused.value.limit) == (limit, limit)

    with pytest.raises(PromptEmpty):
        bench.scheduler.check_fits(0)


def test_the_last_token_of_a_known_prompt_is_still_computed() -> None:
    bench = Bench()
    prompt = list(range(16))
    bench.add("a", prompt, max_tokens=1)
    bench.step()
    (again,) = bench.add("b", prompt, max_tokens=1)

    assert rows(bench.step()) == [("b", 12, 4, True)]
    assert again.num_cached == 12


def test_the_choices_of_a_request_wait_for_its_prompt_and_share_it() -> None:
    bench = Bench(max_prefill_chunk=8)
    choices = bench.add("a", 18, n=3, max_tokens=4)
    bench.step()
    bench.step()

    assert bench.scheduler.num_waiting == 2

    bench.step()

    assert [choice.num_cached for choice in choices] == [0, 0, 0]

    bench.step()

    assert [choice.num_cached for choice in choices] == [0, 16, 16]
    assert choices[0].block_table[:4] == choices[1].block_table[:4] == choices[2].block_table[:4]

    bench.run()

    for choice in choices:
        expected = bench.runner.undisturbed(choice.token_ids[:18], 4, index=choice.index)

        assert choice.token_ids[18:] == expected


def test_the_other_choices_go_on_when_the_first_is_aborted() -> None:
    bench = Bench(max_prefill_chunk=4)
    first, second = bench.add("a", 18, n=2, max_tokens=4)
    bench.step()
    bench.scheduler.finish(first, FinishReason.ABORT)
    bench.run()

    assert second.finish is FinishReason.LENGTH
    assert bench.scheduler.num_waiting == 0


def test_a_choice_that_waits_for_its_prompt_can_be_aborted() -> None:
    bench = Bench(max_prefill_chunk=4)
    first, second = bench.add("a", 18, n=2, max_tokens=4)
    bench.step()
    bench.scheduler.finish(second, FinishReason.ABORT)

    assert bench.scheduler.num_waiting == 0

    bench.run()

    assert first.finish is FinishReason.LENGTH
    assert bench.scheduler.num_waiting == 0


def test_stop_tokens_end_an_answer_but_not_before_min_tokens() -> None:
    bench = Bench()
    bench.runner.script = {"a": [7, 8, 7, 9], "b": [7, 8, 7, 9], "c": [1, 7]}
    stops = frozenset({7})
    (early,) = bench.add("c", 5, stop_token_ids=stops, max_tokens=1)
    (now,) = bench.add("a", 5, stop_token_ids=stops)
    (later,) = bench.add("b", 5, stop_token_ids=stops, min_tokens=2)
    bench.run()

    assert (now.finish, now.num_generated) == (FinishReason.STOP, 1)
    assert (later.finish, later.num_generated) == (FinishReason.STOP, 3)
    assert (early.finish, early.num_generated) == (FinishReason.LENGTH, 1)


def test_of_several_accepted_tokens_those_behind_the_end_are_dropped() -> None:
    bench = Bench()
    (made,) = bench.add("a", 5, stop_token_ids=frozenset({7}))
    batch = bench.scheduler.schedule()
    assert batch is not None
    (progress,) = bench.scheduler.commit(batch, [Sampled((1, 2, 7, 3))])

    assert progress.token_ids == (1, 2)
    assert (progress.finish, progress.stop, progress.num_accepted) == (FinishReason.STOP, 7, 3)
    assert made.num_generated == 3


def test_accepted_tokens_count_as_computed_but_for_the_last() -> None:
    bench = Bench()
    (made,) = bench.add("a", 5)
    batch = bench.scheduler.schedule()
    assert batch is not None
    bench.scheduler.commit(batch, [Sampled((1, 2, 3))])

    assert made.num_computed == 7
    assert bench.scheduler.schedule() == Batch((Row(made, 7, 1, True),), 1)


def test_a_row_that_fails_alone_leaves_nothing_in_the_index() -> None:
    bench = Bench()
    (bad,) = bench.add("bad", 20)
    (good,) = bench.add("good", 20)
    prompt = list(bad.token_ids)
    batch = bench.scheduler.schedule()
    assert batch is not None
    bench.scheduler.commit(batch, bench.runner.run(batch))
    batch = bench.scheduler.schedule()
    assert batch is not None
    failed, fine = bench.scheduler.commit(batch, [Sampled((), error="not finite"), Sampled((3,))])

    assert (failed.finish, failed.error) == (FinishReason.ERROR, "not finite")
    assert fine.finish is None
    assert bench.pool.match(Sequence("again", 0, prompt, 20, SamplingParams(max_tokens=1))) == []
    assert good.status is Status.RUNNING
    bench.pool.check_integrity([good])


def test_a_request_ends_at_its_deadline_whether_it_waits_or_runs() -> None:
    bench = Bench(max_sequences=1)
    (running,) = bench.add("a", 5, deadline=1.0)
    bench.step()
    (late,) = bench.add("b", 5, deadline=2.0)
    (patient,) = bench.add("c", 5, deadline=9.0)

    assert bench.scheduler.next_deadline() == 1.0
    assert bench.scheduler.expire(0.5) == []
    assert bench.scheduler.expire(1.5) == [running]
    assert bench.scheduler.expire(2.0) == [late]
    assert (running.finish, late.finish) == (FinishReason.ERROR, FinishReason.ERROR)
    assert patient.status is Status.WAITING
    assert bench.scheduler.next_deadline() == 9.0
    bench.pool.check_integrity()


def test_deadlines_of_those_who_are_gone_are_forgotten() -> None:
    bench = Bench()
    for i in range(2000):
        (made,) = bench.add(f"r{i}", 5, deadline=1e9)
        bench.scheduler.finish(made, FinishReason.ABORT)

    assert len(bench.scheduler._deadlines) < 200


def test_an_aborted_sequence_gives_its_blocks_back_wherever_it_stands() -> None:
    bench = Bench(max_sequences=1, max_prefill_chunk=4)
    (prefilling,) = bench.add("a", 10)
    (waiting,) = bench.add("b", 10)
    bench.step()
    for made in (waiting, prefilling, waiting):
        bench.scheduler.finish(made, FinishReason.ABORT)

    assert bench.pool.num_available == 32
    assert bench.scheduler.schedule() is None
    assert bench.runner.forgotten == [prefilling]


class TurnByTurn:
    """An order that serves the lane which computed the least so far."""

    def __init__(self) -> None:
        self.used: dict[str, int] = {}

    def lane(self, sequence: Sequence) -> str:
        return sequence.order_key

    def rank(self, lane: str) -> float:
        return self.used.get(lane, 0)

    def arrived(self, sequence: Sequence) -> None:
        self.used.setdefault(sequence.order_key, 0)

    def served(self, sequence: Sequence, num_computed: int, num_generated: int) -> None:
        self.used[sequence.order_key] += num_computed + num_generated


def test_an_injected_order_chooses_among_the_waiting() -> None:
    pool = BlockPool(64, SIZE)
    runner = ScriptedRunner(64, SIZE)
    config = EngineConfig(max_batch_tokens=64, max_sequences=1)
    scheduler = Scheduler(config, pool, 512, TurnByTurn(), runner.forget)
    params = SamplingParams(max_tokens=1)
    for name in ("greedy1", "greedy2", "greedy3", "modest1", "modest2"):
        scheduler.add([Sequence(name, 0, [ord(c) for c in name], len(name), params, order_key=name[0])])
    served = []
    while (batch := scheduler.schedule()) is not None:
        served.append(batch.rows[0].sequence.request_id)
        scheduler.commit(batch, runner.run(batch))

    assert served == ["greedy1", "modest1", "greedy2", "modest2", "greedy3"]


@pytest.mark.parametrize(
    ("setting", "value"), [("max_sequences", 0), ("max_prefill_chunk", 0), ("max_waiting", 0), ("max_batch_tokens", 7)]
)
def test_a_wrong_setting_is_refused_with_key_value_and_range(setting: str, value: int) -> None:
    with pytest.raises(InvalidConfig, match=rf"{setting}: expected at least .*, got {value}"):
        EngineConfig(**({"max_sequences": 8} | {setting: value}))
