"""The sampler draws from the law that the parameters describe, and from nothing else."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from engine.params import SamplingParams
from engine.sampler import Sampler
from engine.sequence import Sequence

VOCAB = 12
LOGITS = torch.tensor([0.3, 2.0, -1.0, 1.2, 0.0, 2.5, -3.0, 1.9, 0.7, -0.4, 1.5, -2.0])


def params_of(**fields: object) -> SamplingParams:
    return dataclasses.replace(SamplingParams(max_tokens=10_000), **fields)


def sequence_of(
    params: SamplingParams, token_ids: list[int], num_prompt: int | None = None, index: int = 0
) -> Sequence:
    return Sequence("a", index, list(token_ids), len(token_ids) if num_prompt is None else num_prompt, params)


def law_of(logits: torch.Tensor, params: SamplingParams) -> np.ndarray:
    """The reference: temperature, min_p, top_k, top_p, written out over the whole sorted vocabulary."""
    law = torch.softmax(logits.double() / params.temperature, -1).numpy()
    law = np.where(law >= law.max() * params.min_p, law, 0)
    order = np.argsort(-law, kind="stable")
    if params.top_k:
        law[order[params.top_k :]] = 0
    law = law / law.sum()
    before = np.cumsum(law[order]) - law[order]
    law[order[before >= params.top_p]] = 0
    return law / law.sum()


def counts_of(logits: torch.Tensor, params: SamplingParams, draws: int, batch: int = 64) -> np.ndarray:
    """Draw one token at each of `draws` positions."""
    sampler, counts = Sampler(), np.zeros(len(logits))
    sequences = [sequence_of(dataclasses.replace(params, seed=seed), [0]) for seed in range(batch)]
    for _ in range(draws // batch):
        for sequence, sampled in zip(
            sequences, sampler.sample(logits.expand(batch, -1).clone(), sequences), strict=True
        ):
            counts[sampled.token_ids[0]] += 1
            sequence.token_ids.append(sampled.token_ids[0])
    return counts


def chi_square(counts: np.ndarray, law: np.ndarray) -> tuple[float, float]:
    """The statistic, and the bound that chance exceeds once in 10,000 times (Wilson and Hilferty)."""
    assert counts[law == 0].sum() == 0, "a token outside the law was drawn"
    expected = law * counts.sum()
    rare = expected < 5  # one cell for all of them
    expected = np.append(expected[~rare], max(expected[rare].sum(), 1e-9))
    counts = np.append(counts[~rare], counts[rare].sum())
    freedom = len(expected) - 1
    bound = freedom * (1 - 2 / (9 * freedom) + 3.719 * math.sqrt(2 / (9 * freedom))) ** 3
    return float(((counts - expected) ** 2 / expected).sum()), bound


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 1.0},
        {"temperature": 0.6},
        {"temperature": 1.7},
        {"top_k": 4},
        {"top_k": 4, "temperature": 1.5},
        {"top_p": 0.8},
        {"top_p": 0.35, "temperature": 1.3},
        {"min_p": 0.2},
        {"min_p": 0.1, "top_p": 0.9},
        {"top_k": 6, "top_p": 0.7, "min_p": 0.05, "temperature": 1.2},
    ],
)
def test_frequencies_follow_the_law(fields: dict[str, float]) -> None:
    params = params_of(**fields)
    statistic, bound = chi_square(counts_of(LOGITS, params, 19_200), law_of(LOGITS, params))

    assert statistic < bound


@pytest.mark.parametrize("fields", [{"top_p": 0.9}, {"top_p": 0.999}, {"min_p": 0.001, "top_p": 0.97}, {"top_k": 700}])
def test_a_flat_law_over_a_large_vocabulary_is_cut_where_it_should(fields: dict[str, float]) -> None:
    """More tokens are left than the sampler sorts at first."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(3000, generator=generator)
    params = params_of(**fields)
    law = law_of(logits, params)
    sampler = Sampler()
    drawn = set()
    for position in range(300):
        [sampled] = sampler.sample(logits[None].clone(), [sequence_of(params, [0] * (position + 1))])
        sampler = Sampler()
        drawn.add(sampled.token_ids[0])

    assert all(law[token] > 0 for token in drawn)
    assert len(drawn) > 150


def test_top_k_of_one_is_greedy_and_so_is_a_tiny_top_p() -> None:
    for fields in ({"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}, {"temperature": 1e-9}, {"temperature": 0.0}):
        for seed in range(20):
            [sampled] = Sampler().sample(LOGITS[None].clone(), [sequence_of(params_of(seed=seed, **fields), [0])])

            assert sampled.token_ids == (5,)


def test_greedy_takes_the_lowest_id_among_equals() -> None:
    logits = torch.zeros(2, 5000)
    logits[0, [4000, 17, 3]] = 1.0
    sequences = [sequence_of(params_of(temperature=0.0), [0]) for _ in range(2)]

    assert [sampled.token_ids for sampled in Sampler().sample(logits, sequences)] == [(3,), (0,)]


def test_a_seeded_token_does_not_depend_on_batch_slot_or_interruption() -> None:
    generator = torch.Generator().manual_seed(11)
    history = torch.randn(40, 300, generator=generator)
    others = torch.randn(40, 6, 300, generator=generator)
    params = [
        params_of(seed=99, temperature=0.9),
        params_of(seed=99, top_p=0.8),
        params_of(seed=99, top_k=20, min_p=0.01),
        params_of(seed=99, top_p=0.95, frequency_penalty=0.5, repetition_penalty=1.2),
    ]
    for wanted in params:
        answers = []
        for slot in (None, 0, 3, 6):
            sampler = Sampler()
            sequence = sequence_of(wanted, [1, 2, 3])
            mates = [sequence_of(params_of(seed=i, top_k=i * 100), [1]) for i in range(6)]
            for step in range(40):
                if slot == 3 and step % 7 == 0:
                    sampler.forget(sequence)  # as a preemption does
                if slot is None:
                    [sampled] = sampler.sample(history[step][None].clone(), [sequence])
                else:
                    logits = torch.cat([others[step, :slot], history[step][None], others[step, slot:]])
                    sampled = sampler.sample(logits, [*mates[:slot], sequence, *mates[slot:]])[slot]
                sequence.token_ids += sampled.token_ids
            answers.append(sequence.token_ids)

        assert answers[0] == answers[1] == answers[2] == answers[3]


def test_seeds_and_choices_give_different_answers() -> None:
    tokens = set()
    for seed in range(3):
        for index in range(3):
            sampler, sequence = Sampler(), sequence_of(params_of(seed=seed), [0], index=index)
            for _ in range(20):
                [sampled] = sampler.sample(LOGITS[None].clone(), [sequence])
                sequence.token_ids += sampled.token_ids
            tokens.add(tuple(sequence.token_ids))

    assert len(tokens) == 9


def edited(fields: dict[str, object], prompt: list[int], answer: list[int]) -> torch.Tensor:
    """What the sampler makes of `LOGITS`; it works in place."""
    logits = LOGITS[None].clone()
    sequence = sequence_of(params_of(temperature=0.0, **fields), prompt + answer, len(prompt))
    Sampler().sample(logits, [sequence])
    return logits[0]


def test_penalties_are_those_of_their_definitions() -> None:
    prompt, answer = [1, 2, 1], [3, 3, 2, 3]
    expected = LOGITS.clone()
    for token in (1, 2, 3):  # seen anywhere
        expected[token] = expected[token] / 1.5 if expected[token] > 0 else expected[token] * 1.5
    for token, times in ((3, 3), (2, 1)):  # the answer only
        expected[token] -= 0.4 * times + 0.7

    result = edited({"repetition_penalty": 1.5, "frequency_penalty": 0.4, "presence_penalty": 0.7}, prompt, answer)

    torch.testing.assert_close(result, expected)


def test_counts_keep_up_with_a_growing_answer_and_survive_being_forgotten() -> None:
    params = params_of(temperature=0.0, frequency_penalty=0.3, presence_penalty=0.1)
    kept, forgetful = Sampler(), Sampler()
    one, two = sequence_of(params, [0, 1]), sequence_of(params, [0, 1])
    for _ in range(60):
        [first] = kept.sample(LOGITS[None].clone(), [one])
        [second] = forgetful.sample(LOGITS[None].clone(), [two])
        forgetful.forget(two)
        one.token_ids += first.token_ids
        two.token_ids += second.token_ids

    assert one.token_ids == two.token_ids
    assert len(set(one.token_ids[2:])) > 5


def test_logit_bias_is_added_behind_the_penalties() -> None:
    result = edited({"logit_bias": {5: -100.0, 3: 1.25}, "presence_penalty": 1.0}, [0], [3])

    assert result[5] == LOGITS[5] - 100
    assert result[3] == pytest.approx(float(LOGITS[3]) + 1.25 - 1.0)
    assert result[7] == LOGITS[7]


def test_stop_tokens_are_forbidden_until_min_tokens() -> None:
    for generated, forbidden in ((0, True), (2, True), (3, False)):
        params = params_of(temperature=0.0, min_tokens=3, stop_token_ids=frozenset({5, 1, 999}))
        sequence = sequence_of(params, [0] * (4 + generated), 4)
        [sampled] = Sampler().sample(LOGITS[None].clone(), [sequence])

        assert sampled.token_ids == ((7,) if forbidden else (5,))


def test_logprobs_are_of_the_raw_law_and_belong_to_the_token() -> None:
    raw = torch.log_softmax(LOGITS.double(), -1)
    for fields in ({"temperature": 0.0}, {"temperature": 2.0, "top_k": 3}, {"logit_bias": {5: -100.0}}):
        params = params_of(logprobs=4, seed=5, **fields)
        [sampled] = Sampler().sample(LOGITS[None].clone(), [sequence_of(params, [0])])
        [token] = sampled.token_ids
        assert sampled.logprobs is not None
        [logprobs] = sampled.logprobs

        assert logprobs.chosen == pytest.approx(float(raw[token]), abs=1e-5)
        assert [entry for entry, _ in logprobs.top] == [5, 1, 7, 10]
        assert [value for _, value in logprobs.top] == pytest.approx([float(raw[i]) for i in (5, 1, 7, 10)], abs=1e-5)


def test_logprobs_come_to_those_who_ask() -> None:
    sequences = [sequence_of(params_of(logprobs=asked), [0]) for asked in (None, 0, 2, None)]
    results = Sampler().sample(LOGITS.expand(4, -1).clone(), sequences)

    assert [None if r.logprobs is None else len(r.logprobs[0].top) for r in results] == [None, 0, 2, None]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_row_that_is_not_finite_fails_alone(value: float) -> None:
    logits = LOGITS.expand(3, -1).clone()
    logits[1, 4] = value
    sequences = [sequence_of(params_of(temperature=0.0, logprobs=1, presence_penalty=0.5), [0]) for _ in range(3)]
    results = Sampler().sample(logits, sequences)

    assert [result.token_ids for result in results] == [(5,), (), (5,)]
    assert [result.error is not None for result in results] == [False, True, False]


def test_every_parameter_at_its_bounds_gives_a_token() -> None:
    grid = [
        {"temperature": 100.0, "top_k": 10_000, "top_p": 1e-12, "min_p": 1.0},
        {"temperature": 1e-12, "presence_penalty": 2.0, "frequency_penalty": -2.0, "repetition_penalty": 10.0},
        {"temperature": 1.0, "logit_bias": dict.fromkeys(range(VOCAB), -100.0)},
        {"min_tokens": 5, "stop_token_ids": frozenset(range(VOCAB))},
        {"seed": -(2**63)},
        {"seed": 2**64 - 1},
    ]
    for fields in grid:
        [sampled] = Sampler().sample(LOGITS[None].clone(), [sequence_of(params_of(**fields), [0, 1, 2], 1)])

        assert 0 <= sampled.token_ids[0] < VOCAB
