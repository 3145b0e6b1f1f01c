"""Norm of queries and keys, rotary positions, and keys and values into their pages: `cuda/rotary_kv_write.cu`."""

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.device import Device
from engine.errors import ShapeError
from engine.kernels.dtypes import HALVES, LARGEST, NAMES, quantise_reference
from engine.kernels.registry import Instance
from engine.kernels.shapes import check

NUM_THREADS = 128
MAX_HEAD_DIM = 512  # 16 numbers for each lane of a warp

_CHOICES = {
    (dtype, stored): Instance(
        source="rotary_kv_write.cu",
        expression=f"rotary_kv_write<{NAMES[dtype]}, {NAMES[stored]}, {NUM_THREADS}>",
        signature="PPPPPPPPiiiiiif",
        block=(NUM_THREADS, 1, 1),
        overlaps=True,
    )
    for dtype in HALVES
    for stored in (dtype, *LARGEST)
}
INSTANCES = tuple(_CHOICES.values())


@dataclass(frozen=True, slots=True)
class QKNorm:
    """The norm before the rotation. `query, key: [head_dim]` weights, in the order that the dimensions have."""

    query: Tensor
    key: Tensor
    eps: float


def rotary_kv_write(
    device: Device,
    qkv: Tensor,
    pool: Tensor,
    rotations: Tensor,
    positions: Tensor,
    slots: Tensor,
    *,
    paired: bool,
    kv_scales: Tensor | None = None,
    norm: QKNorm | None = None,
) -> None:
    """Turn queries and keys in place, and store keys and values at their slots.

    `qkv: [num_tokens, num_heads + 2 * num_kv_heads, head_dim]` bf16 or fp16; `head_dim` is a multiple of 16.
    `pool: [num_blocks, 2, num_kv_heads, block_size, head_dim]` of the same type, or FP8 e4m3 or int8 with
    `kv_scales: [num_blocks, 2, num_kv_heads, block_size]` float32.
    `rotations: [num_positions, head_dim / 2, 2]` float32, cosine and sine: `torch.view_as_real` of the model's.
    `positions, slots: [num_tokens]` int32; a slot is `block * block_size + offset`, and a negative one stores nothing.
    `paired`: dimensions that turn together are neighbours, as the decoder lays them out; else half a head apart.
    Raises `ShapeError`.
    """
    check("rotary_kv_write", "qkv", qkv, (None, None, None), *HALVES)
    num_tokens, num_rows, head_dim = qkv.shape
    check("rotary_kv_write", "pool", pool, (None, 2, None, None, head_dim), qkv.dtype, *LARGEST)
    _, _, num_kv_heads, block_size, _ = pool.shape
    num_heads = num_rows - 2 * num_kv_heads
    check("rotary_kv_write", "rotations", rotations, (None, head_dim // 2, 2), torch.float32)
    check("rotary_kv_write", "positions", positions, (num_tokens,), torch.int32)
    check("rotary_kv_write", "slots", slots, (num_tokens,), torch.int32)
    if head_dim % 16 or head_dim > MAX_HEAD_DIM:
        raise ShapeError("rotary_kv_write", "qkv", f"heads of a multiple of 16, at most {MAX_HEAD_DIM}", str(head_dim))
    if num_heads <= 0:
        raise ShapeError("rotary_kv_write", "qkv", f"more than {2 * num_kv_heads} heads", str(num_rows))
    if pool.dtype in LARGEST:
        if kv_scales is None:
            raise ShapeError("rotary_kv_write", "kv_scales", f"scales for {pool.dtype}", "None")
        check("rotary_kv_write", "kv_scales", kv_scales, pool.shape[:-1], torch.float32)
    if norm is not None:
        check("rotary_kv_write", "norm.query", norm.query, (head_dim,), qkv.dtype)
        check("rotary_kv_write", "norm.key", norm.key, (head_dim,), qkv.dtype)
    if not num_tokens:
        return
    lanes = 1 << (head_dim // 16 - 1).bit_length()
    device.launch(
        _CHOICES[qkv.dtype, pool.dtype],
        (num_tokens, -(-num_rows * lanes // NUM_THREADS), 1),
        qkv.data_ptr(),
        pool.data_ptr(),
        0 if kv_scales is None else kv_scales.data_ptr(),
        rotations.data_ptr(),
        0 if norm is None else norm.query.data_ptr(),
        0 if norm is None else norm.key.data_ptr(),
        positions.data_ptr(),
        slots.data_ptr(),
        num_heads,
        num_kv_heads,
        head_dim,
        lanes,
        block_size,
        paired,
        0.0 if norm is None else norm.eps,
    )


def rotary_reference(
    qkv: Tensor, rotations: Tensor, positions: Tensor, num_kv_heads: int, *, paired: bool, norm: QKNorm | None = None
) -> Tensor:
    """Give `qkv` after norm and rotation, in float32, unrounded."""
    num_turned = qkv.shape[1] - num_kv_heads
    queries, keys = qkv[:, : num_turned - num_kv_heads].float(), qkv[:, num_turned - num_kv_heads : num_turned].float()
    if norm is not None:
        queries, keys = (
            part * torch.rsqrt(part.square().mean(-1, keepdim=True) + norm.eps) * weight.float()
            for part, weight in ((queries, norm.query), (keys, norm.key))
        )
    turned = torch.cat([queries, keys], 1)
    x, y = (turned[..., 0::2], turned[..., 1::2]) if paired else turned.chunk(2, -1)
    cos, sin = rotations[positions.long()][:, None].unbind(-1)
    parts = (x * cos - y * sin, x * sin + y * cos)
    turned = torch.stack(parts, -1).flatten(-2) if paired else torch.cat(parts, -1)
    return torch.cat([turned, qkv[:, num_turned:].float()], 1)


def kv_write_reference(qkv: Tensor, pool: Tensor, slots: Tensor, kv_scales: Tensor | None = None) -> None:
    """Store keys and values of `qkv`, as it is after the rotation, into the pool, quantised if there are scales."""
    num_kv_heads, block_size = pool.shape[2:4]
    for token, slot in enumerate(slots.tolist()):
        if slot < 0:
            continue
        block, offset = divmod(slot, block_size)
        values = qkv[token, -2 * num_kv_heads :].view(2, num_kv_heads, -1)
        if kv_scales is None:
            pool[block, :, :, offset] = values
        else:
            pool[block, :, :, offset], kv_scales[block, :, :, offset] = quantise_reference(values, pool.dtype)
