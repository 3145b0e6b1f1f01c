"""Attention over paged keys and values on a CPU, for a step that mixes decodes with prefill chunks.

The pool of one layer is `[num_blocks, 2, num_kv_heads, block_size, head_dim]`, keys at 0 and values at 1. Seen as
rows of one block, one kind and one head it is a list of contiguous kilobytes, so that any set of sequences can be
gathered by one `index_select` into tensors that a matrix product takes as they are:

    pool rows   | block 0: k·h0 k·h1 v·h0 v·h1 | block 1: k·h0 … |
    gathered    | k: seq 0 h0: blocks …, h1: blocks …; seq 1 … | v: the same |

Rows of one token (decodes) are sorted by how much they see and attended in groups of similar length. A group is small
enough for its gathered keys and values to stay in the cache between gathering and use, which is measured to matter more
than the number of calls. Longer rows (prefill chunks) are attended one by one with the fused kernel.

Everything that depends on the batch alone is computed once a step, here, in numpy; a layer then only runs the products.
"""

import math
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from engine.batch import Row
from engine.models.config import ModelConfig

GROUP_BYTES = 1 << 20
"""How much a group of decodes may gather, in bytes of one layer as float32."""


class KeyValuePool:
    """Every block's keys and values, layer by layer. One block more than asked for, always zero, pads short rows."""

    def __init__(self, config: ModelConfig, num_blocks: int, block_size: int, dtype: torch.dtype) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.num_heads = config.num_kv_heads
        self.head_dim = config.head_dim
        shape = (num_blocks + 1, 2, self.num_heads, block_size, self.head_dim)
        # Zeros, not empty: what a mask hides must still be finite, since 0 times NaN is NaN. Numpy's come from the
        # system as they are touched, so that a large pool costs no time at the start.
        num_bytes = math.prod(shape) * dtype.itemsize
        raw = [torch.from_numpy(np.zeros(num_bytes, dtype=np.uint8)) for _ in range(config.num_layers)]
        self.layers = [layer.view(dtype).view(shape) for layer in raw]
        self.by_block = [layer.view(-1, block_size * self.head_dim) for layer in self.layers]
        self.by_token = [layer.view(-1, self.head_dim) for layer in self.layers]

    def scrub(self, blocks: Seq[int]) -> None:
        """Make non-finite entries of these blocks zero, so that whoever gets a block next is not poisoned by it."""
        index = torch.tensor(blocks)
        for layer in self.layers:
            layer[index] = torch.nan_to_num(layer[index], nan=0.0, posinf=0.0, neginf=0.0)


@dataclass(frozen=True, slots=True)
class _Group:
    """Decodes `begin` to `end - 1` of the line. `mask: [rows * kv_heads, 1, length]`, additive."""

    begin: int
    end: int
    length: int
    index: Tensor
    mask: Tensor


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A prefill chunk, tokens `begin` to `end - 1` of the line. No mask means causal from position 0."""

    begin: int
    end: int
    length: int
    index: Tensor
    mask: Tensor | None


class PagedAttention:
    """One step's `Attention`. `rows` stand in the line as given: those of one token first, the longer behind."""

    def __init__(self, config: ModelConfig, pool: KeyValuePool, rows: Seq[Row]) -> None:
        self._pool = pool
        self._heads, self._kv_heads, self._head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self._scale = 1.0 / math.sqrt(config.head_dim)
        self._windows = config.windows
        self._tables = [np.array(row.sequence.block_table, dtype=np.int64) for row in rows]
        self._places = self._write_index(rows)
        self._groups = {window: self._decode_groups(rows, window) for window in set(config.windows)}
        self._chunks = {window: self._prefill_chunks(rows, window) for window in set(config.windows)}

    def attend(self, layer: int, qkv: Tensor) -> Tensor:
        """See `models.decoder.Attention`."""
        pool, window = self._pool, self._windows[layer]
        keys_values = qkv.narrow(1, self._heads, 2 * self._kv_heads)
        stored = pool.by_token[layer]
        stored.index_copy_(0, self._places, keys_values.reshape(-1, self._head_dim).to(stored.dtype))
        out = torch.empty((qkv.shape[0], self._heads, self._head_dim), dtype=qkv.dtype)
        for group in self._groups[window]:
            self._attend_group(pool.by_block[layer], group, qkv, out)
        for chunk in self._chunks[window]:
            self._attend_chunk(pool.by_block[layer], chunk, qkv, out)
        return out.flatten(1)

    def _attend_group(self, blocks: Tensor, group: _Group, qkv: Tensor, out: Tensor) -> None:
        num_rows = (group.end - group.begin) * self._kv_heads
        keys, values = blocks.index_select(0, group.index).view(2, num_rows, group.length, self._head_dim)
        queries = qkv[group.begin : group.end, : self._heads].reshape(num_rows, -1, self._head_dim)
        # Scores are float32 whatever the dtype, as in the fused kernels; `float` and `to` do nothing to float32.
        scores = torch.baddbmm(group.mask, queries.float(), keys.float().transpose(1, 2), alpha=self._scale)
        weights = torch.softmax(scores, -1).to(values.dtype)
        torch.bmm(weights, values, out=out[group.begin : group.end].view(num_rows, -1, self._head_dim))

    def _attend_chunk(self, blocks: Tensor, chunk: _Chunk, qkv: Tensor, out: Tensor) -> None:
        gathered = blocks.index_select(0, chunk.index).view(2, 1, self._kv_heads, -1, self._head_dim)
        keys, values = gathered[0, :, :, : chunk.length], gathered[1, :, :, : chunk.length]
        queries = qkv[chunk.begin : chunk.end, : self._heads].transpose(0, 1).unsqueeze(0)
        mixed = functional.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=chunk.mask,
            is_causal=chunk.mask is None,
            enable_gqa=self._heads != self._kv_heads,
        )
        out[chunk.begin : chunk.end] = mixed[0].transpose(0, 1)

    def _write_index(self, rows: Seq[Row]) -> Tensor:
        """Where each token's keys and values go: indices into `by_token`, in the order token, kind, head."""
        size = self._pool.block_size
        positions = [np.arange(row.start, row.start + row.count) for row in rows]
        blocks = np.concatenate([table[at // size] for table, at in zip(self._tables, positions, strict=True)])
        offsets = np.concatenate(positions) % size
        planes = blocks[:, None] * (2 * self._kv_heads) + np.arange(2 * self._kv_heads)
        return torch.from_numpy((planes * size + offsets[:, None]).reshape(-1))

    def _gather_index(self, tables: np.ndarray) -> Tensor:
        """`tables: [rows, blocks]` -> indices into `by_block`, in the order kind, row, head, block."""
        planes = np.arange(2 * self._kv_heads).reshape(2, 1, self._kv_heads, 1)
        return torch.from_numpy((tables[None, :, None, :] * (2 * self._kv_heads) + planes).reshape(-1))

    def _decode_groups(self, rows: Seq[Row], window: int | None) -> list[_Group]:
        size = self._pool.block_size
        ends = [row.start for row in rows if row.count == 1]  # the position that attends
        firsts = [0 if window is None else max(0, end - window + 1) for end in ends]
        num_blocks = [end // size - first // size + 1 for first, end in zip(firsts, ends, strict=True)]
        bytes_per_block = 4 * self._pool.by_block[0][0].numel() * 2 * self._kv_heads
        groups = []
        begin = 0
        while begin < len(ends):
            stop, widest = begin, 0
            while stop < len(ends):
                wider = max(widest, num_blocks[stop])
                if stop > begin and (stop + 1 - begin) * wider * bytes_per_block > GROUP_BYTES:
                    break
                stop, widest = stop + 1, wider
            tables = np.full((stop - begin, widest), self._pool.num_blocks, dtype=np.int64)
            for place, row in enumerate(range(begin, stop)):
                first = firsts[row] // size
                tables[place, : num_blocks[row]] = self._tables[row][first : first + num_blocks[row]]
            at = np.arange(widest * size)
            origin = np.array([first // size * size for first in firsts[begin:stop]])[:, None]
            seen = (at >= np.array(firsts[begin:stop])[:, None] - origin) & (
                at <= np.array(ends[begin:stop])[:, None] - origin
            )
            mask = np.where(seen, np.float32(0), np.float32(-np.inf)).repeat(self._kv_heads, 0)[:, None]
            groups.append(_Group(begin, stop, widest * size, self._gather_index(tables), torch.from_numpy(mask)))
            begin = stop
        return groups

    def _prefill_chunks(self, rows: Seq[Row], window: int | None) -> list[_Chunk]:
        size = self._pool.block_size
        chunks = []
        begin = 0
        for row, table in zip(rows, self._tables, strict=True):
            end = begin + row.count
            if row.count > 1:
                stop = row.start + row.count
                first = 0 if window is None else max(0, row.start - window + 1) // size
                index = self._gather_index(table[None, first : (stop - 1) // size + 1])
                length = stop - first * size
                mask = None
                if row.start > 0 or (window is not None and stop > window):
                    mask = torch.from_numpy(self._chunk_mask(row, first * size, window))
                chunks.append(_Chunk(begin, end, length, index, mask))
            begin = end
        return chunks

    def _chunk_mask(self, row: Row, origin: int, window: int | None) -> np.ndarray:
        at = np.arange(row.start, row.start + row.count)[:, None]
        seen_at = np.arange(origin, row.start + row.count)
        seen = seen_at <= at
        if window is not None:
            seen &= seen_at > at - window
        return seen
