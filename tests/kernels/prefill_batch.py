"""Ragged batches for the prefill kernels: what is not to be read holds NaN or leads nowhere."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.device import Device
from engine.kernels.dtypes import dequantise_reference, quantise_reference
from engine.kernels.paged_prefill import ROWS, paged_prefill, paged_prefill_reference
from engine.kernels.paged_prefill_sm90 import ROWS as ROWS_SM90
from engine.kernels.paged_prefill_sm90 import paged_prefill_sm90, prefill_pool_map
from engine.kernels.prefill_plan import max_prefill_tiles, prefill_plan
from tests.kernels.closeness import assert_close_as_low_precision

NOWHERE = 0x7FFFFFFF  # an entry of a block table that is not to be followed
UNUSED = 0  # the block that no token was written to


@dataclass(frozen=True)
class Shape:
    """Heads, pages and types of a batch."""

    head_dim: int = 64
    num_kv_heads: int = 2
    group: int = 2
    block_size: int = 16
    window: int = 0
    dtype: torch.dtype = torch.bfloat16
    stored: torch.dtype | None = None

    @property
    def num_heads(self) -> int:
        return self.num_kv_heads * self.group

    @property
    def scale(self) -> float:
        return 1 / math.sqrt(self.head_dim)


@dataclass
class Prompt:
    """One sequence: queries of all its tokens, keys and values as numbers, and as the pool holds them."""

    queries: Tensor
    keys: Tensor
    values: Tensor
    stored: Tensor  # [2, length, num_kv_heads, head_dim]
    scales: Tensor | None  # [2, length, num_kv_heads]

    def __len__(self) -> int:
        return self.queries.shape[0]


@dataclass(frozen=True)
class Chunk:
    """Tokens `start` to `end - 1` of a prompt, those before being in the pool; a prompt of None is padding."""

    prompt: Prompt | None
    start: int
    end: int


def prompt(
    shape: Shape, length: int, seed: int = 0, spoil: Callable[[Tensor, Tensor, Tensor], None] | None = None
) -> Prompt:
    """Draw a prompt; `spoil` may change queries, keys and values in place."""
    random = torch.Generator().manual_seed(seed)

    def draw(heads: int) -> Tensor:
        return torch.randn(length, heads, shape.head_dim, generator=random)

    queries, keys, values = draw(shape.num_heads), draw(shape.num_kv_heads), draw(shape.num_kv_heads)
    if spoil is not None:
        spoil(queries, keys, values)
    both = torch.stack((keys, values)).to(shape.dtype)
    scales = None
    if shape.stored is not None:
        both, scales = quantise_reference(both, shape.stored)
    numbers = both if scales is None else dequantise_reference(both, scales)
    return Prompt(queries.to(shape.dtype), numbers[0], numbers[1], both, scales)


class Batch:
    """Chunks side by side in a pool of their own, on a device.

    Blocks are shuffled. Slots that no token was written to hold NaN, as do the keys and values beside the queries.
    Table entries behind a sequence's last block, and those that its window has left, are of a block full of NaN; the
    last of a row leads nowhere.
    """

    def __init__(self, device: Device, shape: Shape, chunks: list[Chunk]) -> None:
        self.device, self.shape, self.chunks = device, shape, chunks
        size = shape.block_size
        num_blocks = [-(-chunk.end // size) if chunk.prompt else 0 for chunk in chunks]
        order = (1 + torch.randperm(sum(num_blocks), generator=torch.Generator().manual_seed(1))).tolist()
        stored = shape.stored or shape.dtype
        raw = torch.int8 if stored.itemsize == 1 else stored  # torch neither fills nor indexes e4m3
        planes = (1 + len(order), 2, shape.num_kv_heads, size, shape.head_dim)
        pool = torch.full(planes, 0x7F if raw == torch.int8 else math.nan, dtype=raw)  # of e4m3 0x7F is NaN
        scales = torch.full(pool.shape[:4], math.nan)
        tables = torch.full((len(chunks), max(num_blocks, default=0) + 2), UNUSED, dtype=torch.int32)
        tables[:, -1] = NOWHERE
        for chunk, count, table in zip(chunks, num_blocks, tables, strict=True):
            blocks = torch.tensor([order.pop() for _ in range(count)], dtype=torch.int64)
            left = max(0, chunk.start - shape.window + 1) // size if shape.window else 0
            table[left:count] = blocks[left:]
            if chunk.prompt is None:
                continue
            at = torch.arange(chunk.end)
            block, offset = blocks[at // size], at % size
            pool[block, :, :, offset] = chunk.prompt.stored[:, : chunk.end].view(raw).transpose(0, 1)
            if chunk.prompt.scales is not None:
                scales[block, :, :, offset] = chunk.prompt.scales[:, : chunk.end].transpose(0, 1)
        starts = torch.tensor([0, *(chunk.end - chunk.start for chunk in chunks)]).cumsum(0).int()
        self.num_tokens = int(starts[-1])
        qkv_heads = shape.num_heads + 2 * shape.num_kv_heads
        qkv = torch.full((self.num_tokens, qkv_heads, shape.head_dim), math.nan, dtype=shape.dtype)
        for chunk, start, end in zip(chunks, starts[:-1], starts[1:], strict=True):
            if chunk.prompt is not None:
                qkv[start:end, : shape.num_heads] = chunk.prompt.queries[chunk.start : chunk.end]
        self.pool, self.qkv, self.tables = device.upload(pool.view(stored)), device.upload(qkv), device.upload(tables)
        self.scales = None if shape.stored is None else device.upload(scales)
        self.query_starts = device.upload(starts)
        lengths = [chunk.end if chunk.prompt else 0 for chunk in chunks]
        self.kv_lengths = device.upload(torch.tensor(lengths, dtype=torch.int32))

    def tiles(self, rows: int) -> Tensor:
        """This batch's plan."""
        group, count = self.shape.group, len(self.chunks)
        tiles = self.device.empty((max_prefill_tiles(self.num_tokens, count, group, rows), 2), torch.int32)
        prefill_plan(self.device, tiles, self.query_starts, self.kv_lengths, group=group, rows=rows)
        return tiles

    def outputs(self) -> tuple[Tensor, Tensor]:
        """Where a kernel writes to, full of NaN."""
        out = self.device.empty((self.num_tokens, self.shape.num_heads, self.shape.head_dim), self.shape.dtype)
        lse = self.device.empty((self.num_tokens, self.shape.num_heads), torch.float32)
        return out.fill_(math.nan), lse.fill_(math.nan)

    def exact(self, plain: bool = False) -> tuple[Tensor, Tensor]:
        """The reference, sequence by sequence: zeros and minus infinity for padding."""
        outs, sums = [], []
        for chunk in self.chunks:
            length = chunk.end - chunk.start
            if chunk.prompt is None:
                outs.append(torch.zeros(length, self.shape.num_heads, self.shape.head_dim, dtype=torch.float64))
                sums.append(torch.full((length, self.shape.num_heads), -math.inf, dtype=torch.float64))
                continue
            out, lse = paged_prefill_reference(
                chunk.prompt.queries[chunk.start : chunk.end],
                chunk.prompt.keys[: chunk.end],
                chunk.prompt.values[: chunk.end],
                scale=self.shape.scale,
                window=self.shape.window,
                plain=plain,
            )
            outs.append(out.double())
            sums.append(lse.double())
        return torch.cat(outs), torch.cat(sums)


Kernel = Callable[[Batch], tuple[Tensor, Tensor]]


def attend(batch: Batch, wants_lse: bool = True) -> tuple[Tensor, Tensor]:
    """Run `paged_prefill`: the outputs and the log-sum-exps, on the CPU."""
    out, lse = batch.outputs()
    paged_prefill(
        batch.device,
        out,
        batch.qkv,
        batch.pool,
        batch.tiles(ROWS),
        batch.query_starts,
        batch.kv_lengths,
        batch.tables,
        scale=batch.shape.scale,
        window=batch.shape.window,
        kv_scales=batch.scales,
        lse=lse if wants_lse else None,
    )
    batch.device.synchronize()
    return out.cpu(), lse.cpu()


def attend_sm90(batch: Batch, wants_lse: bool = True) -> tuple[Tensor, Tensor]:
    """Run `paged_prefill_sm90`."""
    out, lse = batch.outputs()
    paged_prefill_sm90(
        batch.device,
        out,
        batch.qkv,
        batch.pool,
        prefill_pool_map(batch.device, batch.pool),
        batch.tiles(ROWS_SM90),
        batch.query_starts,
        batch.kv_lengths,
        batch.tables,
        scale=batch.shape.scale,
        window=batch.shape.window,
        lse=lse if wants_lse else None,
    )
    batch.device.synchronize()
    return out.cpu(), lse.cpu()


def lengths(shape: Shape, *chunks: tuple[int, int]) -> list[Chunk]:
    """Chunks of prompts of their own, each as (query tokens, keys)."""
    return [Chunk(prompt(shape, keys, seed), keys - queries, keys) for seed, (queries, keys) in enumerate(chunks)]


def assert_right(batch: Batch, kernel: Kernel) -> None:
    """Hold a kernel to the reference, outputs and log-sum-exps."""
    out, lse = kernel(batch)
    exact, exact_lse = batch.exact()
    plain, plain_lse = batch.exact(plain=True)

    assert_close_as_low_precision(out, exact, plain)
    if batch.shape.stored is None:
        torch.testing.assert_close(lse.double(), exact_lse, atol=2e-5, rtol=2e-5)
    else:  # codes become numbers of the queries' type
        assert_close_as_low_precision(lse, exact_lse, plain_lse)


def assert_cut_alike(device: Device, shape: Shape, kernel: Kernel, length: int, *cuts: int) -> None:
    """Hold a prompt's bits to be the same at once and alone, or in chunks that end at `cuts` and beside others.

    What a later chunk brings is not in the pool yet when an earlier one is computed. The last chunk is what is left of
    the prompt where the tokens before it came from the prefix cache.
    """
    whole = prompt(shape, length)
    once = kernel(Batch(device, shape, [Chunk(whole, 0, length)]))
    ends = [*cuts, length]
    parts = [
        kernel(Batch(device, shape, [*lengths(shape, (3, 19)), Chunk(whole, start, end), *lengths(shape, (1, 40))]))
        for start, end in zip([0, *cuts], ends, strict=True)
    ]
    for index in range(2):
        assert torch.equal(once[index], torch.cat([part[index][3:-1] for part in parts]))


def outlier(queries: Tensor, keys: Tensor, values: Tensor) -> None:
    """Give each query one channel, and each key and value, that is a hundred times as large as the others."""
    for each in (queries, keys, values):
        each[..., 5] *= 100


def equal_keys(queries: Tensor, keys: Tensor, values: Tensor) -> None:
    """Make all keys one, so that weights are even."""
    keys[:] = keys[0]
