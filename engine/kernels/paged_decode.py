"""Attention of a few query tokens a sequence over paged keys and values: `cuda/paged_decode.cu`, on every card."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.device import Device
from engine.errors import ShapeError
from engine.kernels.decode_plan import DecodePlan, make_decode_plan
from engine.kernels.dtypes import HALVES, LARGEST, NAMES
from engine.kernels.registry import Instance
from engine.kernels.shapes import check

HEAD_DIMS = (64, 96, 128, 256)
BLOCK_SIZES = (16, 32, 64)
CODES = tuple(LARGEST)
SLAB = 16  # tokens
COLUMN_BYTES = 16 * 40 * 4  # of a warp, where its output is put together with the others'
LARGEST_RING = 66 * 1024  # so that sm_89 has room for it, and sm_90 for three

# Shared memory of a multiprocessor; each block takes a kilobyte more than it asks for.
MULTIPROCESSOR_BYTES = {"sm_80": 164 * 1024, "sm_89": 100 * 1024, "sm_90": 228 * 1024, "sm_90a": 228 * 1024}
RESERVED_BYTES = 1024


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """An instance and what the plan must know of it."""

    instance: Instance
    rows: int
    tile_tokens: int
    most_blocks: int
    """That the registers of a multiprocessor have room for."""

    def blocks_per_multiprocessor(self, arch: str) -> int:
        """How many of its blocks are at work at once on a multiprocessor."""
        warps = self.instance.block[0] // 32
        static = 2 * 4 * warps * self.rows + 16  # maxima, sums and a ticket
        a_block = -(-(self.instance.shared_bytes + static) // 128) * 128 + RESERVED_BYTES
        return max(1, min(self.most_blocks, MULTIPROCESSOR_BYTES[arch] // a_block))


def _choice(dtype: torch.dtype, stored: torch.dtype, head_dim: int, row_tiles: int) -> Choice:
    warps = 2 if head_dim * stored.itemsize > 256 else 4
    slabs = 2 if head_dim * stored.itemsize == 64 else 1
    stage = slabs * SLAB * 2 * (head_dim * stored.itemsize + (4 if stored in CODES else 0))
    stages = 3 if 3 * warps * stage <= LARGEST_RING else 2
    queries = row_tiles * (head_dim // 16) * 32 * 16
    shape = f"{head_dim}, {row_tiles}, {warps}, {slabs}, {stages}"
    return Choice(
        instance=Instance(
            source="paged_decode.cu",
            expression=f"paged_decode<{NAMES[dtype]}, {NAMES[stored]}, {shape}>",
            signature="PPPPPPPPPPPiiiiiif",
            block=(32 * warps, 1, 1),
            shared_bytes=stages * warps * stage + max(queries, warps * COLUMN_BYTES),
            overlaps=True,
        ),
        rows=16 * row_tiles,
        tile_tokens=warps * slabs * SLAB,
        most_blocks=2 if warps == 4 and (row_tiles == 2 or head_dim == 256) else 3,  # as in the kernel's launch bounds
    )


# Where speculation would need several tiles of 16 rows, there are tiles of 32 too.
_TALL = {(torch.bfloat16, stored, 128) for stored in (torch.bfloat16, *CODES)} | {(torch.bfloat16, torch.bfloat16, 64)}

_CHOICES = {
    (dtype, stored, head_dim, row_tiles): _choice(dtype, stored, head_dim, row_tiles)
    for dtype in HALVES
    for stored in (dtype, *CODES)
    for head_dim in HEAD_DIMS
    for row_tiles in ((1, 2) if (dtype, stored, head_dim) in _TALL else (1,))
}
INSTANCES = tuple(choice.instance for choice in _CHOICES.values())


@dataclass(frozen=True, slots=True, eq=False)
class DecodeWorkspace:
    """A plan and where partial results lie until they are merged. One a window; layers use it one after the other."""

    plan: DecodePlan
    choice: Choice
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    kv_dtype: torch.dtype
    partial_out: Tensor
    partial_sums: Tensor
    counters: Tensor


def decode_workspace(
    device: Device,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    kv_dtype: torch.dtype,
    max_sequences: int,
    max_q_len: int = 1,
    window: int = 0,
    split_tokens: int = 0,
    max_kv_tokens: int = 0,
) -> DecodeWorkspace:
    """Allocate all that steps of at most `max_sequences`, of at most `max_q_len` query tokens each, will need.

    With `split_tokens` the bits of a sequence do not depend on the batch: long ones are attended to in splits of so
    many tokens, at most `max_kv_tokens` in a step (all sequences' lengths together; beyond that, splits grow). Without,
    the work is dealt as evenly as it goes. Raises `ShapeError`.
    """
    if head_dim not in HEAD_DIMS or dtype not in HALVES or kv_dtype not in (dtype, *CODES):
        got = f"{head_dim} of {dtype}, stored as {kv_dtype}"
        raise ShapeError("paged_decode", "head_dim", f"one of {HEAD_DIMS} of {HALVES}, stored alike or as {CODES}", got)
    if num_heads % num_kv_heads:
        raise ShapeError("paged_decode", "num_heads", f"a multiple of {num_kv_heads}", str(num_heads))
    group = num_heads // num_kv_heads
    row_tiles = 2 if group * max_q_len > 16 and (dtype, kv_dtype, head_dim, 2) in _CHOICES else 1
    choice = _CHOICES[dtype, kv_dtype, head_dim, row_tiles]
    blocks = device.num_multiprocessors * choice.blocks_per_multiprocessor(device.arch)
    max_lanes_each = -(-group * max_q_len // choice.rows)
    plan = make_decode_plan(
        device,
        max_sequences=max_sequences,
        max_tokens=max_sequences * max_q_len,
        group=group,
        rows_per_item=choice.rows,
        tile_tokens=choice.tile_tokens,
        num_parts=max(1, blocks // num_kv_heads),
        window=window,
        split_tokens=split_tokens,
        # A sequence's splits: its length over theirs, and one more at each end.
        max_splits=max_lanes_each * (max_kv_tokens // split_tokens + max_sequences) if split_tokens else 0,
    )
    num_slots = plan.items.shape[0] if split_tokens else 2 * plan.num_parts
    return DecodeWorkspace(
        plan=plan,
        choice=choice,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        dtype=dtype,
        kv_dtype=kv_dtype,
        partial_out=device.empty((num_slots, num_kv_heads, choice.rows, head_dim), torch.float32),
        partial_sums=device.empty((num_slots, num_kv_heads, choice.rows), torch.float32),
        counters=device.zeros((num_slots, num_kv_heads), torch.int32),
    )


def paged_decode(
    device: Device,
    workspace: DecodeWorkspace,
    out: Tensor,
    qkv: Tensor,
    pool: Tensor,
    block_tables: Tensor,
    *,
    scale: float,
    kv_scales: Tensor | None = None,
    lse: Tensor | None = None,
) -> None:
    """Attend the batch that `decode_plan` has planned in this workspace; keys and values are in the pool already.

    `qkv: [num_tokens, at least num_heads, head_dim]`, of which the first `num_heads` are the queries. `pool:
    [num_blocks, 2, num_kv_heads, block_size, head_dim]`, FP8 e4m3 and int8 with `kv_scales: [num_blocks, 2,
    num_kv_heads, block_size]` float32. `block_tables: [num_sequences, max_blocks]` int32; entries behind a sequence's
    last block are not followed.

    Writes `out: [num_tokens, num_heads, head_dim]` and, where given, `lse: [num_tokens, num_heads]` float32, the
    natural logarithm of the sum of exponentials; zeros and minus infinity for sequences of length 0. Tokens that belong
    to no sequence are left alone. Raises `ShapeError`.
    """
    plan, kv_heads, head_dim = workspace.plan, workspace.num_kv_heads, workspace.head_dim
    num_tokens, num_heads = out.shape[0], kv_heads * plan.group
    check("paged_decode", "out", out, (num_tokens, num_heads, head_dim), workspace.dtype)
    check("paged_decode", "qkv", qkv, (num_tokens, None, head_dim), workspace.dtype)
    check("paged_decode", "pool", pool, (None, 2, kv_heads, None, head_dim), workspace.kv_dtype)
    check("paged_decode", "block_tables", block_tables, (None, None), torch.int32)
    if lse is not None:
        check("paged_decode", "lse", lse, (num_tokens, num_heads), torch.float32)
    if pool.shape[3] not in BLOCK_SIZES:
        raise ShapeError("paged_decode", "pool", f"a block_size of {BLOCK_SIZES}", str(pool.shape[3]))
    if qkv.shape[1] < num_heads:
        raise ShapeError("paged_decode", "qkv", f"at least {num_heads} heads", str(qkv.shape[1]))
    coded = workspace.kv_dtype in CODES
    if coded != (kv_scales is not None):
        raise ShapeError("paged_decode", "kv_scales", "a tensor" if coded else "None", "the other")
    if kv_scales is not None:
        check("paged_decode", "kv_scales", kv_scales, tuple(pool.shape[:4]), torch.float32)
    device.launch(
        workspace.choice.instance,
        (kv_heads, plan.num_parts, 1),
        out.data_ptr(),
        0 if lse is None else lse.data_ptr(),
        qkv.data_ptr(),
        pool.data_ptr(),
        0 if kv_scales is None else kv_scales.data_ptr(),
        block_tables.data_ptr(),
        plan.items.data_ptr(),
        plan.item_starts.data_ptr(),
        workspace.partial_out.data_ptr(),
        workspace.partial_sums.data_ptr(),
        workspace.counters.data_ptr(),
        num_heads,
        kv_heads,
        qkv.stride(0),
        pool.shape[3].bit_length() - 1,
        block_tables.shape[1],
        plan.window,
        scale,
    )


def paged_decode_reference(
    queries: Tensor, keys: Tensor, values: Tensor, *, scale: float, window: int = 0, plain: bool = False
) -> tuple[Tensor, Tensor]:
    """Attend one sequence's last tokens, in float64, or as plain torch does in the queries' own type.

    `queries: [q_len, num_heads, head_dim]`; `keys, values: [length, num_kv_heads, head_dim]`, as numbers. Gives the
    output, of the queries' shape, and the log-sum-exp `[q_len, num_heads]`.
    """
    wide = queries.dtype if plain else torch.float64
    q_len, length = queries.shape[0], keys.shape[0]
    group = queries.shape[1] // keys.shape[1]
    q, k, v = (each.to(wide).transpose(0, 1) for each in (queries, keys, values))
    k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
    at, seen_at = torch.arange(length - q_len, length)[:, None], torch.arange(length)
    seen = (seen_at <= at) & ((seen_at > at - window) if window > 0 else (seen_at >= 0))
    scores = (q @ k.transpose(1, 2) * scale).masked_fill(~seen, -math.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1), scores.logsumexp(-1).transpose(0, 1)
