"""The device's sampler draws what the host's draws: over the same logits, whatever the parameters."""

import random

import pytest
import torch

from engine.batch import Sampled
from engine.device import Device, open_device
from engine.device_sampler import DeviceSampler
from engine.params import SamplingParams
from engine.sampler import Sampler
from engine.sequence import Sequence

VOCAB = 300
DEVICES = ["emulator", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(scope="module", params=DEVICES)
def device(request: pytest.FixtureRequest) -> Device:
    return open_device(request.param)


def sequence_of(rng: random.Random, params: SamplingParams) -> Sequence:
    num_prompt = rng.randrange(1, 30)
    token_ids = [rng.randrange(VOCAB) for _ in range(num_prompt + rng.randrange(20))]
    return Sequence("a", rng.randrange(4), token_ids, num_prompt, params)


def any_params(rng: random.Random) -> SamplingParams:
    def perhaps(value: float, otherwise: float) -> float:
        return value if rng.random() < 0.4 else otherwise

    return SamplingParams(
        max_tokens=40,
        min_tokens=rng.choice((0, 0, 30)),
        temperature=perhaps(rng.uniform(0.2, 2), rng.choice((0.0, 1.0))),
        top_k=rng.choice((0, 0, 1, 5, 400)),
        top_p=perhaps(rng.uniform(0.05, 1), 1.0),
        min_p=perhaps(rng.uniform(0, 0.5), 0.0),
        presence_penalty=perhaps(rng.uniform(-2, 2), 0.0),
        frequency_penalty=perhaps(rng.uniform(-2, 2), 0.0),
        repetition_penalty=perhaps(rng.uniform(0.5, 2), 1.0),
        logit_bias={rng.randrange(VOCAB): rng.uniform(-100, 100) for _ in range(rng.choice((0, 0, 3)))},
        seed=rng.choice((rng.randrange(2**64), -5)),
        logprobs=rng.choice((None, None, 0, 4, 20)),
        stop_token_ids=frozenset(rng.sample(range(VOCAB), 3)),
    )


def both(device: Device, logits: torch.Tensor, sequences: list[Sequence]) -> tuple[list[Sampled], list[Sampled]]:
    return DeviceSampler(device).sample(device.upload(logits), sequences), Sampler().sample(logits.clone(), sequences)


def test_any_parameters_give_the_hosts_tokens_and_log_probabilities(device: Device) -> None:
    rng, generator = random.Random(3), torch.Generator().manual_seed(3)
    for rows in (1, 2, 3, 4, *(21, 22, 23, 24) * 3):  # odd and even: arrays of other lengths stand side by side
        sequences = [sequence_of(rng, any_params(rng)) for _ in range(rows)]
        ours, theirs = both(device, torch.randn(rows, VOCAB, generator=generator) * 3, sequences)

        assert [each.token_ids for each in ours] == [each.token_ids for each in theirs]
        for mine, other in zip(ours, theirs, strict=True):
            assert (mine.logprobs is None) == (other.logprobs is None)
            if mine.logprobs and other.logprobs:
                assert mine.logprobs[0].chosen == pytest.approx(other.logprobs[0].chosen, abs=1e-4)
                assert [token for token, _ in mine.logprobs[0].top] == [token for token, _ in other.logprobs[0].top]


def test_a_row_that_is_not_finite_fails_alone(device: Device) -> None:
    rng = random.Random(5)
    sequences = [sequence_of(rng, SamplingParams(max_tokens=9, temperature=0.8, seed=4)) for _ in range(3)]
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(5))
    whole, _ = both(device, logits, sequences)
    logits[1, 7] = torch.inf
    ours, theirs = both(device, logits, sequences)

    assert ours == theirs
    assert ours[1].error == "the model gave logits that are not finite"
    assert [ours[0], ours[2]] == [whole[0], whole[2]]


def test_counts_keep_up_with_a_growing_answer_and_survive_being_forgotten(device: Device) -> None:
    params = SamplingParams(max_tokens=40, temperature=0.0, presence_penalty=2.0, frequency_penalty=2.0)
    sequence, sampler = Sequence("a", 0, [1, 2], 2, params), DeviceSampler(device)
    logits = torch.arange(VOCAB, dtype=torch.float32)[None] / 10
    for number in range(12):
        if number == 6:
            sampler.forget(sequence)
        [ours], [theirs] = (
            sampler.sample(device.upload(logits), [sequence]),
            Sampler().sample(logits.clone(), [sequence]),
        )
        assert ours == theirs
        sequence.token_ids += ours.token_ids
