"""Log-probabilities of the chosen tokens and of the likeliest, for the rows that asked: `cuda/logprobs.cu`."""

import torch
from torch import Tensor

from engine.device import Device
from engine.errors import ShapeError
from engine.kernels.logits import FLOATS
from engine.kernels.registry import Instance
from engine.kernels.sample import MAX_VOCAB, NARROW, WIDE, WIDE_FROM
from engine.kernels.shapes import check

_CHOICES = {
    (dtype, num_threads): Instance(
        source="logprobs.cu",
        expression=f"logprobs<{name}, {num_threads}>",
        signature="PPPiPqiPPP",
        block=(num_threads, 1, 1),
        overlaps=True,
    )
    for dtype, name in FLOATS.items()
    for num_threads in (NARROW, WIDE)
}
INSTANCES = tuple(_CHOICES.values())


def logprobs(
    device: Device,
    chosen_logprobs: Tensor,
    top_ids: Tensor,
    top_logprobs: Tensor,
    raw: Tensor,
    chosen: Tensor,
    rows: Tensor,
    numbers: Tensor,
) -> None:
    """Write log-probabilities under the model's own logits, before penalties, temperature and filters.

    `raw: [num_rows, vocab]` float32, bf16 or fp16, dense rows at any stride; `chosen: [num_rows]` int32, each row's
    token. `rows, numbers: [num_asked]` int32: which row, and how many of its likeliest. `chosen_logprobs: [num_asked]`
    float32; `top_ids` int32 and `top_logprobs` float32: `[num_asked, width]`, of which the first `number` are written,
    likeliest first, the lowest id first among equals, and not more than width or the vocabulary. Where `rows` or the
    chosen token is negative nothing is written. Raises `ShapeError`.
    """
    num_rows, vocab = raw.shape
    num_asked, width = top_ids.shape
    check("logprobs", "raw", raw, (num_rows, vocab), *FLOATS, dense=False)
    if raw.stride(1) != 1 or not 0 < vocab <= MAX_VOCAB:
        raise ShapeError(
            "logprobs", "raw", f"dense rows of 1 to {MAX_VOCAB}", f"{vocab} with strides {list(raw.stride())}"
        )
    check("logprobs", "chosen", chosen, (num_rows,), torch.int32)
    check("logprobs", "rows", rows, (num_asked,), torch.int32)
    check("logprobs", "numbers", numbers, (num_asked,), torch.int32)
    check("logprobs", "chosen_logprobs", chosen_logprobs, (num_asked,), torch.float32)
    check("logprobs", "top_ids", top_ids, (num_asked, width), torch.int32)
    check("logprobs", "top_logprobs", top_logprobs, (num_asked, width), torch.float32)
    if num_asked:
        device.launch(
            _CHOICES[raw.dtype, WIDE if vocab >= WIDE_FROM else NARROW],
            (num_asked, 1, 1),
            chosen_logprobs.data_ptr(),
            top_ids.data_ptr(),
            top_logprobs.data_ptr(),
            width,
            raw.data_ptr(),
            raw.stride(0),
            vocab,
            chosen.data_ptr(),
            rows.data_ptr(),
            numbers.data_ptr(),
        )


def logprobs_reference(raw: Tensor, token: int, number: int) -> tuple[float, list[int], list[float]]:
    """Give one row's chosen log-probability, its likeliest ids and theirs, from float64."""
    law = torch.log_softmax(raw.double(), -1)
    ids = raw.float().sort(descending=True, stable=True).indices[:number]
    return float(law[token]), ids.tolist(), law[ids].tolist()
