"""Requests as the sampling kernels take them: columns and ragged lists in a device's memory."""

from collections import Counter
from collections.abc import Sequence as Seq
from dataclasses import fields

import numpy as np
import torch
from torch import Tensor

from engine.device import Device
from engine.kernels.logits import PADDING, Bans, Biases, Penalties
from engine.kernels.sample import Draws, sample
from engine.params import SamplingParams
from engine.philox import uniforms
from engine.sequence import Sequence


def params_of(**chosen: object) -> SamplingParams:
    """Give parameters of which only these are set."""
    return SamplingParams(max_tokens=10_000, **chosen)  # type: ignore[arg-type]


def draws_of(
    device: Device, params: Seq[SamplingParams | None], positions: Seq[int], choices: Seq[int] | None = None
) -> Draws:
    """Give the columns for rows of these parameters; None is a row of padding, whose columns hold nonsense."""

    def column(values: list[float], dtype: torch.dtype) -> Tensor:
        return device.upload(torch.tensor(values, dtype=dtype))

    padding = params_of(temperature=PADDING, top_k=-7, top_p=float("nan"), min_p=float("nan"))
    rows = [padding if row is None else row for row in params]
    seeds = np.array([row.seed & (2**64 - 1) for row in rows], dtype=np.uint64).view(np.int64)
    return Draws(
        temperatures=column([row.temperature for row in rows], torch.float32),
        top_ks=column([row.top_k for row in rows], torch.int32),
        top_ps=column([row.top_p for row in rows], torch.float64),
        min_ps=column([row.min_p for row in rows], torch.float32),
        seeds=device.upload(torch.from_numpy(seeds)),
        positions=column(list(positions), torch.int64),
        choices=column(list(choices or [0] * len(rows)), torch.int32),
    )


def draw(device: Device, logits: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """Run `sample` over rows of torch's own; give tokens and errors, both -9 where nothing was written."""
    return draw_there(device, device.upload(logits), draws)


def draw_there(device: Device, logits: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """Run `sample` over rows in the device's memory."""
    tokens, errors = (device.upload(torch.full(logits.shape[:1], -9, dtype=torch.int32)) for _ in range(2))
    sample(device, tokens, errors, logits, draws)
    device.synchronize()
    return tokens.cpu(), errors.cpu()


def places_of(device: Device, params: SamplingParams, number: int) -> Draws:
    """Give columns for as many rows of these parameters at different places: 16 positions of each seed."""
    places = torch.arange(number)
    one = draws_of(device, [params], [1])
    columns = {field.name: device.upload(getattr(one, field.name).repeat(number)) for field in fields(Draws)}
    return Draws(**columns | {"seeds": device.upload(places // 16), "positions": device.upload(1 + places % 16)})


def uniform_of(params: SamplingParams, position: int, choice: int = 0) -> float:
    """Give the uniform number that belongs to a place."""
    return float(uniforms(params.seed, choice, position, 1)[0])


def ragged(device: Device, rows: Seq[Seq[Seq[float]]], width: int) -> tuple[Tensor, list[Tensor]]:
    """Lay lists of `width`-tuples out behind each other: the starts, int32, and one column for each place, float64."""
    starts = np.cumsum([0, *(len(row) for row in rows)])
    flat = torch.tensor([entry for row in rows for entry in row], dtype=torch.float64).reshape(-1, width)
    return device.upload(torch.from_numpy(starts).int()), [column.contiguous() for column in flat.unbind(1)]


def edits_of(device: Device, sequences: Seq[Sequence], vocab: int) -> tuple[Penalties, Biases, Bans]:
    """Give what the parameters of these sequences ask of their logits, as lists on the device."""
    seen, biases, bans = [], [], []
    for sequence in sequences:
        params, prompt = sequence.params, set(sequence.token_ids[: sequence.num_prompt])
        answer = Counter(sequence.token_ids[sequence.num_prompt :])
        seen.append([(token, 2 * answer[token] + (token in prompt)) for token in sorted(prompt | answer.keys())])
        biases.append(list(params.logit_bias.items()))
        early = sequence.num_generated < params.min_tokens and len(params.stop_token_ids) < vocab
        bans.append([(token,) for token in params.stop_token_ids] if early else [])

    def strength(name: str) -> Tensor:
        return device.upload(torch.tensor([getattr(sequence.params, name) for sequence in sequences]))

    seen_starts, seen_columns = ragged(device, seen, 2)
    bias_starts, (bias_ids, bias_values) = ragged(device, biases, 2)
    ban_starts, (ban_ids,) = ragged(device, bans, 1)
    return (
        Penalties(
            seen_starts,
            device.upload(torch.stack(seen_columns, 1).int()),
            strength("repetition_penalty"),
            strength("presence_penalty"),
            strength("frequency_penalty"),
        ),
        Biases(bias_starts, device.upload(bias_ids.int()), device.upload(bias_values.float())),
        Bans(ban_starts, device.upload(ban_ids.int())),
    )
