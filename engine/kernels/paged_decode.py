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
DYNAMIC_ALIGNMENT = 1024  # DYN_SMEM's


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """An instance and what the plan must know of it."""

    instance: Instance
    rows: int
    tile_tokens: int
    static_bytes: int
    """Shared memory that the instance does not ask for. What it asks for begins at the next `DYNAMIC_ALIGNMENT`."""

    most_blocks: int
    """That the registers of a multiprocessor have room for, as the kernel's launch bounds say."""

    def blocks_per_multiprocessor(self, arch: str) -> int:
        """How many of its blocks are at work at once on a multiprocessor."""
        static = -(-self.static_bytes // DYNAMIC_ALIGNMENT) * DYNAMIC_ALIGNMENT
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
        static_bytes=2 * 4 * warps * 16 * row_tiles + 16,  # maxima, sums and a ticket
        most_blocks=2 if warps == 4 and (row_tiles == 2 or head_dim == 256) else 3,
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


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """A model's attention, and the largest steps that a workspace has room for."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    kv_dtype: torch.dtype
    max_sequences: int
    max_q_len: int = 1
    """Query tokens of a sequence."""

    window: int = 0
    """Positions that a token sees, its own included; all where 0."""

    split_tokens: int = 0
    """Not 0: sequences are attended to in splits of so many tokens, and a sequence's bits do not depend on the batch.
    0: the work is dealt as evenly as it goes."""

    max_kv_tokens: int = 0
    """All sequences' lengths together, where `split_tokens` is not 0. Beyond it splits grow."""

    @property
    def group(self) -> int:
        """Query heads that share a KV head."""
        return self.num_heads // self.num_kv_heads


@dataclass(frozen=True, slots=True, eq=False)
class DecodeWorkspace:
    """A plan, and where partial results lie until they are merged. One a window; layers use it one after the other."""

    limits: DecodeLimits
    choice: Choice
    plan: DecodePlan
    partial_out: Tensor
    partial_sums: Tensor
    counters: Tensor


def decode_workspace(device: Device, limits: DecodeLimits) -> DecodeWorkspace:
    """Allocate, once, all that steps within these limits will need. Raises `ShapeError`."""
    head_dim, dtype, stored = limits.head_dim, limits.dtype, limits.kv_dtype
    if (dtype, stored, head_dim, 1) not in _CHOICES:
        expected = f"one of {HEAD_DIMS} of {HALVES}, stored alike or as {CODES}"
        raise ShapeError("paged_decode", "head_dim", expected, f"{head_dim} of {dtype}, stored as {stored}")
    tall = limits.group * limits.max_q_len > 16 and (dtype, stored, head_dim) in _TALL
    return allocate(device, limits, _CHOICES[dtype, stored, head_dim, 2 if tall else 1])


def allocate(device: Device, limits: DecodeLimits, choice: Choice) -> DecodeWorkspace:
    """Make a workspace for one instance."""
    if limits.num_heads % limits.num_kv_heads:
        raise ShapeError("paged_decode", "num_heads", f"a multiple of {limits.num_kv_heads}", str(limits.num_heads))
    blocks = device.num_multiprocessors * choice.blocks_per_multiprocessor(device.arch)
    max_lanes_each = -(-limits.group * limits.max_q_len // choice.rows)
    max_splits = 0
    if limits.split_tokens:  # a sequence's: its length over theirs, and one more at each end
        max_splits = max_lanes_each * (limits.max_kv_tokens // limits.split_tokens + limits.max_sequences)
    plan = make_decode_plan(
        device,
        max_sequences=limits.max_sequences,
        max_tokens=limits.max_sequences * limits.max_q_len,
        group=limits.group,
        rows_per_item=choice.rows,
        tile_tokens=choice.tile_tokens,
        num_parts=max(1, blocks // limits.num_kv_heads),
        window=limits.window,
        split_tokens=limits.split_tokens,
        max_splits=max_splits,
    )
    slots = (plan.items.shape[0] if limits.split_tokens else 2 * plan.num_parts, limits.num_kv_heads)
    return DecodeWorkspace(
        limits=limits,
        choice=choice,
        plan=plan,
        partial_out=device.empty((*slots, choice.rows, limits.head_dim), torch.float32),
        partial_sums=device.empty((*slots, choice.rows), torch.float32),
        counters=device.zeros(slots, torch.int32),
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
    plan, limits = workspace.plan, workspace.limits
    check_arguments("paged_decode", limits, out, qkv, pool, block_tables, lse)
    coded = limits.kv_dtype in CODES
    if coded != (kv_scales is not None):
        raise ShapeError("paged_decode", "kv_scales", "a tensor" if coded else "None", "the other")
    if kv_scales is not None:
        check("paged_decode", "kv_scales", kv_scales, tuple(pool.shape[:4]), torch.float32)
    device.launch(
        workspace.choice.instance,
        (limits.num_kv_heads, plan.num_parts, 1),
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
        limits.num_heads,
        limits.num_kv_heads,
        qkv.stride(0),
        pool.shape[3].bit_length() - 1,
        block_tables.shape[1],
        limits.window,
        scale,
    )


def check_arguments(
    kernel: str,
    limits: DecodeLimits,
    out: Tensor,
    qkv: Tensor,
    pool: Tensor,
    block_tables: Tensor,
    lse: Tensor | None,
) -> None:
    """Hold what both decode kernels take to its shapes. Raises `ShapeError`."""
    num_tokens = out.shape[0]
    check(kernel, "out", out, (num_tokens, limits.num_heads, limits.head_dim), limits.dtype)
    check(kernel, "qkv", qkv, (num_tokens, None, limits.head_dim), limits.dtype)
    check(kernel, "pool", pool, (None, 2, limits.num_kv_heads, None, limits.head_dim), limits.kv_dtype)
    check(kernel, "block_tables", block_tables, (None, None), torch.int32)
    if lse is not None:
        check(kernel, "lse", lse, (num_tokens, limits.num_heads), torch.float32)
    if pool.shape[3] not in BLOCK_SIZES:
        raise ShapeError(kernel, "pool", f"a block_size of {BLOCK_SIZES}", str(pool.shape[3]))
    if qkv.shape[1] < limits.num_heads:
        raise ShapeError(kernel, "qkv", f"at least {limits.num_heads} heads", str(qkv.shape[1]))


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
