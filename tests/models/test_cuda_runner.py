"""The CUDA runner, in the emulator and on a card where there is one: its tokens are the CPU runner's."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from engine.batch import Batch, Row
from engine.config import EngineConfig
from engine.cpu_runner import load_cpu_runner
from engine.cuda_runner import CudaRunner, check_model, choose_dtype, load_cuda_runner
from engine.demo.chat import render
from engine.device import Device, open_device
from engine.errors import ModelError
from engine.load import LoadOptions, load, model_directory
from engine.loop import Engine
from engine.memory import GIB, blocks_that_fit, check_weights
from engine.models.config import load_config
from engine.models.decoder import load_decoder
from engine.output import GenerateRequest, Output
from engine.params import SamplingParams
from engine.sequence import FinishReason, Sequence
from engine.text.tokenizer import Tokenizer

DEMO = model_directory("demo")
QUESTIONS = (
    "What is 17 plus 25?",
    "Hello!",
    "What is the capital of France?",
    "Extract the name and the age as JSON: Anna is 31 years old.",
)
GREEDY = SamplingParams(max_tokens=14, temperature=0.0)
DRAWN = SamplingParams(max_tokens=14, temperature=0.7, top_p=0.9, seed=5)
DEVICES = ["emulator", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(scope="module", params=DEVICES)
def device(request: pytest.FixtureRequest) -> Device:
    return open_device(request.param)


@pytest.fixture(scope="module")
def prompts() -> list[tuple[int, ...]]:
    tokenizer = Tokenizer.from_dir(DEMO)
    asked = [render([{"role": "user", "content": question}], open_turn=True) for question in QUESTIONS]
    return [tuple(tokenizer.encode_pieces(text)) for text in asked]


@pytest.fixture(scope="module")
def expected(prompts: list[tuple[int, ...]]) -> list[list[int]]:
    return answers_of(engine_over(load_cpu_runner(DEMO, dtype="bfloat16", kv_bytes=1 << 24)), prompts, GREEDY)


class Watched(Engine):
    """An engine that is driven step by step, and keeps what it gave out."""

    def __init__(self, runner: Any, config: EngineConfig) -> None:
        self.given: dict[str, list[int]] = {}
        self.ends: dict[str, FinishReason] = {}
        super().__init__(runner, config, None, self.take)

    def take(self, outputs: list[Output]) -> None:
        for output in outputs:
            self.given.setdefault(output.request_id, []).extend(output.token_ids)
            if output.finish is not None:
                self.ends[output.request_id] = output.finish


def engine_over(runner: Any, **config: Any) -> Watched:
    return Watched(runner, EngineConfig(**config))


def answers_of(
    engine: Watched, prompts: list[tuple[int, ...]], params: SamplingParams, prefix: str = ""
) -> list[list[int]]:
    names = [f"{prefix}{number}" for number in range(len(prompts))]
    for name, prompt in zip(names, prompts, strict=True):
        engine.submit(GenerateRequest(name, prompt, params))
    while engine.has_work:
        engine.step()
    assert {engine.ends[name] for name in names} == {FinishReason.LENGTH}
    return [engine.given[name] for name in names]


def test_chunked_prompts_and_prefix_hits_give_the_cpu_runners_tokens(
    device: Device, prompts: list[tuple[int, ...]], expected: list[list[int]]
) -> None:
    engine = engine_over(load_cuda_runner(device, DEMO, num_blocks=64), max_prefill_chunk=7)

    assert answers_of(engine, prompts, GREEDY) == expected
    assert answers_of(engine, prompts, GREEDY, "again") == expected
    assert engine.stats.cached_tokens > 0
    engine.scheduler.pool.check_integrity()


def test_a_card_without_wgmma_gives_them_too(prompts: list[tuple[int, ...]], expected: list[list[int]]) -> None:
    device = open_device("emulator")
    device.arch = "sm_80"  # type: ignore[misc]

    assert answers_of(engine_over(load_cuda_runner(device, DEMO, num_blocks=64)), prompts, GREEDY) == expected


def test_preempted_answers_are_the_cpu_runners(
    device: Device, prompts: list[tuple[int, ...]], expected: list[list[int]]
) -> None:
    longest = max(len(prompt) for prompt in prompts) + GREEDY.max_tokens
    engine = engine_over(load_cuda_runner(device, DEMO, num_blocks=-(-longest // 16) + 2), prefix_cache=False)

    assert answers_of(engine, prompts, GREEDY) == expected
    assert engine.stats.preemptions > 0


def test_an_abort_returns_its_blocks_and_disturbs_nobody(
    device: Device, prompts: list[tuple[int, ...]], expected: list[list[int]]
) -> None:
    engine = engine_over(load_cuda_runner(device, DEMO, num_blocks=64), prefix_cache=False)
    for number, prompt in enumerate(prompts):
        engine.submit(GenerateRequest(str(number), prompt, GREEDY))
    for _ in range(5):
        engine.step()
    engine.abort("1")
    while engine.has_work:
        engine.step()

    assert [engine.given[str(number)] for number in (0, 2, 3)] == [expected[number] for number in (0, 2, 3)]
    assert engine.ends["1"] is FinishReason.ABORT
    assert engine.stats.free_blocks == 64


def test_in_deterministic_mode_the_tokens_are_the_same(
    device: Device, prompts: list[tuple[int, ...]], expected: list[list[int]]
) -> None:
    engine = engine_over(load_cuda_runner(device, DEMO, num_blocks=64, deterministic=True))

    assert answers_of(engine, prompts, GREEDY) == expected


def test_drawn_tokens_are_the_same_again_whoever_stands_beside(device: Device, prompts: list[tuple[int, ...]]) -> None:
    runner = load_cuda_runner(device, DEMO, num_blocks=64)
    together = answers_of(engine_over(runner), prompts, DRAWN)

    assert [answers_of(engine_over(runner), [prompt], DRAWN)[0] for prompt in prompts] == together


def test_a_row_that_is_not_finite_fails_alone_and_poisons_nobody(device: Device) -> None:
    runner = load_cuda_runner(device, DEMO, num_blocks=8)
    runner._model._weights.embedding[2000] = float("nan")
    healthy, sick, reused = (
        row_of(ids, [block]) for ids, block in (([40, 50, 60], 0), ([2000, 7], 1), ([40, 50, 60], 1))
    )

    alone, (before, failed) = runner.run(batch_of(healthy)), runner.run(batch_of(healthy, sick))
    again = runner.run(batch_of(reused))

    assert failed.error is not None
    assert failed.token_ids == ()
    assert [before] == alone == again


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("llama", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
        ("mistral", {"num_key_value_heads": 2}),
        ("qwen2", {"num_key_value_heads": 2}),
        ("qwen3", {"num_key_value_heads": 1}),
    ],
)
def test_every_family_is_as_close_to_float32_as_plain_bfloat16(
    family: str, fields: dict[str, object], device: Device, build: Callable[..., Any]
) -> None:
    reference = build(family, hidden_size=128, intermediate_size=96, num_attention_heads=2, head_dim=64, **fields)
    config = load_config(reference.directory)
    runner = load_cuda_runner(device, reference.directory, dtype="bfloat16", num_blocks=6)
    plain = load_cpu_runner(reference.directory, dtype="bfloat16", kv_bytes=1 << 20)
    token_ids = torch.randint(0, config.vocab_size, (50,), generator=torch.Generator().manual_seed(7)).tolist()
    exact = reference.logits(token_ids)[[20, 48, 49]]

    assert load_decoder(reference.directory, config, torch.float32).config == config
    ours, theirs = (torch.stack(logits_after(each, token_ids, (21, 49, 50))) for each in (runner, plain))
    assert float((ours - exact).abs().max()) <= 2 * float((theirs - exact).abs().max()) + 1e-3


def logits_after(runner: Any, token_ids: list[int], ends: tuple[int, ...]) -> list[torch.Tensor]:
    """The logits behind each of the ends: a chunk from the start, another, and a decode."""
    seen: list[torch.Tensor] = []

    class Seeing:
        def sample(self, logits: torch.Tensor, sequences: list[Sequence]) -> list[Any]:
            seen.append(logits[0].clone().cpu())
            return own.sample(logits, sequences)

    own, runner._sampler = runner._sampler, Seeing()
    start = 0
    row = row_of(token_ids, [3, 0, 4, 1])
    for end in ends:
        runner.run(batch_of(Row(row.sequence, start, end - start, True)))
        start = end
    return seen


def row_of(token_ids: list[int], blocks: list[int]) -> Row:
    sequence = Sequence("a", 0, list(token_ids), len(token_ids), GREEDY)
    sequence.block_table = blocks
    return Row(sequence, 0, len(token_ids), True)


def batch_of(*rows: Row) -> Batch:
    return Batch(rows, sum(row.count for row in rows))


def test_the_emulator_can_be_named_as_a_device() -> None:
    model = load(DEMO, LoadOptions(device="emulator", num_blocks=9))

    assert isinstance(model.runner, CudaRunner)
    assert model.runner.num_blocks == 9
    assert model.fingerprint != load(DEMO, LoadOptions(device="cpu", num_blocks=9)).fingerprint
    with pytest.raises(ModelError, match="num_blocks: expected a number"):
        load(DEMO, LoadOptions(device="emulator"))


def test_what_the_kernels_are_not_made_for_is_refused(build: Callable[..., Any]) -> None:
    directory = build("llama").directory

    with pytest.raises(ModelError, match="head_dim: expected one of 64, 96, 128, 256 on a GPU, got 8"):
        check_model(load_config(directory))
    with pytest.raises(ModelError, match="dtype: expected auto, bfloat16, float16 on a GPU, got 'float32'"):
        choose_dtype(load_config(directory), "float32")


def test_memory_that_does_not_suffice_is_named_before_it_is_taken() -> None:
    config = load_config(DEMO)

    assert blocks_that_fit(10 * GIB, GIB, 1 << 20, 256) == 8704  # 8.5 GiB
    with pytest.raises(ModelError, match=r"4096 tokens, and a step, need 1.8 GiB beside the weights, and 1.7 GiB"):
        blocks_that_fit(int(1.7 * GIB), GIB, 1 << 20, 256)
    with pytest.raises(ModelError, match=r"the weights need 0.5 GiB of the device's memory, and 0.2 GiB are free"):
        check_weights(config, 2, GIB // 4)
