"""The tiles of a step's prefill, longest first: `cuda/prefill_plan.cu`.

Made once a step and read by every layer, whatever its window.
"""

import torch
from torch import Tensor

from engine.device import Device
from engine.errors import ShapeError
from engine.kernels.registry import Instance
from engine.kernels.shapes import check

NUM_THREADS = 128

# By the rows of a tile, which is for the attention kernel to say.
_CHOICES = {
    rows: Instance("prefill_plan.cu", f"prefill_plan<{rows}>", "PPPiii", (NUM_THREADS, 1, 1)) for rows in (64, 128)
}
INSTANCES = tuple(_CHOICES.values())


def max_prefill_tiles(num_tokens: int, num_sequences: int, group: int, rows: int) -> int:
    """How many tiles there may be at most, however the tokens are shared out among the sequences."""
    return num_tokens * group // rows + num_sequences


def prefill_plan(
    device: Device, tiles: Tensor, query_starts: Tensor, kv_lengths: Tensor, *, group: int, rows: int
) -> None:
    """List the tiles of `rows` rows: (sequence, first row), and (-1, 0) behind the last.

    `tiles: [at least max_prefill_tiles(...), 2]`, `query_starts: [num_sequences + 1]`, `kv_lengths: [num_sequences]`,
    all int32. `group`: query heads that share a KV head. Raises `ShapeError`.
    """
    (num_sequences,) = kv_lengths.shape
    check("prefill_plan", "tiles", tiles, (None, 2), torch.int32)
    check("prefill_plan", "query_starts", query_starts, (num_sequences + 1,), torch.int32)
    check("prefill_plan", "kv_lengths", kv_lengths, (num_sequences,), torch.int32)
    if rows not in _CHOICES:
        raise ShapeError("prefill_plan", "rows", f"one of {tuple(_CHOICES)}", str(rows))
    if max_tiles := tiles.shape[0]:
        device.launch(
            _CHOICES[rows],
            (-(-max_tiles // NUM_THREADS), 1, 1),
            tiles.data_ptr(),
            query_starts.data_ptr(),
            kv_lengths.data_ptr(),
            num_sequences,
            group,
            max_tiles,
        )


def prefill_plan_reference(
    max_tiles: int, query_starts: list[int], kv_lengths: list[int], *, group: int, rows: int
) -> list[tuple[int, int]]:
    """Give the same list, sorted by the number of keys that a tile sees and, among equals, in the batch's order."""
    found = []
    for sequence, kv_length in enumerate(kv_lengths):
        num_queries = query_starts[sequence + 1] - query_starts[sequence]
        for first_row in range(0, num_queries * group, rows):
            last_row = min(first_row + rows, num_queries * group) - 1
            seen = kv_length - num_queries + last_row // group + 1
            found.append((-seen, sequence, first_row))
    listed = [(sequence, first_row) for _, sequence, first_row in sorted(found)]
    return listed + [(-1, 0)] * (max_tiles - len(listed))
