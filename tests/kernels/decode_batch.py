"""Batches for the decode kernels: what is not to be read holds NaN or leads nowhere."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.device import Device
from engine.kernels.decode_plan import decode_plan
from engine.kernels.dtypes import LARGEST, dequantise_reference, quantise_reference
from engine.kernels.paged_decode import (
    DecodeLimits,
    DecodeWorkspace,
    decode_workspace,
    paged_decode,
    paged_decode_reference,
)
from engine.kernels.paged_decode_sm90 import INSTANCES as SM90_INSTANCES
from engine.kernels.paged_decode_sm90 import paged_decode_sm90
from engine.kernels.paged_prefill_sm90 import prefill_pool_map
from tests.kernels.closeness import assert_close_as_low_precision

NOWHERE = 0x7FFFFFFF  # an entry of a block table that is not to be followed
SPARE_BLOCKS = 2
LOG_SUM_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Shape:
    """Heads, pages and types of a batch."""

    head_dim: int = 64
    num_kv_heads: int = 2
    group: int = 4
    block_size: int = 16
    window: int = 0
    dtype: torch.dtype = torch.bfloat16
    stored: torch.dtype | None = None

    def __str__(self) -> str:
        stored = f"-{self.kv_dtype}" if self.stored else ""
        types = f"{self.dtype}{stored}".replace("torch.", "")
        window = f"-window{self.window}" if self.window else ""
        return f"{self.head_dim}-{self.num_kv_heads}x{self.group}-page{self.block_size}-{types}{window}"

    @property
    def kv_dtype(self) -> torch.dtype:
        return self.stored or self.dtype

    @property
    def num_heads(self) -> int:
        return self.num_kv_heads * self.group

    @property
    def scale(self) -> float:
        return 1 / math.sqrt(self.head_dim)


@dataclass(frozen=True)
class Entry:
    """One sequence: its query tokens, and its keys and values as the pool holds them."""

    queries: Tensor  # [q_len, num_heads, head_dim]
    stored: Tensor  # [2, length, num_kv_heads, head_dim]
    scales: Tensor | None  # [2, length, num_kv_heads]

    @property
    def length(self) -> int:
        return self.stored.shape[1]

    @property
    def keys_values(self) -> Tensor:
        return self.stored if self.scales is None else dequantise_reference(self.stored, self.scales)

    def last(self, q_len: int) -> "Entry":
        """The same sequence with fewer query tokens, its last."""
        return Entry(self.queries[-q_len:], self.stored, self.scales)


def entry(shape: Shape, length: int, q_len: int = 1, *, seed: int = 0, kind: str = "ordinary") -> Entry:
    """Make a sequence up: ordinary, or with one of the ugly features below."""
    rng = torch.Generator().manual_seed(1000 * seed + length)
    queries = torch.randn(q_len, shape.num_heads, shape.head_dim, generator=rng)
    keys_values = torch.randn(2, length, shape.num_kv_heads, shape.head_dim, generator=rng)
    if kind == "outliers":
        queries[..., 3] = 12.0
        keys_values[..., 5] = 40.0
        keys_values[0, length // 2 : length // 2 + 1] *= 4
    elif kind == "equal":
        keys_values[0] = 0.5
    elif kind == "late":  # the last key weighs more than float32 could tell from the others
        queries[..., 3] = 12.0
        keys_values[0, -1, :, 3] = 300.0
    elif kind == "steep":  # a query of which all but one number are nothing beside that
        queries[..., -1] = 2.0**20
    elif kind == "sizes":
        keys_values[1] *= torch.logspace(-6, 2, length)[:, None, None]
    queries, keys_values = queries.to(shape.dtype), keys_values.to(shape.dtype)
    if shape.stored is None:
        return Entry(queries, keys_values, None)
    return Entry(queries, *quantise_reference(keys_values, shape.stored))


@dataclass(frozen=True)
class Answer:
    """What a launch wrote."""

    out: Tensor
    lse: Tensor


class Laid:
    """A batch in a device's memory: blocks in no order, between others that are nobody's."""

    def __init__(self, device: Device, shape: Shape, entries: list[Entry]) -> None:
        self.shape, self.entries, self.device = shape, entries, device
        self.query_starts = [0]
        for each in entries:
            self.query_starts.append(self.query_starts[-1] + each.queries.shape[0])
        counts = [-(-each.length // shape.block_size) for each in entries]
        order = torch.randperm(sum(counts) + SPARE_BLOCKS, generator=torch.Generator().manual_seed(7)).tolist()
        tables = torch.full((len(entries), max(1, *counts)), NOWHERE, dtype=torch.int32)
        pool_shape = (len(order), 2, shape.num_kv_heads, shape.block_size, shape.head_dim)
        pool = torch.full((*pool_shape, shape.kv_dtype.itemsize), 0xFF, dtype=torch.uint8).view(shape.kv_dtype)
        pool = pool.view(pool_shape)
        scales = torch.full(pool_shape[:-1], torch.nan)
        for row, (each, count) in enumerate(zip(entries, counts, strict=True)):
            blocks = [order.pop() for _ in range(count)]
            first = max(0, each.length - each.queries.shape[0] + 1 - shape.window) if shape.window else 0
            seen = slice(first // shape.block_size, count)
            tables[row, seen] = torch.tensor(blocks[seen], dtype=torch.int32)
            for position in range(first, each.length):
                block, offset = blocks[position // shape.block_size], position % shape.block_size
                pool.view(torch.uint8)[block, :, :, offset] = each.stored.view(torch.uint8)[:, position]
                if each.scales is not None:
                    scales[block, :, :, offset] = each.scales[:, position]
        num_tokens = self.query_starts[-1]
        qkv = torch.full((num_tokens, shape.num_heads + 2 * shape.num_kv_heads, shape.head_dim), torch.nan)
        qkv[:, : shape.num_heads] = torch.cat([each.queries for each in entries])
        self.qkv, self.pool, self.tables = (device.upload(tensor) for tensor in (qkv.to(shape.dtype), pool, tables))
        self.kv_scales = device.upload(scales) if shape.stored in LARGEST else None
        self._starts = device.upload(torch.tensor(self.query_starts, dtype=torch.int32))
        self._lengths = device.upload(torch.tensor([each.length for each in entries], dtype=torch.int32))

    def limits(self, split_tokens: int = 0, max_q_len: int = 0) -> DecodeLimits:
        """Room for this batch, or for one of more query tokens a sequence."""
        return DecodeLimits(
            num_heads=self.shape.num_heads,
            num_kv_heads=self.shape.num_kv_heads,
            head_dim=self.shape.head_dim,
            dtype=self.shape.dtype,
            kv_dtype=self.shape.kv_dtype,
            max_sequences=len(self.entries),
            max_q_len=max_q_len or max(each.queries.shape[0] for each in self.entries),
            window=self.shape.window,
            split_tokens=split_tokens,
            max_kv_tokens=sum(each.length for each in self.entries),
        )

    def run(self, workspace: DecodeWorkspace | None = None) -> Answer:
        """Plan and attend, by the kernel whose workspace it is."""
        workspace = workspace or decode_workspace(self.device, self.limits())
        out = self.device.empty((self.query_starts[-1], self.shape.num_heads, self.shape.head_dim), self.shape.dtype)
        lse = self.device.empty((self.query_starts[-1], self.shape.num_heads), torch.float32)
        decode_plan(self.device, workspace.plan, self._starts, self._lengths)
        given, options = (self.device, workspace, out, self.qkv, self.pool), {"scale": self.shape.scale, "lse": lse}
        if workspace.choice.instance in SM90_INSTANCES:
            pool_map = prefill_pool_map(self.device, self.pool)
            paged_decode_sm90(*given, pool_map, self.tables, **options)
        else:
            paged_decode(*given, self.tables, kv_scales=self.kv_scales, **options)
        self.device.synchronize()
        return Answer(out.cpu(), lse.cpu())

    def of(self, answer: Answer, index: int) -> Tensor:
        """Give one sequence's part of the output, as bits."""
        return answer.out[self.query_starts[index] : self.query_starts[index + 1]].view(torch.int16)

    def assert_right(self, answer: Answer) -> None:
        """Hold an answer to the reference."""
        references, plains = [], []
        for each in self.entries:
            if each.length == 0:
                nothing = torch.zeros_like(each.queries, dtype=torch.float64)
                references.append((nothing, torch.full(nothing.shape[:2], -math.inf, dtype=torch.float64)))
                plains.append(nothing)
                continue
            keys, values = each.keys_values
            options = {"scale": self.shape.scale, "window": self.shape.window}
            references.append(paged_decode_reference(each.queries, keys, values, **options))
            plains.append(paged_decode_reference(each.queries, keys, values, plain=True, **options)[0].double())
        exact, log_sums = (torch.cat(parts) for parts in zip(*references, strict=True))

        assert_close_as_low_precision(answer.out, exact, torch.cat(plains))
        torch.testing.assert_close(answer.lse.double(), log_sums, rtol=LOG_SUM_TOLERANCE, atol=LOG_SUM_TOLERANCE)


def check(
    device: Device,
    shape: Shape,
    entries: list[Entry],
    split_tokens: int = 0,
    make: Callable[[Device, DecodeLimits], DecodeWorkspace] = decode_workspace,
) -> None:
    """Attend twice in the same workspace, and compare with the reference and with itself."""
    batch = Laid(device, shape, entries)
    workspace = make(device, batch.limits(split_tokens))
    answer, again = batch.run(workspace), batch.run(workspace)
    batch.assert_right(answer)

    assert torch.equal(answer.out.view(torch.int16), again.out.view(torch.int16))
    assert torch.equal(answer.lse, again.lse)
    assert not workspace.counters.any()
