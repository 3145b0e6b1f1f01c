"""The engine gives the very tokens that transformers gives, however the work is cut, shared and interrupted."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from engine.attention import PagedAttention
from engine.batch import Batch, Row
from engine.config import EngineConfig
from engine.cpu_runner import CpuRunner
from engine.decodes import Decodes
from engine.kv_pool import KeyValuePool
from engine.loop import Engine
from engine.models.config import load_config
from engine.models.decoder import load_decoder
from engine.output import GenerateRequest, Output
from engine.params import SamplingParams
from engine.sequence import Sequence

NUM_TOKENS = 18
GREEDY = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0)
MODELS = [
    pytest.param(family, {"num_key_value_heads": 8 // group, "tie_word_embeddings": tied}, id=f"{family}-group{group}")
    for family, tied in (("llama", False), ("mistral", True), ("qwen2", True), ("qwen3", False))
    for group, tied in ((1, tied), (4, not tied), (8, tied))
]
BIASED = pytest.param("llama", {"attention_bias": True, "mlp_bias": True}, id="llama-biases")


def generate(
    runner: CpuRunner, prompts: list[tuple[int, ...]], params: SamplingParams = GREEDY, **config: int
) -> tuple[list[list[int]], Engine]:
    """Run all prompts at once through a whole engine; give each one's tokens, and the engine."""
    answers: dict[str, list[int]] = {str(number): [] for number in range(len(prompts))}

    def deliver(outputs: list[Output]) -> None:
        for output in outputs:
            assert output.error is None
            answers[output.request_id] += output.token_ids

    engine = Engine(runner, EngineConfig(**config), None, deliver)
    for number, prompt in enumerate(prompts):
        engine.submit(GenerateRequest(str(number), prompt, params))
    while engine.has_work:
        engine.step()
    engine.scheduler.pool.check_integrity()
    return list(answers.values()), engine


def mixed_lengths(count: int) -> list[int]:
    return [1 + (37 * number) % 70 for number in range(count)]


@pytest.mark.parametrize(("family", "fields"), [*MODELS, BIASED])
def test_greedy_answers_are_those_of_transformers(
    family: str, fields: dict[str, object], build: Callable[..., Any]
) -> None:
    reference = build(family, **fields)
    runner = reference.runner()
    prompts, expected = reference.prompts(mixed_lengths(32), NUM_TOKENS)

    for count, chunk, budget in ((1, 512, 512), (3, 1, 8), (8, 7, 16), (20, 16, 64), (32, 512, 512)):
        answers, _ = generate(
            runner,
            prompts[:count],
            max_prefill_chunk=chunk,
            max_batch_tokens=max(budget, count),
            max_sequences=count,
        )

        assert answers == expected[:count], (count, chunk)

    first, _ = generate(runner, prompts[:8], prefix_cache=0)
    longer = [prompt + tuple(answer) for prompt, answer in zip(prompts[:8], expected[:8], strict=True)]
    assert first == expected[:8]
    # the same answer again, half of it as a prompt: hits the blocks that the engine's own answers filled
    engine = shared_prefix_engine(runner, prompts[:8], longer)
    assert engine.stats.cached_tokens > 0


def shared_prefix_engine(runner: CpuRunner, prompts: list[tuple[int, ...]], longer: list[tuple[int, ...]]) -> Engine:
    """Answer all prompts, then the same with the beginning of the answer, in one engine; check that both agree."""
    answers: dict[str, list[int]] = {}

    def deliver(outputs: list[Output]) -> None:
        for output in outputs:
            assert output.error is None
            answers.setdefault(output.request_id, []).extend(output.token_ids)

    engine = Engine(runner, EngineConfig(max_prefill_chunk=9), None, deliver)
    for number, prompt in enumerate(prompts):
        engine.submit(GenerateRequest(f"a{number}", prompt, GREEDY))
    while engine.has_work:
        engine.step()
    for number, (prompt, whole) in enumerate(zip(prompts, longer, strict=True)):
        engine.submit(GenerateRequest(f"b{number}", prompt, GREEDY))
        params = SamplingParams(max_tokens=6, temperature=0.0)
        engine.submit(GenerateRequest(f"c{number}", whole[: len(prompt) + 12], params))
    while engine.has_work:
        engine.step()
    for number, (prompt, whole) in enumerate(zip(prompts, longer, strict=True)):
        assert answers[f"a{number}"] == answers[f"b{number}"] == list(whole[len(prompt) :])
        assert answers[f"c{number}"] == list(whole[len(prompt) + 12 :])
    return engine


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_preempted_answers_are_those_of_transformers(family: str, build: Callable[..., Any]) -> None:
    reference = build(family, num_key_value_heads=2, tie_word_embeddings=False)
    config = load_config(reference.directory)
    prompts, expected = reference.prompts([3, 20, 9, 31, 14, 1, 25, 6], num_tokens=60)
    kv_bytes = config.kv_elements_per_token * 16 * 4 * 15  # 14 blocks for what would need 41
    params = SamplingParams(max_tokens=60, temperature=0.0)

    answers, engine = generate(reference.runner(kv_bytes), prompts, params, max_prefill_chunk=11)

    assert engine.stats.preemptions > 0
    assert answers == expected


@pytest.mark.parametrize(("family", "fields"), [*MODELS, BIASED])
@pytest.mark.parametrize("chunk", [1, 6, 17, 90])
def test_logits_are_within_1e_4_of_transformers(
    family: str, fields: dict[str, object], chunk: int, build: Callable[..., Any]
) -> None:
    reference = build(family, **fields)
    config = load_config(reference.directory)
    decoder = load_decoder(reference.directory, config, torch.float32)
    pool = KeyValuePool(config, 12, 16, torch.float32)
    token_ids = torch.randint(0, config.vocab_size, (90,), generator=torch.Generator().manual_seed(7)).tolist()
    sequence = Sequence("a", 0, token_ids, 90, GREEDY)
    sequence.block_table = [9, 2, 11, 0, 5, 7]
    decodes = Decodes(config, pool, 1 << 20)
    logits = []
    with torch.inference_mode():
        for start in range(0, 90, chunk):
            count = min(chunk, 90 - start)
            attention = PagedAttention(config, pool, decodes, [Row(sequence, start, count, True)])
            ids, positions = torch.tensor(token_ids[start : start + count]), torch.arange(start, start + count)
            logits.append(decoder.logits(decoder.forward(ids, positions, attention)))

    torch.testing.assert_close(torch.cat(logits), reference.logits(token_ids), atol=1e-4, rtol=0)


def test_bfloat16_stays_close_to_float32(build: Callable[..., Any]) -> None:
    reference = build("qwen3", num_key_value_heads=2, tie_word_embeddings=False)
    config = load_config(reference.directory)
    token_ids = torch.randint(0, config.vocab_size, (40,), generator=torch.Generator().manual_seed(7)).tolist()
    sequence = Sequence("a", 0, token_ids, 40, GREEDY)
    sequence.block_table = [3, 1, 2]
    laws = []
    for dtype in (torch.float32, torch.bfloat16):
        decoder, pool = load_decoder(reference.directory, config, dtype), KeyValuePool(config, 4, 16, dtype)
        decodes = Decodes(config, pool, 1 << 20)
        with torch.inference_mode():
            for start, count in ((0, 39), (39, 1)):
                attention = PagedAttention(config, pool, decodes, [Row(sequence, start, count, True)])
                ids, positions = torch.tensor(token_ids[start : start + count]), torch.arange(start, start + count)
                hidden = decoder.forward(ids, positions, attention)
            laws.append(decoder.logits(hidden).softmax(-1))

    assert float((laws[0] - laws[1]).abs().sum()) < 0.1  # total variation, doubled


def test_an_abandoned_block_table_leaves_nothing_behind(build: Callable[..., Any]) -> None:
    """Whoever gets another's old blocks must not see what they held."""
    reference = build("llama", num_key_value_heads=2, tie_word_embeddings=False)
    runner = reference.runner()
    token_ids = list(range(20))
    tokens = []
    for garbage in (False, True):
        if garbage:
            other = Sequence("x", 0, list(range(60, 92)), 32, GREEDY)
            other.block_table = [4, 5]
            runner.run(Batch((Row(other, 0, 32, True),), 32))
        sequence = Sequence("a", 0, token_ids.copy(), 20, GREEDY)
        sequence.block_table = [5, 4]
        for start, count in ((0, 3), (3, 1), (4, 16)):
            [sampled] = runner.run(Batch((Row(sequence, start, count, True),), count))
        tokens.append(sampled.token_ids)

    assert tokens[0] == tokens[1]
