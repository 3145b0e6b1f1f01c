"""Attention of up to 64 packed rows a sequence, by wgmma and TMA: `cuda/paged_decode_sm90.cu`.

For Hopper, for keys and values of the queries' own type, and for speculation: `paged_decode` reads a sequence's keys
and values once for every 16 or 32 (query token, head) pairs that share a KV head, this one once for 64. The reference
is `paged_decode_reference`.
"""

import torch
from torch import Tensor

from engine.device import Device
from engine.errors import ShapeError
from engine.kernels.dtypes import HALVES, NAMES
from engine.kernels.paged_decode import HEAD_DIMS, Choice, DecodeLimits, DecodeWorkspace, allocate, check_arguments
from engine.kernels.registry import HOPPER, Instance

ROWS = 64
TILE_TOKENS = 64
NUM_THREADS = 160
RING_BYTES = {64: 96 * 1024, 96: 96 * 1024, 128: 96 * 1024, 256: 192 * 1024}  # two blocks a multiprocessor, or one


def _choice(dtype: torch.dtype, head_dim: int) -> Choice:
    tile = TILE_TOKENS * head_dim * 2
    stages = RING_BYTES[head_dim] // (2 * tile)
    return Choice(
        instance=Instance(
            source="paged_decode_sm90.cu",
            expression=f"paged_decode_sm90<{NAMES[dtype]}, {head_dim}, {stages}>",
            signature="PPPTPPPPPPiiiiiif",
            block=(NUM_THREADS, 1, 1),
            shared_bytes=tile + stages * (2 * tile + 16) + 8,
            archs=HOPPER,
            overlaps=True,
        ),
        rows=ROWS,
        tile_tokens=TILE_TOKENS,
        static_bytes=0,
        most_blocks=1 if head_dim == 256 else 2,
    )


_CHOICES = {(dtype, head_dim): _choice(dtype, head_dim) for dtype in HALVES for head_dim in HEAD_DIMS}
INSTANCES = tuple(choice.instance for choice in _CHOICES.values())


def decode_workspace_sm90(device: Device, limits: DecodeLimits) -> DecodeWorkspace:
    """Allocate, once, all that steps within these limits will need. Raises `ShapeError`."""
    choice = _CHOICES.get((limits.dtype, limits.head_dim))
    if choice is None or limits.kv_dtype != limits.dtype or device.arch not in HOPPER:
        got = f"{limits.head_dim} of {limits.dtype}, stored as {limits.kv_dtype}, on {device.arch}"
        raise ShapeError(
            "paged_decode_sm90", "head_dim", f"one of {HEAD_DIMS} of {HALVES}, stored alike, on Hopper", got
        )
    return allocate(device, limits, choice)


def paged_decode_sm90(
    device: Device,
    workspace: DecodeWorkspace,
    out: Tensor,
    qkv: Tensor,
    pool: Tensor,
    pool_map: bytes,
    block_tables: Tensor,
    *,
    scale: float,
    lse: Tensor | None = None,
) -> None:
    """Do what `paged_decode` does, in a workspace of this kernel. `pool_map` is the pool's, of `prefill_pool_map`.

    Raises `ShapeError`.
    """
    plan, limits = workspace.plan, workspace.limits
    check_arguments("paged_decode_sm90", limits, out, qkv, pool, block_tables, lse)
    device.launch(
        workspace.choice.instance,
        (limits.num_kv_heads, plan.num_parts, 1),
        out.data_ptr(),
        0 if lse is None else lse.data_ptr(),
        qkv.data_ptr(),
        pool_map,
        block_tables.data_ptr(),
        plan.items.data_ptr(),
        plan.item_starts.data_ptr(),
        workspace.partial_out.data_ptr(),
        workspace.partial_sums.data_ptr(),
        workspace.counters.data_ptr(),
        limits.num_heads,
        qkv.stride(0),
        pool.shape[3].bit_length() - 1,
        block_tables.shape[1],
        pool.shape[0],
        limits.window,
        scale,
    )
