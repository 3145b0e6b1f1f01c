"""Penalties, biases, bans, grammar masks and temperature in one pass over a step's logits: `cuda/logits.cu`."""

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.device import Device
from engine.errors import ShapeError
from engine.kernels.registry import Instance
from engine.kernels.shapes import check

NUM_THREADS = 256
PIECE = 4096
FLOATS = {torch.float32: "float", torch.bfloat16: "bf16", torch.float16: "f16"}
MIN_TEMPERATURE = 1e-5
"""Lower temperatures divide by this, as on the CPU."""

PADDING = -1.0
"""The temperature of a row that the sampling kernels leave alone."""

_CHOICES = {
    dtype: Instance(
        source="logits.cu",
        expression=f"logits<{name}, {NUM_THREADS}, {PIECE}>",
        signature="PqPqiPPPPPPPPPPPPi",
        block=(NUM_THREADS, 1, 1),
        overlaps=True,
    )
    for dtype, name in FLOATS.items()
}
INSTANCES = tuple(_CHOICES.values())


@dataclass(frozen=True, slots=True)
class Penalties:
    """What was said already, and how much that counts.

    `seen: [num_seen, 2]` int32 pairs (token, 2 * times in the answer + 1 if it is in the prompt), each token once in a
    row; row r owns those from `starts[r]` to `starts[r + 1]`, `starts: [num_rows + 1]` int32. The strengths are
    [num_rows] float32; 1, 0 and 0 do nothing.
    """

    starts: Tensor
    seen: Tensor
    repetition: Tensor
    presence: Tensor
    frequency: Tensor


@dataclass(frozen=True, slots=True)
class Biases:
    """`ids: [num_biases]` int32, each once in a row; `values: [num_biases]` float32; `starts` as in `Penalties`."""

    starts: Tensor
    ids: Tensor
    values: Tensor


@dataclass(frozen=True, slots=True)
class Bans:
    """Tokens that may not come: `ids: [num_bans]` int32; `starts` as in `Penalties`."""

    starts: Tensor
    ids: Tensor


def logits(
    device: Device,
    out: Tensor,
    raw: Tensor,
    temperatures: Tensor,
    *,
    penalties: Penalties | None = None,
    biases: Biases | None = None,
    bans: Bans | None = None,
    allowed: Tensor | None = None,
) -> None:
    """Write what `engine/sampler.py` makes of logits before it draws, divided by the temperature.

    `raw: [num_rows, vocab]` float32, bf16 or fp16 and `out`, float32 of that shape, both with dense rows at any stride;
    `out` may be `raw`. `temperatures: [num_rows]` float32: 0 (greedy) divides nothing, `PADDING` leaves the row alone.
    `allowed: [num_rows, ceil(vocab / 32)]` int32, a bit a token, the first one's the lowest. What is not finite in
    `raw` is NaN in `out`, and `sample` fails that row. Raises `ShapeError`.
    """
    num_rows, vocab = raw.shape
    check("logits", "raw", raw, (num_rows, vocab), *FLOATS, dense=False)
    check("logits", "out", out, (num_rows, vocab), torch.float32, dense=False)
    for name, tensor in (("raw", raw), ("out", out)):
        if tensor.stride(1) != 1:
            raise ShapeError("logits", name, "dense rows", f"strides {list(tensor.stride())}")
    check("logits", "temperatures", temperatures, (num_rows,), torch.float32)
    lists = [0] * 10
    if penalties is not None:
        _check_starts("penalties", penalties.starts, num_rows)
        check("logits", "penalties.seen", penalties.seen, (None, 2), torch.int32)
        strengths = penalties.repetition, penalties.presence, penalties.frequency
        for name, tensor in zip(("repetition", "presence", "frequency"), strengths, strict=True):
            check("logits", f"penalties.{name}", tensor, (num_rows,), torch.float32)
        lists[:5] = [tensor.data_ptr() for tensor in (penalties.starts, penalties.seen, *strengths)]
    if biases is not None:
        _check_starts("biases", biases.starts, num_rows)
        check("logits", "biases.ids", biases.ids, (None,), torch.int32)
        check("logits", "biases.values", biases.values, tuple(biases.ids.shape), torch.float32)
        lists[5:8] = [tensor.data_ptr() for tensor in (biases.starts, biases.ids, biases.values)]
    if bans is not None:
        _check_starts("bans", bans.starts, num_rows)
        check("logits", "bans.ids", bans.ids, (None,), torch.int32)
        lists[8:] = [bans.starts.data_ptr(), bans.ids.data_ptr()]
    words = -(-vocab // 32)
    if allowed is not None:
        check("logits", "allowed", allowed, (num_rows, words), torch.int32)
    if num_rows and vocab:
        device.launch(
            _CHOICES[raw.dtype],
            (-(-vocab // PIECE), num_rows, 1),
            out.data_ptr(),
            out.stride(0),
            raw.data_ptr(),
            raw.stride(0),
            vocab,
            temperatures.data_ptr(),
            *lists,
            0 if allowed is None else allowed.data_ptr(),
            words,
        )


def _check_starts(name: str, starts: Tensor, num_rows: int) -> None:
    check("logits", f"{name}.starts", starts, (num_rows + 1,), torch.int32)


def logits_reference(
    raw: Tensor,
    temperatures: Tensor,
    penalties: Penalties | None = None,
    biases: Biases | None = None,
    bans: Bans | None = None,
    allowed: Tensor | None = None,
) -> Tensor:
    """Give what `logits` writes, each step in float32 and in its order; rows of padding are NaN."""
    out = raw.float().clone()
    vocab = out.shape[1]
    broken = ~out.isfinite()
    for row, x in enumerate(out):
        if penalties is not None:
            ids, times = penalties.seen[penalties.starts[row] : penalties.starts[row + 1]].long().unbind(1)
            strength = penalties.repetition[row]
            x[ids] = torch.where(x[ids] > 0, x[ids] / strength, x[ids] * strength)
            answered, times = ids[times > 1], times[times > 1] // 2
            x[answered] -= penalties.frequency[row] * times.float() + penalties.presence[row]
        if biases is not None:
            part = slice(int(biases.starts[row]), int(biases.starts[row + 1]))
            x[biases.ids[part].long()] += biases.values[part]
        if bans is not None:
            x[bans.ids[bans.starts[row] : bans.starts[row + 1]].long()] = -torch.inf
        if allowed is not None:
            bits = allowed[row][:, None] >> torch.arange(32) & 1
            x[bits.flatten()[:vocab] == 0] = -torch.inf
        if temperatures[row] > 0:
            x /= temperatures[row].clamp(min=MIN_TEMPERATURE)
    out[broken] = torch.nan
    out[temperatures < 0] = torch.nan
    return out
