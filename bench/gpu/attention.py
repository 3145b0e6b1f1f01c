"""Attention kernels at the shapes of Llama-3.1-8B, beside torch's: `python -m bench.gpu.attention`.

Decode: 64 sequences, one token each; percent of the copy bandwidth of the same process, counting keys and values (and
their scales) once. Prefill: causal, one sequence; operations are those of the scores that are not masked.
"""

import sys
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from bench.gpu.ceilings import copy_bandwidth
from bench.gpu.clock import Clock
from bench.gpu.report import Figure, tell
from engine.device import Device, open_device
from engine.kernels.decode_plan import decode_plan
from engine.kernels.paged_decode import DecodeLimits, decode_workspace, paged_decode
from engine.kernels.paged_prefill import ROWS, paged_prefill
from engine.kernels.paged_prefill_sm90 import ROWS as ROWS_SM90
from engine.kernels.paged_prefill_sm90 import paged_prefill_sm90, prefill_pool_map
from engine.kernels.prefill_plan import max_prefill_tiles, prefill_plan
from engine.kernels.registry import HOPPER

HEADS, KV_HEADS, HEAD_DIM, BLOCK_SIZE = 32, 8, 128, 16
DTYPE = torch.bfloat16
SCALE = HEAD_DIM**-0.5


@dataclass(frozen=True)
class Size:
    """How much is measured. Decode goals are percent of the copy bandwidth, by context; prefill's is TFLOPS."""

    batch: int
    decode_goals: dict[int, float]
    quantised_goals: dict[int, float]
    prefill_goals: dict[int, float | None]


FULL = Size(64, {1024: 70, 2048: 80, 4096: 87, 8192: 90}, {8192: 86}, {2048: None, 8192: 540})
SMALL = Size(2, {64: 70}, {64: 86}, {96: 540})


def main(kind: str = "cuda") -> int:
    """Measure all of it; in the emulator one small shape each, to see that it runs."""
    device = open_device(kind)
    size = FULL if kind.startswith("cuda") else SMALL
    clock, copied = Clock(device), copy_bandwidth(device)
    figures = [Figure("device copy, read and written", copied / 1e9, "GB/s")]
    for stored, goals in ((DTYPE, size.decode_goals), (torch.float8_e4m3fn, size.quantised_goals)):
        for context, goal in goals.items():
            figures += decode(device, clock, copied, size.batch, context, stored, goal)
    for length, least in size.prefill_goals.items():
        figures += prefill(device, clock, length, least)
    tell(figures)
    return 0


def filled(device: Device, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Random memory, made where it lies."""
    if device.torch_device.type == "cuda":
        return torch.randn(shape, device=device.torch_device, dtype=torch.bfloat16).to(dtype)
    return device.upload(torch.randn(shape).to(dtype))


def integers(device: Device, values: list[int]) -> Tensor:
    """int32 on the device."""
    return device.upload(torch.tensor(values, dtype=torch.int32))


def decode(
    device: Device, clock: Clock, copied: float, batch: int, context: int, stored: torch.dtype, goal: float
) -> list[Figure]:
    """Ours, its plan, and torch's scaled_dot_product_attention over contiguous keys and values."""
    blocks = context // BLOCK_SIZE
    pool = filled(device, (batch * blocks, 2, KV_HEADS, BLOCK_SIZE, HEAD_DIM), stored)
    scales = None if stored is DTYPE else filled(device, tuple(pool.shape[:-1]), torch.float32).abs_()
    qkv = filled(device, (batch, HEADS + 2 * KV_HEADS, HEAD_DIM), DTYPE)
    out = device.empty((batch, HEADS, HEAD_DIM), DTYPE)
    shuffled = torch.randperm(batch * blocks, generator=torch.Generator().manual_seed(1)).to(torch.int32)
    tables = device.upload(shuffled.view(batch, blocks))
    starts, lengths = integers(device, list(range(batch + 1))), integers(device, [context] * batch)
    limits = DecodeLimits(
        num_heads=HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        dtype=DTYPE,
        kv_dtype=stored,
        max_sequences=batch,
    )
    workspace = decode_workspace(device, limits)
    decode_plan(device, workspace.plan, starts, lengths)
    planned = clock.seconds(lambda: decode_plan(device, workspace.plan, starts, lengths))
    seconds = clock.seconds(
        lambda: paged_decode(device, workspace, out, qkv, pool, tables, scale=SCALE, kv_scales=scales)
    )
    size = pool.numel() * pool.element_size() + (0 if scales is None else scales.numel() * 4)
    name = f"decode, {batch} x {context}, {str(stored).removeprefix('torch.')} KV"
    figures = [
        Figure(name, 100 * size / seconds / copied, "% of copy", goal),
        Figure(f"{name}: its plan", planned * 1e6, "µs"),
    ]
    if stored is DTYPE:
        keys, values = (filled(device, (batch, KV_HEADS, context, HEAD_DIM), DTYPE) for _ in range(2))
        queries = qkv[:, :HEADS, None]
        theirs = clock.seconds(
            lambda: functional.scaled_dot_product_attention(queries, keys, values, scale=SCALE, enable_gqa=True)
        )
        figures.append(Figure(f"{name}: torch SDPA", 100 * size / theirs / copied, "% of copy"))
    return figures


def prefill(device: Device, clock: Clock, length: int, goal: float | None) -> list[Figure]:
    """Both of our kernels, and torch's."""
    pool = filled(device, (-(-length // BLOCK_SIZE), 2, KV_HEADS, BLOCK_SIZE, HEAD_DIM), DTYPE)
    qkv = filled(device, (length, HEADS + 2 * KV_HEADS, HEAD_DIM), DTYPE)
    out = device.empty((length, HEADS, HEAD_DIM), DTYPE)
    starts, lengths = integers(device, [0, length]), integers(device, [length])
    tables = device.upload(torch.arange(pool.shape[0], dtype=torch.int32)[None])
    operations = 4 * HEAD_DIM * HEADS * (length * (length + 1) // 2)

    def tiles(rows: int) -> Tensor:
        listed = device.empty((max_prefill_tiles(length, 1, HEADS // KV_HEADS, rows), 2), torch.int32)
        prefill_plan(device, listed, starts, lengths, group=HEADS // KV_HEADS, rows=rows)
        return listed

    name = f"prefill, {length} tokens, causal"
    figures = []
    if device.arch in HOPPER:
        pool_map, listed = prefill_pool_map(device, pool), tiles(ROWS_SM90)
        seconds = clock.seconds(
            lambda: paged_prefill_sm90(device, out, qkv, pool, pool_map, listed, starts, lengths, tables, scale=SCALE)
        )
        figures.append(Figure(name, operations / seconds / 1e12, "TFLOPS", goal))
    plain = tiles(ROWS)
    seconds = clock.seconds(lambda: paged_prefill(device, out, qkv, pool, plain, starts, lengths, tables, scale=SCALE))
    figures.append(Figure(f"{name}: by mma.sync", operations / seconds / 1e12, "TFLOPS"))
    return figures + _torch_prefill(device, clock, length, operations, name)


def _torch_prefill(device: Device, clock: Clock, length: int, operations: int, name: str) -> list[Figure]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    queries, keys, values = (filled(device, (1, HEADS, length, HEAD_DIM), DTYPE) for _ in range(3))

    figures = []
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        try:
            with sdpa_kernel(backend):
                seconds = clock.seconds(
                    lambda: functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
                )
        except RuntimeError:  # this build or this device has no such kernel
            continue
        figures.append(Figure(f"{name}: torch {backend.name.lower()}", operations / seconds / 1e12, "TFLOPS"))
    return figures


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
