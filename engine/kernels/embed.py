"""Rows of a table by number, of tokens' embeddings or of wanted hidden states: `cuda/embed.cu`."""

import torch
from torch import Tensor

from engine.device import Device
from engine.errors import ShapeError
from engine.kernels.registry import Instance
from engine.kernels.shapes import check

NUM_THREADS = 256

INSTANCES = (
    Instance(
        source="embed.cu",
        expression=f"embed<{NUM_THREADS}>",
        signature="PPPi",
        block=(NUM_THREADS, 1, 1),
        overlaps=True,
    ),
)


def embed(device: Device, out: Tensor, table: Tensor, ids: Tensor) -> None:
    """Write `table[ids]`; zeros for a negative id. An id past the table is not looked for.

    `ids: [num_tokens]` int32; `table: [num_rows, hidden]` of any type, a row being a multiple of 16 bytes;
    `out: [num_tokens, hidden]` of the same type. Raises `ShapeError`.
    """
    check("embed", "ids", ids, (None,), torch.int32)
    check("embed", "table", table, (None, None), table.dtype)
    num_tokens, hidden = ids.shape[0], table.shape[1]
    check("embed", "out", out, (num_tokens, hidden), table.dtype)
    row_vectors, rest = divmod(hidden * table.element_size(), 16)
    if rest:
        raise ShapeError("embed", "table", "rows of a multiple of 16 bytes", f"{hidden} of {table.dtype}")
    if num_tokens:
        grid = (num_tokens, -(-row_vectors // NUM_THREADS), 1)
        device.launch(INSTANCES[0], grid, out.data_ptr(), table.data_ptr(), ids.data_ptr(), row_vectors)


def embed_reference(table: Tensor, ids: Tensor) -> Tensor:
    """Give the rows, zeros for negative ids."""
    rows = table[ids.clamp(min=0).long()]
    rows[ids < 0] = 0
    return rows
