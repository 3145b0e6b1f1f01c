"""Attention of decodes: rows of one token, each over all that its sequence has behind it.

Rows of similar length form a group, whose keys and values are gathered from the pool into one tensor and attended by
two batched products. Gathering costs as much as the products, and from one step to the next a group changes by one
token a row. So while the same sequences decode on, a group's gathered tensors are kept, with some room behind each
row, and the new keys and values are written into them as well as into the pool:

    row 0   | k k k k k k n . . . . |        n  this step's      .  room: hidden by the mask
    row 1   | k k k k k k k k n . . |

When somebody joins or leaves, groups are formed anew and gathered once more. What is kept is bounded; beyond the bound,
and under a sliding window, a step gathers into what it drops again, in groups that stay in the cache meanwhile.
"""

import math
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from engine.batch import Row
from engine.kv_pool import Ids, KeyValuePool
from engine.models.config import ModelConfig
from engine.sequence import Sequence

ROOM = 64
"""How many tokens a kept group may grow by before it is gathered again, at the least half of it."""

CACHED_BYTES = 1 << 20
"""How large a group may be, in bytes of one layer as float32, however different its rows: it stays in the cache."""

WASTE = 1.25
"""How much longer than its shortest row, `ROOM` aside, a kept group that is larger may be."""


@dataclass(slots=True)
class Group:
    """Decodes `begin` to `end - 1` of the step's line, over `length` gathered positions.

    `mask: [rows * num_kv_heads, 1, length]`, additive float32. `places` are this step's positions in kept tensors.
    """

    begin: int
    end: int
    length: int
    index: Tensor
    mask: Tensor
    keeps: bool
    places: Tensor | None = None
    kept: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)


class Decodes:
    """The decodes of successive steps. `keep_bytes` bounds the tensors that are kept between them."""

    def __init__(self, config: ModelConfig, pool: KeyValuePool, keep_bytes: int) -> None:
        self._pool = pool
        self._heads = config.num_heads
        self._kv_heads = config.num_kv_heads
        self._head_dim = config.head_dim
        self._windows = config.windows
        self._scale = 1.0 / math.sqrt(config.head_dim)
        full_layers = sum(window is None for window in config.windows)
        self._keep_tokens = keep_bytes // max(1, full_layers * 8 * self._kv_heads * self._head_dim)
        self._kept: list[Group] = []
        self._last: list[tuple[Sequence, int]] = []  # the last step's rows and the position behind each
        self._groups: dict[int | None, list[Group]] = {}

    def prepare(self, rows: Seq[Row]) -> None:
        """Form the groups of a step's decodes, which begin its line in this order, by length or as in the last step."""
        ends = [row.start for row in rows]
        tables = [np.array(row.sequence.block_table, dtype=np.int64) for row in rows]
        self._groups = {}
        for window in set(self._windows):
            if window is not None:
                self._groups[window] = self._form(tables, ends, window, keeps=False)
        if None in self._windows:
            self._groups[None] = self._go_on(rows, tables, ends)

    def forget(self, sequence: Sequence) -> None:
        """Drop what is kept of a sequence whose blocks are given back."""
        if any(sequence is other for other, _ in self._last):
            self._last, self._kept = [], []

    def attend(self, layer: int, qkv: Tensor, out: Tensor) -> None:
        """Attend all decodes; the step's keys and values are in the pool already. Mutates the decodes' part of `out`.

        `qkv: [num_tokens, num_heads + 2 * num_kv_heads, head_dim]`. `out: [num_tokens, num_heads, head_dim]`.
        """
        for group in self._groups[self._windows[layer]]:
            keys, values = self._seen(layer, group, qkv)
            num_rows = keys.shape[0]
            queries = qkv[group.begin : group.end, : self._heads].reshape(num_rows, -1, self._head_dim)
            # Scores are float32 whatever the dtype, as in the fused kernels; `float` and `to` do nothing to float32.
            scores = torch.baddbmm(group.mask, queries.float(), keys.transpose(1, 2), alpha=self._scale)
            weights = torch.softmax(scores, -1).to(values.dtype)
            torch.bmm(weights, values, out=out[group.begin : group.end].view(num_rows, -1, self._head_dim))

    def _seen(self, layer: int, group: Group, qkv: Tensor) -> tuple[Tensor, Tensor]:
        """A group's keys (as float32) and values, `[rows * num_kv_heads, length, head_dim]`."""
        if group.kept and group.places is not None:
            keys, values = group.kept[layer]
            for first, tensor in ((self._heads, keys), (self._heads + self._kv_heads, values)):
                new = qkv[group.begin : group.end, first : first + self._kv_heads].reshape(-1, self._head_dim)
                tensor.view(-1, self._head_dim).index_copy_(0, group.places, new.to(tensor.dtype))
            return keys, values
        num_rows = (group.end - group.begin) * self._kv_heads
        keys, values = self._pool.gather(layer, group.index).view(2, num_rows, group.length, self._head_dim)
        keys = keys.float()
        if group.keeps:
            group.kept[layer] = (keys, values)
        return keys, values

    def _go_on(self, rows: Seq[Row], tables: list[Ids], ends: list[int]) -> list[Group]:
        """Groups over whole sequences: the last step's, one token longer, if the same sequences decode on."""
        last, self._last = self._last, [(row.sequence, row.start + 1) for row in rows]
        if last != [(row.sequence, row.start) for row in rows]:
            self._kept = self._form(tables, ends, None, keeps=True)
            return self._kept
        for number, group in enumerate(self._kept):
            now = np.array(ends[group.begin : group.end])
            if not group.keeps or now.max() >= group.length:
                begin, end = group.begin, group.end
                self._kept[number] = self._group(tables[begin:end], ends[begin:end], begin, None, keeps=group.keeps)
                continue
            at = (np.arange(len(now) * self._kv_heads) * group.length) + now.repeat(self._kv_heads)
            group.places = torch.from_numpy(at)
            group.mask.view(-1)[group.places] = 0.0
        return self._kept

    def _form(self, tables: list[Ids], ends: list[int], window: int | None, *, keeps: bool) -> list[Group]:
        """Cut rows, sorted by length, into groups."""
        size = self._pool.block_size
        if keeps:
            keeps = sum(ends) * WASTE + len(ends) * ROOM <= self._keep_tokens
        cached_tokens = CACHED_BYTES // (8 * self._kv_heads * self._head_dim)
        groups = []
        begin, widest = 0, 0
        for row, end in enumerate(ends):
            length = min(end, window or end) + size
            wider = max(widest, length)
            small = (row + 1 - begin) * wider <= cached_tokens
            alike = keeps and wider <= ends[begin] * WASTE + ROOM
            if row > begin and not small and not alike:
                groups.append(self._group(tables[begin:row], ends[begin:row], begin, window, keeps=keeps))
                begin, wider = row, length
            widest = wider
        if ends:
            groups.append(self._group(tables[begin:], ends[begin:], begin, window, keeps=keeps))
        return groups

    def _group(self, tables: list[Ids], ends: list[int], begin: int, window: int | None, *, keeps: bool) -> Group:
        size = self._pool.block_size
        last = np.array(ends)[:, None]
        first = np.zeros_like(last) if window is None else np.maximum(last - window + 1, 0)
        origin = first // size
        num_blocks = last // size - origin + 1
        widest = int(num_blocks.max())
        if keeps:
            widest = (widest * size + ROOM // 2 + ROOM - 1) // ROOM * ROOM // size
        table = np.full((len(ends), widest), self._pool.padding, dtype=np.int64)
        for row, (own, start, number) in enumerate(zip(tables, origin[:, 0], num_blocks[:, 0], strict=True)):
            table[row, :number] = own[start : start + number]
        at = np.arange(widest * size) + origin * size
        mask = np.where((at >= first) & (at <= last), np.float32(0), np.float32(-np.inf))
        return Group(
            begin,
            begin + len(ends),
            widest * size,
            self._pool.index(table),
            torch.from_numpy(mask.repeat(self._kv_heads, 0)[:, None]),
            keeps,
        )
