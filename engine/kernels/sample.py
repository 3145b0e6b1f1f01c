"""The next token of each row, by top-k, top-p and min-p without a sort: `cuda/sample.cu`."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.device import Device
from engine.errors import ShapeError
from engine.kernels.registry import Instance
from engine.kernels.shapes import check

NARROW, WIDE = 64, 1024
WIDE_FROM = 4096
"""From this vocabulary on a row has a block of 1024 threads."""

MAX_VOCAB = 262_144
"""The masses of as many tokens fit into 64 bits."""

NOT_FINITE, NOTHING_ALLOWED = 1, 2
"""Why a row failed: NaN or infinity in its logits; no token that may come."""

_CHOICES = {
    num_threads: Instance(
        source="sample.cu",
        expression=f"sample<{num_threads}>",
        signature="PPPqiPPPPPPP",
        block=(num_threads, 1, 1),
        overlaps=True,
    )
    for num_threads in (NARROW, WIDE)
}
INSTANCES = tuple(_CHOICES.values())


@dataclass(frozen=True, slots=True)
class Draws:
    """How each row's token is drawn; all tensors are [num_rows], in the device's memory.

    `temperatures` float32, by which the logits were divided before: 0 is greedy and uses nothing else, `PADDING`
    (engine/kernels/logits.py) leaves the row alone. `top_ks` int32, `top_ps` float64, `min_ps` float32; 0, 1 and 0 are
    off. `seeds` int64, 64 bits whose sign means nothing; `positions` int64 and `choices` int32 as in
    `engine/philox.py`.
    """

    temperatures: Tensor
    top_ks: Tensor
    top_ps: Tensor
    min_ps: Tensor
    seeds: Tensor
    positions: Tensor
    choices: Tensor


def sample(device: Device, tokens: Tensor, errors: Tensor, logits: Tensor, draws: Draws) -> None:
    """Draw a token for each row from logits as the `logits` kernel leaves them.

    `logits: [num_rows, vocab]` float32, dense rows at any stride. `tokens, errors: [num_rows]` int32: a failed row gets
    token -1 and `NOT_FINITE` or `NOTHING_ALLOWED`, all others 0. A row's token depends on nothing but the row: not on
    its place, nor on its mates. Raises `ShapeError`.
    """
    num_rows, vocab = logits.shape
    check("sample", "logits", logits, (num_rows, vocab), torch.float32, dense=False)
    if logits.stride(1) != 1 or not 0 < vocab <= MAX_VOCAB:
        raise ShapeError(
            "sample", "logits", f"dense rows of 1 to {MAX_VOCAB}", f"{vocab} with strides {list(logits.stride())}"
        )
    columns = (
        ("temperatures", draws.temperatures, torch.float32),
        ("top_ks", draws.top_ks, torch.int32),
        ("top_ps", draws.top_ps, torch.float64),
        ("min_ps", draws.min_ps, torch.float32),
        ("seeds", draws.seeds, torch.int64),
        ("positions", draws.positions, torch.int64),
        ("choices", draws.choices, torch.int32),
    )
    for name, column, dtype in (("tokens", tokens, torch.int32), ("errors", errors, torch.int32), *columns):
        check("sample", name, column, (num_rows,), dtype)
    if num_rows:
        device.launch(
            _CHOICES[WIDE if vocab >= WIDE_FROM else NARROW],
            (num_rows, 1, 1),
            tokens.data_ptr(),
            errors.data_ptr(),
            logits.data_ptr(),
            logits.stride(0),
            vocab,
            *(column.data_ptr() for _, column, _ in columns),
        )


def law_reference(logits: Tensor, top_k: int, top_p: float, min_p: float) -> Tensor:
    """Give the law that a row's token is drawn from, `[vocab]` float64, by a sort; the lowest id first among equals."""
    law = torch.softmax(logits.double(), -1)
    ranked, ids = law.sort(descending=True, stable=True)
    ranked = torch.where(ranked >= ranked[0] * min_p, ranked, 0.0)
    if top_k:
        ranked[top_k:] = 0.0
    if top_p < 1:
        ranked[1:][ranked.cumsum(0)[:-1] >= top_p * ranked.sum()] = 0.0
    return torch.zeros_like(law).scatter(0, ids, ranked / ranked.sum())


def draw_reference(law: Tensor, uniforms: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Tensor:
    """Give the tokens, int64, that uniform numbers fall on in the law's prefix sum over ascending ids."""
    upto = law.cumsum(0)
    found = torch.searchsorted(upto, torch.from_numpy(uniforms) * upto[-1], right=True)
    return found.clamp(max=int(law.nonzero()[-1]))
