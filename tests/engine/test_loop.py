"""What the engine promises to those who submit, abort and listen."""

import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from engine.config import EngineConfig
from engine.errors import DuplicateRequest, EngineStopped, InvalidParams, PromptEmpty, PromptTooLong, QueueFull
from engine.loop import Engine
from engine.output import GenerateRequest, Output
from engine.params import SamplingParams
from engine.sequence import FinishReason, Sequence
from tests.engine.scripted import ScriptedRunner, Spelled

WAIT_S = 60.0


class Listener:
    """Collects what the engine delivers, and tells when so many answers have ended."""

    def __init__(self) -> None:
        self.calls: list[list[Output]] = []
        self.threads: set[int] = set()
        self._changed = threading.Condition()

    def __call__(self, outputs: list[Output]) -> None:
        with self._changed:
            self.calls.append(outputs)
            self.threads.add(threading.get_ident())
            self._changed.notify_all()

    def of(self, request_id: str, index: int = 0) -> list[Output]:
        return [o for call in self.calls for o in call if (o.request_id, o.index) == (request_id, index)]

    def ended(self) -> list[Output]:
        return [output for call in self.calls for output in call if output.finish is not None]

    def wait(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, WAIT_S)


def spelled(sequence: Sequence) -> Spelled:
    return Spelled(sequence.params.stop)


def engine(runner: ScriptedRunner, listener: Callable[[list[Output]], None], **config: int) -> Engine:
    return Engine(runner, EngineConfig(**config), spelled, listener)


def request(name: str, prompt: tuple[int, ...] = (1, 2, 3), n: int = 1, **params: object) -> GenerateRequest:
    own = {key: params.pop(key) for key in ("deadline", "priority", "salt") if key in params}
    return GenerateRequest(name, prompt, SamplingParams(**({"max_tokens": 4} | params)), n=n, **own)


def drive(served: Engine) -> None:
    while served.has_work:
        served.step()
    served.scheduler.pool.check_integrity()


def answer(text: str, **params: object) -> tuple[list[Output], str]:
    """Let the runner say `text`, and give the outputs and their texts together."""
    runner, listener = ScriptedRunner(), Listener()
    served = engine(runner, listener)
    runner.script["a"] = [ord(character) for character in text]
    served.submit(request("a", **({"max_tokens": len(text)} | params)))
    drive(served)
    outputs = listener.of("a")
    return outputs, "".join(output.text for output in outputs)


def test_an_answer_comes_token_by_token_and_ends_once() -> None:
    outputs, text = answer("hello")

    assert text == "hello"
    assert [output.token_ids for output in outputs] == [(ord(character),) for character in "hello"]
    assert [output.finish for output in outputs] == [None] * 4 + [FinishReason.LENGTH]
    assert (outputs[-1].num_prompt, outputs[-1].num_cached, outputs[-1].num_generated) == (3, 0, 5)


def test_a_token_travels_with_the_last_byte_of_its_text() -> None:
    outputs, text = answer("a~b~", logprobs=0)

    assert text == "a~b~"
    assert [output.text for output in outputs] == ["a", "~b", "~"]
    assert [output.token_ids for output in outputs] == [(97,), (126, 98), (126,)]
    assert [[-l.chosen for l in output.logprobs or ()] for output in outputs] == [[97], [126, 98], [126]]  # noqa: E741


def test_a_stop_string_ends_the_answer_is_cut_off_and_counts() -> None:
    outputs, text = answer("ab~.cd", stop=(".",))

    assert text == "ab~"
    assert (outputs[-1].finish, outputs[-1].stop) == (FinishReason.STOP, ".")
    assert [token for output in outputs for token in output.token_ids] == [97, 98, 126]
    assert outputs[-1].num_generated == 4


def test_a_stop_string_at_the_length_limit_is_a_stop() -> None:
    outputs, text = answer("ab.", stop=(".",))

    assert text == "ab"
    assert (outputs[-1].finish, outputs[-1].stop, outputs[-1].num_generated) == (FinishReason.STOP, ".", 3)


def test_the_first_min_tokens_do_not_end_an_answer() -> None:
    outputs, text = answer("a.b.c", stop=(".",), min_tokens=2)

    assert text == "a.b"
    assert outputs[-1].num_generated == 4


def test_a_stop_token_is_counted_but_not_given_out() -> None:
    outputs, text = answer("ab~!c", stop_token_ids=frozenset({ord("!")}))

    assert text == "ab~"
    assert (outputs[-1].finish, outputs[-1].stop, outputs[-1].num_generated) == (FinishReason.STOP, ord("!"), 4)
    assert [token for output in outputs for token in output.token_ids] == [97, 98, 126]


def test_a_stop_token_is_given_out_when_included() -> None:
    outputs, text = answer("ab!c", stop_token_ids=frozenset({ord("!")}), include_stop=True)

    assert text == "ab!"
    assert outputs[-1].stop == ord("!")


def test_without_text_streams_the_tokens_come_alone() -> None:
    runner, listener = ScriptedRunner(), Listener()
    served = Engine(runner, EngineConfig(), None, listener)
    served.submit(request("a"))
    drive(served)

    assert [o.token_ids[0] for o in listener.of("a")] == runner.undisturbed((1, 2, 3), 4)
    assert {o.text for o in listener.of("a")} == {""}


def test_everything_of_a_step_comes_in_one_call_on_the_engine_s_thread() -> None:
    listener = Listener()
    with engine(ScriptedRunner(), listener) as served:
        with served._wake:  # so that all of them are there when the first step begins
            for i in range(5):
                served.submit(request(f"r{i}", n=2))
        listener.wait(lambda: len(listener.ended()) == 10)

    assert all(len(call) == 10 for call in listener.calls)
    assert len(listener.calls) == 4
    assert listener.threads != {threading.get_ident()}
    assert len(listener.threads) == 1


def test_choices_differ_by_index_and_each_ends() -> None:
    runner, listener = ScriptedRunner(), Listener()
    served = engine(runner, listener)
    prompt = tuple(range(40))
    served.submit(request("a", prompt, n=3))
    drive(served)

    for index in range(3):
        tokens = [token for output in listener.of("a", index) for token in output.token_ids]

        assert tokens == runner.undisturbed(prompt, 4, index=index)
    assert [listener.of("a", index)[-1].num_cached for index in range(3)] == [0, 32, 32]


@pytest.mark.fault_row(24)
def test_an_abort_ends_every_choice_within_one_step_and_frees_its_blocks() -> None:
    runner, listener = ScriptedRunner(), Listener()
    served = engine(runner, listener, max_sequences=3, max_batch_tokens=8)
    served.submit(request("a", tuple(range(40)), n=2, max_tokens=50))
    served.submit(request("b", max_tokens=50))
    for _ in range(8):
        served.step()
    served.abort("a")
    served.step()

    assert [listener.of("a", index)[-1].finish for index in range(2)] == [FinishReason.ABORT] * 2
    assert served.stats.running == 1
    assert served.stats.aborts == 2
    assert set(runner.forgotten) == {s for batch in runner.batches for row in batch.rows if (s := row.sequence).finish}

    served.abort("b")
    served.step()

    assert (served.stats.running, served.stats.free_blocks + served.stats.cached_blocks) == (0, 64)
    served.scheduler.pool.check_integrity()


def test_an_abort_reaches_a_request_that_was_not_looked_at_yet() -> None:
    listener = Listener()
    served = engine(ScriptedRunner(), listener)
    served.submit(request("a"))
    served.abort("a")
    drive(served)

    assert [output.finish for output in listener.of("a")] == [FinishReason.ABORT]


def test_aborting_twice_or_too_late_or_nobody_does_nothing() -> None:
    listener = Listener()
    served = engine(ScriptedRunner(), listener)
    served.abort("nobody")

    assert not served.has_work

    served.submit(request("a"))
    served.step()
    served.abort("a")
    served.abort("a")
    drive(served)
    served.abort("a")
    drive(served)

    assert len(listener.ended()) == 1


def test_an_id_is_free_again_when_its_request_has_ended() -> None:
    listener = Listener()
    served = engine(ScriptedRunner(), listener)
    served.submit(request("a"))
    with pytest.raises(DuplicateRequest):
        served.submit(request("a"))
    drive(served)
    served.submit(request("a"))
    drive(served)

    assert len(listener.ended()) == 2


@pytest.mark.fault_row(37)
def test_a_failing_step_ends_who_makes_it_fail_and_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    runner, listener = ScriptedRunner(), Listener()
    runner.fail_on = {"bad"}
    served = engine(runner, listener, max_sequences=2)
    for name in ("good", "bad", "later"):
        served.submit(request(name))
    served.step()

    assert listener.of("bad")[-1].error == "the step failed: RuntimeError('the device is gone')"
    assert [output.finish for output in listener.of("good")] == [None]
    assert listener.of("later") == []

    drive(served)

    assert listener.of("later")[-1].finish is FinishReason.LENGTH
    assert "the device is gone" in caplog.text
    assert served.stats.free_blocks == 64


def test_a_listener_that_fails_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[list[Output]] = []

    def fail_first(outputs: list[Output]) -> None:
        calls.append(outputs)
        if len(calls) == 1:
            raise RuntimeError("the event loop is closed")

    served = engine(ScriptedRunner(), fail_first)
    served.submit(request("a"))
    drive(served)

    assert len(calls) == 4
    assert "could not be handed over" in caplog.text


def test_an_error_of_our_own_ends_every_request_and_the_loop_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    listener = Listener()
    served = engine(ScriptedRunner(), listener)
    schedule = served.scheduler.schedule

    def broken() -> None:
        served.scheduler.schedule = schedule  # type: ignore[method-assign]
        raise ValueError("a bug")

    served.scheduler.schedule = broken  # type: ignore[method-assign]
    with served:
        served.submit(request("a"))
        listener.wait(lambda: bool(listener.ended()))
        served.submit(request("b"))
        listener.wait(lambda: len(listener.ended()) == 2)

    assert [output.finish for output in listener.ended()] == [FinishReason.ERROR, FinishReason.LENGTH]
    assert listener.ended()[0].error == "the engine failed: ValueError('a bug')"


@pytest.mark.parametrize("threaded", [False, True])
def test_stopping_leaves_nobody_waiting(threaded: bool) -> None:
    runner, listener = ScriptedRunner(max_model_len=100_000, num_blocks=10_000), Listener()
    served = engine(runner, listener, max_sequences=1)
    if threaded:
        served.start()
    for name in ("running", "waiting"):
        served.submit(request(name, max_tokens=90_000))
    if threaded:
        listener.wait(lambda: bool(listener.calls))
    else:
        served.step()
    served.submit(request("unseen", max_tokens=90_000))

    assert served.stop(WAIT_S)
    assert {output.request_id: output.error for output in listener.ended()} == dict.fromkeys(
        ("running", "waiting", "unseen"), "the engine was stopped"
    )
    with pytest.raises(EngineStopped):
        served.submit(request("late"))
    served.abort("running")

    assert served.stop(WAIT_S)
    assert len(listener.ended()) == 3
    served.scheduler.pool.check_integrity()


def test_an_idle_engine_sleeps() -> None:
    listener = Listener()
    served = engine(ScriptedRunner(), listener)
    steps = []
    step = served.step
    served.step = lambda: (steps.append(1), step())[1]  # type: ignore[method-assign]
    with served:
        for name in ("a", "b"):
            served.submit(request(name, max_tokens=3))
            listener.wait(lambda name=name: any(o.finish for o in listener.of(name)))

    assert len(steps) == 6


def test_requests_from_many_threads_each_end_once() -> None:
    listener = Listener()
    with engine(ScriptedRunner(), listener, max_sequences=16) as served:

        def client(name: str) -> None:
            for i in range(10):
                served.submit(request(f"{name}-{i}", n=2))
                if i % 3 == 0:
                    served.abort(f"{name}-{i}")

        clients = [threading.Thread(target=client, args=(f"c{i}",)) for i in range(8)]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join()
        listener.wait(lambda: len(listener.ended()) == 160)

    assert len({(output.request_id, output.index) for output in listener.ended()}) == 160
    assert not served._live
    assert not served._tickets
    served.scheduler.pool.check_integrity()


def test_a_request_that_waits_past_its_deadline_ends_with_that_reason() -> None:
    runner, listener = ScriptedRunner(), Listener()
    now = [0.0]
    served = Engine(runner, EngineConfig(max_sequences=1), spelled, listener, clock=lambda: now[0])
    served.submit(request("a"))
    served.submit(request("b", deadline=5.0))
    served.step()
    now[0] = 5.0
    served.step()

    assert [(output.finish, output.error) for output in listener.of("b")] == [(FinishReason.ERROR, "deadline")]

    drive(served)

    assert listener.of("a")[-1].finish is FinishReason.LENGTH


def test_too_many_waiting_requests_are_refused() -> None:
    served = engine(ScriptedRunner(), Listener(), max_sequences=1, max_waiting=2)
    served.submit(request("a"))
    served.step()
    served.submit(request("b"))
    served.submit(request("c"))
    with pytest.raises(QueueFull) as refused:
        served.submit(request("d"))

    assert refused.value.limit == 2

    served.step()
    with pytest.raises(QueueFull):
        served.submit(request("d"))
    drive(served)
    served.submit(request("d"))


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (request("a", ()), PromptEmpty, "no token"),
        (request("a", tuple(range(512))), PromptTooLong, "512 tokens, and the model's context length is 512"),
        (request("a", (1, 1000)), InvalidParams, "prompt: expected token ids from 0 to 999, got 1000"),
        (request("a", (-1, 5)), InvalidParams, "prompt: expected token ids from 0 to 999, got -1"),
        (request("a", n=0), InvalidParams, "n: expected at least 1, got 0"),
        (request("a", temperature=-1.0), InvalidParams, "temperature"),
        (request("a", stop_token_ids=frozenset({1000})), InvalidParams, "stop_token_ids"),
    ],
)
def test_what_is_wrong_is_refused_at_submit(wrong: GenerateRequest, error: type[Exception], message: str) -> None:
    served = engine(ScriptedRunner(), Listener())
    with pytest.raises(error, match=message):
        served.submit(wrong)

    assert not served.has_work


def test_the_stats_are_those_of_the_last_step() -> None:
    listener = Listener()
    served = engine(ScriptedRunner(), listener, max_sequences=2, max_batch_tokens=4)
    for i in range(3):
        served.submit(request(f"r{i}", tuple(range(20))))
    served.step()

    assert (served.stats.running, served.stats.waiting) == (1, 2)
    assert served.stats.waiting_prefill_tokens == 16 + 2 * 20

    drive(served)
    served.step()

    stats = served.stats
    assert (stats.running, stats.waiting, stats.waiting_prefill_tokens) == (0, 0, 0)
    assert (stats.prompt_tokens, stats.generated_tokens, stats.cached_tokens) == (60, 12, 32)
    assert 0 < stats.step_share_outside_model <= 1
    assert stats.step_s > 0
    assert stats.prefill_tokens_per_s > 0


def test_the_brain_imports_no_torch() -> None:
    code = "import engine.loop, sys; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
