"""Causal attention of prompts over paged keys and values, on every card: `cuda/paged_prefill.cu`.

Here also: what both prefill kernels hold their arguments to, and the reference of both.
"""

import math

import torch
from torch import Tensor

from engine.device import Device
from engine.errors import ShapeError
from engine.kernels.dtypes import HALVES, LARGEST, NAMES
from engine.kernels.registry import Instance
from engine.kernels.shapes import check

HEAD_DIMS = (64, 96, 128, 256)
BLOCK_SIZES = (16, 32, 64)
ROWS = 64
"""Rows of a tile: what `prefill_plan` is asked for."""

NUM_THREADS = 128
ROW_PADDING = 8  # numbers
CODES = tuple(LARGEST)
LOG2_E = math.log2(math.e)


def _instance(dtype: torch.dtype, stored: torch.dtype, head_dim: int) -> Instance:
    keys = 32 if head_dim > 128 else 64  # of a tile
    codes = 2 * keys * head_dim if stored in CODES else 0
    return Instance(
        source="paged_prefill.cu",
        expression=f"paged_prefill<{NAMES[dtype]}, {NAMES[stored]}, {head_dim}>",
        signature="PPPPPPPPPiiiiif",
        block=(NUM_THREADS, 1, 1),
        shared_bytes=(ROWS + 2 * keys) * (head_dim + ROW_PADDING) * dtype.itemsize + codes,
    )


_CHOICES = {
    (dtype, stored, head_dim): _instance(dtype, stored, head_dim)
    for dtype in HALVES
    for stored in (dtype, *CODES)
    for head_dim in HEAD_DIMS
}
INSTANCES = tuple(_CHOICES.values())


def paged_prefill(
    device: Device,
    out: Tensor,
    qkv: Tensor,
    pool: Tensor,
    tiles: Tensor,
    query_starts: Tensor,
    kv_lengths: Tensor,
    block_tables: Tensor,
    *,
    scale: float,
    window: int = 0,
    kv_scales: Tensor | None = None,
    lse: Tensor | None = None,
) -> None:
    """Attend a ragged batch of prompt chunks whose keys and values are in the pool already.

    `qkv: [num_tokens, at least num_heads, head_dim]` bf16 or fp16, of which the first `num_heads` are the queries.
    `pool: [num_blocks, 2, num_kv_heads, block_size, head_dim]` of the same type, or FP8 e4m3 or int8 with `kv_scales:
    [num_blocks, 2, num_kv_heads, block_size]` float32. `tiles` as `prefill_plan` made them for `ROWS`. `query_starts:
    [num_sequences + 1]`, of which the first need not be 0; `kv_lengths: [num_sequences]` with this step's tokens;
    `block_tables: [num_sequences, max_blocks]`; all int32. A token sees the last `window` positions including its own;
    all where 0.

    Writes `out: [num_tokens, num_heads, head_dim]` and, where given, `lse: [num_tokens, num_heads]` float32, the
    natural logarithm of the sum of exponentials. A sequence of length 0 is padding: zeros, and minus infinity. Tokens
    that belong to no sequence are left alone. The bits of a token's output depend on its sequence's tokens up to its
    own alone. Raises `ShapeError`.
    """
    coded = pool.dtype in CODES
    check_arguments("paged_prefill", out, qkv, pool, tiles, query_starts, kv_lengths, block_tables, lse)
    check("paged_prefill", "pool", pool, (None,) * 5, out.dtype, *CODES)
    if coded != (kv_scales is not None):
        raise ShapeError("paged_prefill", "kv_scales", "a tensor" if coded else "None", "the other")
    if kv_scales is not None:
        check("paged_prefill", "kv_scales", kv_scales, tuple(pool.shape[:4]), torch.float32)
    if tiles.shape[0]:
        device.launch(
            _CHOICES[out.dtype, pool.dtype, pool.shape[4]],
            (pool.shape[2], tiles.shape[0], 1),
            out.data_ptr(),
            0 if lse is None else lse.data_ptr(),
            qkv.data_ptr(),
            pool.data_ptr(),
            0 if kv_scales is None else kv_scales.data_ptr(),
            tiles.data_ptr(),
            query_starts.data_ptr(),
            kv_lengths.data_ptr(),
            block_tables.data_ptr(),
            block_tables.shape[1],
            pool.shape[3].bit_length() - 1,
            out.shape[1],
            qkv.stride(0),
            window,
            scale * LOG2_E,
        )


def check_arguments(
    kernel: str,
    out: Tensor,
    qkv: Tensor,
    pool: Tensor,
    tiles: Tensor,
    query_starts: Tensor,
    kv_lengths: Tensor,
    block_tables: Tensor,
    lse: Tensor | None,
) -> None:
    """Hold what both kernels take to its shapes; the pool's type is the kernel's own. Raises `ShapeError`."""
    (num_sequences,) = kv_lengths.shape
    num_tokens, num_heads, head_dim = out.shape
    check(kernel, "out", out, (num_tokens, num_heads, head_dim), *HALVES)
    check(kernel, "qkv", qkv, (num_tokens, None, head_dim), out.dtype)
    check(kernel, "pool", pool, (None, 2, None, None, head_dim), pool.dtype)
    check(kernel, "tiles", tiles, (None, 2), torch.int32)
    check(kernel, "query_starts", query_starts, (num_sequences + 1,), torch.int32)
    check(kernel, "kv_lengths", kv_lengths, (num_sequences,), torch.int32)
    check(kernel, "block_tables", block_tables, (num_sequences, None), torch.int32)
    if lse is not None:
        check(kernel, "lse", lse, (num_tokens, num_heads), torch.float32)
    if head_dim not in HEAD_DIMS:
        raise ShapeError(kernel, "out", f"a head_dim of {HEAD_DIMS}", str(head_dim))
    if pool.shape[3] not in BLOCK_SIZES:
        raise ShapeError(kernel, "pool", f"a block_size of {BLOCK_SIZES}", str(pool.shape[3]))
    if num_heads % pool.shape[2] or qkv.shape[1] < num_heads:
        expected = f"a multiple of {pool.shape[2]} heads, at most {qkv.shape[1]}"
        raise ShapeError(kernel, "out", expected, str(num_heads))


def paged_prefill_reference(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    scale: float,
    window: int = 0,
    plain: bool = False,
) -> tuple[Tensor, Tensor]:
    """Attend one chunk, the last tokens of its sequence, in float64, or as plain torch does in the queries' own type.

    `queries: [num_queries, num_heads, head_dim]`; `keys, values: [length, num_kv_heads, head_dim]`, as numbers.
    Gives the output, of the queries' shape, and the log-sum-exp `[num_queries, num_heads]`.
    """
    wide = queries.dtype if plain else torch.float64
    group = queries.shape[1] // keys.shape[1]
    num_queries, length = queries.shape[0], keys.shape[0]
    q = queries.to(wide).transpose(0, 1)
    k, v = (each.to(wide).transpose(0, 1).repeat_interleave(group, dim=0) for each in (keys, values))
    at = torch.arange(length - num_queries, length)[:, None]
    seen_at = torch.arange(length)
    seen = seen_at <= at if window <= 0 else (seen_at <= at) & (seen_at > at - window)
    scores = (q @ k.transpose(1, 2) * scale).masked_fill(~seen, -math.inf)
    return (torch.softmax(scores, -1) @ v).transpose(0, 1), scores.logsumexp(-1).transpose(0, 1)
