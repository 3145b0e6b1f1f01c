"""Causal attention of prompts over paged keys and values by wgmma and TMA: `cuda/paged_prefill_sm90.cu`.

For Hopper, and for keys and values of the queries' own type; the reference is `paged_prefill_reference`.
"""

from torch import Tensor

from engine.device import Device
from engine.kernels.dtypes import HALVES, NAMES
from engine.kernels.paged_prefill import HEAD_DIMS, LOG2_E, check_arguments
from engine.kernels.registry import HOPPER, Instance
from engine.kernels.shapes import check

ROWS = 128
"""Rows of a tile: what `prefill_plan` is asked for."""

NUM_THREADS = 384
BARRIER_BYTES = 72


def _span(head_dim: int) -> int:
    """Numbers of head_dim in one swizzled row of shared memory."""
    return 64 if head_dim % 64 == 0 else 32


def _shared_bytes(head_dim: int) -> int:
    keys = 64 if head_dim > 128 else 128  # of a tile
    return (ROWS + 4 * keys) * head_dim * 2 + BARRIER_BYTES


_CHOICES = {
    (dtype, head_dim): Instance(
        source="paged_prefill_sm90.cu",
        expression=f"paged_prefill_sm90<{NAMES[dtype]}, {head_dim}>",
        signature="PPPTPPPPiiiiiif",
        block=(NUM_THREADS, 1, 1),
        shared_bytes=_shared_bytes(head_dim),
        archs=HOPPER,
    )
    for dtype in HALVES
    for head_dim in HEAD_DIMS
}
INSTANCES = tuple(_CHOICES.values())


def prefill_pool_map(device: Device, pool: Tensor) -> bytes:
    """Describe the pool of one layer to TMA. To be made once, and again where the pool is another.

    `pool: [num_blocks, 2, num_kv_heads, block_size, head_dim]`. Raises `ShapeError`.
    """
    num_blocks, kinds, num_kv_heads, block_size, head_dim = pool.shape
    span = _span(head_dim)
    planes = pool.view(num_blocks, kinds * num_kv_heads, block_size, head_dim)
    return device.tensor_map(planes, (1, 1, block_size, span), span * pool.element_size())


def paged_prefill_sm90(
    device: Device,
    out: Tensor,
    qkv: Tensor,
    pool: Tensor,
    pool_map: bytes,
    tiles: Tensor,
    query_starts: Tensor,
    kv_lengths: Tensor,
    block_tables: Tensor,
    *,
    scale: float,
    window: int = 0,
    lse: Tensor | None = None,
) -> None:
    """Do what `paged_prefill` does. `pool_map` is the pool's, of `prefill_pool_map`; `tiles` are made for `ROWS`.

    Raises `ShapeError`.
    """
    check_arguments("paged_prefill_sm90", out, qkv, pool, tiles, query_starts, kv_lengths, block_tables, lse)
    check("paged_prefill_sm90", "pool", pool, (None,) * 5, out.dtype)
    if tiles.shape[0]:
        device.launch(
            _CHOICES[out.dtype, pool.shape[4]],
            (pool.shape[2], tiles.shape[0], 1),
            out.data_ptr(),
            0 if lse is None else lse.data_ptr(),
            qkv.data_ptr(),
            pool_map,
            tiles.data_ptr(),
            query_starts.data_ptr(),
            kv_lengths.data_ptr(),
            block_tables.data_ptr(),
            block_tables.shape[1],
            pool.shape[3].bit_length() - 1,
            pool.shape[0],
            out.shape[1],
            qkv.stride(0),
            window,
            scale * LOG2_E,
        )
