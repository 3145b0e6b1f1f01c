"""The engine as an upstream: events, counts and errors are exact, and whoever leaves costs nothing more."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
from msgspec.structs import replace

from engine.config import EngineConfig
from engine.errors import EngineError
from engine.load import LoadedModel, LoadOptions, load
from gateway.call import (
    Call,
    ChatPrompt,
    Event,
    FinishReason,
    Model,
    Operation,
    Request,
    Sampling,
    TextPrompt,
    TokenCount,
    Usage,
)
from gateway.configuration.config import EngineModel
from gateway.errors import BadRequest, ContextTooLong, GatewayError, Overloaded, UpstreamError, UpstreamFailure
from gateway.generation import Generation
from gateway.scope import Scope
from gateway.upstreams import engine as door
from gateway.upstreams.engine import CannotLoad, EngineUpstream, translate
from policies.tenant import Tenant
from tests.tiny_model import tiny_model_dir

PROMPT = "The engine reads a batch, writes the keys and values into their blocks."
GREEDY = Sampling(temperature=0.0, ignore_eos=True)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_dir(tmp_path_factory.mktemp("engine"), hidden_size=32, max_positions=256)


@pytest.fixture(scope="module")
def loaded(path: Path) -> LoadedModel:
    return load(path, LoadOptions(num_blocks=128, threads=1))


@pytest.fixture
async def upstream(loaded: LoadedModel) -> AsyncIterator[EngineUpstream]:
    opened = EngineUpstream("local", loaded, EngineConfig(max_sequences=16, max_batch_tokens=128, max_waiting=32))
    yield opened
    await opened.aclose()
    opened._engine.scheduler.pool.check_integrity()


class Calls:
    """Makes calls with ids of their own."""

    def __init__(self) -> None:
        self._made = 0

    def __call__(
        self,
        upstream: EngineUpstream,
        *prompts: str,
        max_tokens: int = 8,
        n: int = 1,
        sampling: Sampling = GREEDY,
        tenant: Tenant | None = None,
    ) -> Call:
        self._made += 1
        now = time.monotonic()
        prompt = TextPrompt(prompts or (PROMPT,))
        request = Request(Operation.COMPLETION, "local", prompt, n=n, max_tokens=max_tokens, sampling=sampling)
        call = Call(f"call{self._made}", "/v1/completions", now, b"{}", {}, request, now + 60, Scope())
        call.tenant = tenant or Tenant("somebody", b"salt")
        call.model = Model("local", (upstream,), 0, "tests", "fp", encoder=upstream.prompts)
        ids = tuple(map(upstream.prompts.tokenize, prompts or (PROMPT,)))
        call.tokens = TokenCount(sum(map(len, ids)), True, max_tokens, ids)
        call.terms = call.tenant.terms("local")
        call.generation = Generation(call.deadline)
        return call


@pytest.fixture
def make_call() -> Calls:
    return Calls()


async def events_of(upstream: EngineUpstream, call: Call) -> list[Event]:
    """Everything that an attempt brings, with the slot leased as dispatch leases it."""
    with upstream.lease():
        reply = await upstream.send(call)
        async with aclosing(reply.events) as events:
            return [event async for event in events]


def text_of(events: list[Event], index: int = 0) -> str:
    return "".join(event.text for event in events if event.index == index)


async def settled(upstream: EngineUpstream) -> None:
    """Wait until the engine has nothing left to do."""
    async with asyncio.timeout(30):
        while upstream._engine.stats.running or upstream._engine.stats.waiting or upstream._engine.has_work:
            await asyncio.sleep(0.005)


async def test_an_answer_comes_in_events_with_one_end_and_one_usage(
    upstream: EngineUpstream, make_call: Calls, loaded: LoadedModel
) -> None:
    call = make_call(upstream)
    events = await events_of(upstream, call)

    token_ids = [token for event in events for token in event.token_ids]
    assert len(token_ids) == 8
    assert text_of(events) == loaded.tokenizer.decode(token_ids)
    assert [event.finish for event in events if event.finish] == [FinishReason.LENGTH]
    assert events[-1].finish is FinishReason.LENGTH
    assert [event.usage for event in events if event.usage] == [Usage(prompt=call.tokens.input, completion=8, cached=0)]
    assert events[-1].usage is not None


async def test_choices_of_several_prompts_have_places_of_their_own(upstream: EngineUpstream, make_call: Calls) -> None:
    sampling = Sampling(temperature=1.0, seed=3, ignore_eos=True)
    call = make_call(upstream, "one prompt", "and another", n=3, sampling=sampling)
    events = await events_of(upstream, call)
    alone = await events_of(upstream, make_call(upstream, "and another", n=3, sampling=sampling))

    assert sorted(event.index for event in events if event.finish) == [0, 1, 2, 3, 4, 5]
    assert [text_of(events, index) for index in (3, 4, 5)] == [text_of(alone, index) for index in (0, 1, 2)]
    assert len({text_of(alone, index) for index in range(3)}) == 3
    assert [event.usage for event in events if event.usage] == [Usage(call.tokens.input, 48, 0)]


async def test_usage_counts_a_shared_prompt_once_and_what_was_cached_of_it(
    upstream: EngineUpstream, make_call: Calls
) -> None:
    prompt = PROMPT * 2
    first = await events_of(upstream, make_call(upstream, prompt))
    second = await events_of(upstream, make_call(upstream, prompt, n=2))
    stranger = await events_of(upstream, make_call(upstream, prompt, tenant=Tenant("other", b"other salt")))

    count = len(upstream.prompts.tokenize(prompt))
    full_blocks = (count - 1) // 16 * 16
    assert full_blocks > 0
    assert first[-1].usage == Usage(count, 8, 0)
    assert second[-1].usage == Usage(count, 16, full_blocks)
    assert stranger[-1].usage == Usage(count, 8, 0)


async def test_logprobs_run_parallel_to_the_tokens(upstream: EngineUpstream, make_call: Calls) -> None:
    events = await events_of(upstream, make_call(upstream, sampling=replace(GREEDY, logprobs=2)))

    for event in events:
        assert [entry.token_id for entry in event.logprobs] == list(event.token_ids)
        for entry in event.logprobs:
            assert len(entry.top) == 2
            assert entry.top[0] == (entry.token_id, entry.logprob)
    without = await events_of(upstream, make_call(upstream))
    assert all(event.logprobs == () for event in without)


async def test_a_stop_string_ends_an_answer_and_is_not_shown(upstream: EngineUpstream, make_call: Calls) -> None:
    whole = text_of(await events_of(upstream, make_call(upstream, max_tokens=12)))
    stop = whole[3:6]
    events = await events_of(upstream, make_call(upstream, max_tokens=12, sampling=replace(GREEDY, stop=(stop,))))

    assert text_of(events) == whole[: whole.index(stop)]
    assert events[-1].finish is FinishReason.STOP


async def test_a_stop_id_ends_an_answer(upstream: EngineUpstream, make_call: Calls) -> None:
    whole = await events_of(upstream, make_call(upstream))
    third = [token for event in whole for token in event.token_ids][2]
    events = await events_of(upstream, make_call(upstream, sampling=replace(GREEDY, stop_token_ids=(third,))))

    assert events[-1].finish is FinishReason.STOP
    assert len([token for event in events for token in event.token_ids]) < 8


async def test_a_seed_repeats_an_answer_and_none_draws_a_new_one(upstream: EngineUpstream, make_call: Calls) -> None:
    def sampled(seed: int | None) -> Call:
        sampling = Sampling(temperature=1.5, seed=seed, ignore_eos=True)
        return make_call(upstream, max_tokens=24, sampling=sampling)

    texts = [text_of(await events_of(upstream, sampled(seed))) for seed in (5, 5, None, None)]
    assert texts[0] == texts[1]
    assert texts[2] != texts[3]


async def test_what_a_request_does_not_say_the_models_makers_say(path: Path, make_call: Calls) -> None:
    stated = json.loads((path / "generation_config.json").read_text())
    try:
        hot = {"temperature": 0.5, "top_k": 7, "top_p": 0.9, "repetition_penalty": 1.5}
        (path / "generation_config.json").write_text(json.dumps(stated | hot))
        upstream = await EngineUpstream.open("local", EngineModel(path=str(path), num_blocks=16, threads=1))
    finally:
        (path / "generation_config.json").write_text(json.dumps(stated))
    silent = upstream._params(make_call(upstream, sampling=Sampling()).request, 8)
    saying = upstream._params(make_call(upstream, sampling=Sampling(temperature=0.0, top_k=-1, top_p=1.0)).request, 8)
    await upstream.aclose()

    assert (silent.temperature, silent.top_k, silent.top_p, silent.repetition_penalty) == (0.5, 7, 0.9, 1.5)
    assert (saying.temperature, saying.top_k, saying.top_p, saying.repetition_penalty) == (0.0, 0, 1.0, 1.5)
    assert silent.stop_token_ids == {2}


async def test_no_tokens_asked_for_are_an_answer_too(upstream: EngineUpstream, make_call: Calls) -> None:
    call = make_call(upstream, "one", "two", max_tokens=0)
    events = await events_of(upstream, call)

    assert [(event.index, event.text, event.finish) for event in events] == [
        (0, "", FinishReason.LENGTH),
        (1, "", FinishReason.LENGTH),
    ]
    assert [event.usage for event in events if event.usage] == [Usage(prompt=call.tokens.input)]


async def test_an_answer_that_is_closed_before_its_first_event_is_aborted(
    upstream: EngineUpstream, make_call: Calls
) -> None:
    with upstream.lease():
        reply = await upstream.send(make_call(upstream, max_tokens=150, n=4))
        await reply.events.aclose()
        await reply.events.aclose()
    await settled(upstream)

    assert upstream._engine.stats.aborts == 4
    assert upstream._engine.stats.generated_tokens < 600
    assert upstream._answers == {}
    assert upstream.room().slots == 48


async def test_a_reader_that_is_cancelled_aborts_its_answer(upstream: EngineUpstream, make_call: Calls) -> None:
    started = asyncio.Event()

    async def read() -> None:
        with upstream.lease():
            reply = await upstream.send(make_call(upstream, max_tokens=180))
            async with aclosing(reply.events) as events:
                async for _ in events:
                    started.set()

    task = asyncio.ensure_future(read())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await settled(upstream)

    assert upstream._engine.stats.aborts == 1
    assert upstream.room().slots == 48


async def test_many_answers_at_once_end_each_exactly_once_and_leave_nothing(
    upstream: EngineUpstream, make_call: Calls
) -> None:
    async def read(place: int) -> str | None:
        with upstream.lease():
            reply = await upstream.send(make_call(upstream, f"prompt number {place}", max_tokens=10 + place % 7))
            async with aclosing(reply.events) as events:
                text, ends = "", 0
                async for event in events:
                    text += event.text
                    ends += event.finish is not None
                    if place % 3 == 0:
                        return None
                assert ends == 1
                return text

    crossings = 0
    route = upstream._route

    def counted(outputs: list[object]) -> None:
        nonlocal crossings
        crossings += 1
        route(outputs)  # type: ignore[arg-type]

    upstream._route = counted  # type: ignore[method-assign, assignment]
    texts = await asyncio.gather(*map(read, range(40)))
    await settled(upstream)

    stats = upstream._engine.stats
    assert texts[1] == text_of(await events_of(upstream, make_call(upstream, "prompt number 1", max_tokens=11)))
    assert sum(text is None for text in texts) == 14
    assert crossings <= stats.steps + stats.aborts
    assert upstream._answers == {}
    assert upstream.room().slots == 48
    assert upstream._engine.stats.free_blocks + upstream._engine.stats.cached_blocks == 128


async def test_room_is_what_is_left_to_run_and_to_wait(upstream: EngineUpstream, make_call: Calls) -> None:
    assert upstream.room().slots == 48
    assert upstream.room().free_blocks == 128
    with upstream.lease(), upstream.lease():
        assert upstream.room().slots == 46
        reply = await upstream.send(make_call(upstream, n=5))
        assert upstream.room().slots == 42
        await reply.events.aclose()
        assert upstream.room().slots == 46
    assert upstream.room().slots == 48


async def test_one_answer_too_many_is_refused_and_takes_nothing_with_it(
    path: Path, make_call: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "LAST_WORD_S", 0.0)
    settings = EngineModel(path=str(path), num_blocks=16, max_sequences=2, max_waiting=2, threads=1)
    upstream = await EngineUpstream.open("local", settings)
    # Nothing is scheduled while the engine's lock is held, so what is submitted stays in the inbox.
    with upstream.lease(), upstream._engine._wake, pytest.raises(Overloaded) as refused:
        await upstream.send(make_call(upstream, *["a", "b", "c", "d"], n=2))
    await settled(upstream)
    assert upstream.room().slots == 4
    assert upstream._answers == {}
    await upstream.aclose()

    assert refused.value.code == "queue_full"
    assert refused.value.headers["retry-after"] == "1"


async def test_too_long_a_prompt_is_refused_with_both_numbers(upstream: EngineUpstream, make_call: Calls) -> None:
    call = make_call(upstream, "word " * 300)
    with upstream.lease(), pytest.raises(ContextTooLong, match=f"256 tokens.*{call.tokens.input} tokens") as refused:
        await upstream.send(call)

    assert (refused.value.status, refused.value.code) == (400, "context_length_exceeded")


async def test_a_parameter_out_of_range_is_refused_by_name(upstream: EngineUpstream, make_call: Calls) -> None:
    call = make_call(upstream, sampling=Sampling(logit_bias={99_999: 1.0}))
    with (
        upstream.lease(),
        pytest.raises(BadRequest, match="Invalid 'logit_bias': expected token ids from 0 to") as refused,
    ):
        await upstream.send(call)

    assert refused.value.param == "logit_bias"


async def test_a_stopped_engine_ends_answers_with_an_error_and_takes_no_more(path: Path, make_call: Calls) -> None:
    upstream = await EngineUpstream.open("local", EngineModel(path=str(path), num_blocks=32, threads=1))
    with upstream.lease():
        reply = await upstream.send(make_call(upstream, max_tokens=200))
        closing = asyncio.ensure_future(upstream.aclose())
        with pytest.raises(UpstreamError, match="stopped") as ended:
            async for _ in reply.events:
                pass
        await reply.events.aclose()
        await closing
    assert ended.value.kind is UpstreamFailure.ENGINE

    with upstream.lease(), pytest.raises(UpstreamError) as refused:
        await upstream.send(make_call(upstream))
    assert not refused.value.sent


def below(kind: type[EngineError]) -> list[type[EngineError]]:
    return [each for child in kind.__subclasses__() for each in (child, *below(child))]


@pytest.mark.parametrize("kind", below(EngineError))
def test_every_error_of_the_engine_has_a_translation(kind: type[EngineError]) -> None:
    error = kind.__new__(kind)
    error.__dict__ |= {"num_tokens": 9, "limit": 5, "param": "seed", "key": "k", "request_id": "r"}

    assert isinstance(translate(error), GatewayError)


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (Request(Operation.CHAT, "m", ChatPrompt([]), response_format={"type": "json_object"}), "response_format"),
        (Request(Operation.CHAT, "m", ChatPrompt([], tool_choice="required")), "tool_choice"),
        (Request(Operation.CHAT, "m", ChatPrompt([], tool_choice={"type": "function"})), "tool_choice"),
        (Request(Operation.COMPLETION, "m", TextPrompt(("a",), suffix="b")), "suffix"),
        (Request(Operation.COMPLETION, "m", TextPrompt(("a",)), best_of=2), "best_of"),
        (Request(Operation.COMPLETION, "m", TextPrompt(("a",), echo=True), sampling=Sampling(logprobs=1)), "echo"),
    ],
    ids=["format", "required", "named", "suffix", "best_of", "echo"],
)
async def test_what_the_engine_cannot_do_it_says_beforehand(
    upstream: EngineUpstream, request_: Request, param: str
) -> None:
    refusal = upstream.refuses(request_)

    assert refusal is not None
    assert refusal.param == param


async def test_what_it_can_do_it_does_not_refuse(upstream: EngineUpstream) -> None:
    for prompt in (ChatPrompt([], tools=[{}], tool_choice="auto"), TextPrompt(("a",), echo=True)):
        assert upstream.refuses(Request(Operation.CHAT, "m", prompt, best_of=1)) is None


async def test_numbers_are_given_by_the_names_of_the_engines_stats(upstream: EngineUpstream, make_call: Calls) -> None:
    await events_of(upstream, make_call(upstream))

    stats = upstream.stats()
    assert stats["generated_tokens"] == 8
    assert stats["total_blocks"] == 128
    assert upstream.max_context == 256
    assert upstream.fingerprint.startswith("fp_")


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"dtype": "float16"}, "dtype: expected auto"),
        ({"device": "cuda"}, "torch sees no CUDA device"),
        ({"max_sequences": 9999}, "max_batch_tokens: expected at least max_sequences"),
    ],
)
async def test_a_model_that_cannot_be_loaded_is_named(path: Path, settings: dict[str, object], why: str) -> None:
    with pytest.raises(CannotLoad, match=f"model local: {why}"):
        await EngineUpstream.open("local", EngineModel(path=str(path), num_blocks=16, **settings))  # type: ignore[arg-type]
