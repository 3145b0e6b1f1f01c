"""Attention over paged keys and values on a CPU, for a step that mixes decodes with prefill chunks.

Decodes are attended in groups (`decodes.py`), prefill chunks one by one with the fused kernel. Everything that depends
on the batch alone is computed once a step, in numpy; a layer then only runs the products.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from engine.batch import Row
from engine.decodes import Decodes
from engine.kv_pool import KeyValuePool
from engine.models.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Chunk:
    """A prefill chunk, tokens `begin` to `end - 1` of the line. No mask means causal from position 0."""

    begin: int
    end: int
    length: int
    index: Tensor
    mask: Tensor | None


class PagedAttention:
    """One step's `Attention`. `rows` stand in the line as given: those of one token first, the longer behind."""

    def __init__(self, config: ModelConfig, pool: KeyValuePool, decodes: Decodes, rows: Seq[Row]) -> None:
        self._pool = pool
        self._decodes = decodes
        self._heads, self._kv_heads, self._head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self._windows = config.windows
        self._places = self._write_places(rows)
        decodes.prepare([row for row in rows if row.count == 1])
        self._chunks = {window: self._form_chunks(rows, window) for window in set(config.windows)}

    def attend(self, layer: int, qkv: Tensor) -> Tensor:
        """See `models.decoder.Attention`."""
        self._pool.write(layer, self._places, qkv.narrow(1, self._heads, 2 * self._kv_heads))
        out = torch.empty((qkv.shape[0], self._heads, self._head_dim), dtype=qkv.dtype)
        self._decodes.attend(layer, qkv, out)
        for chunk in self._chunks[self._windows[layer]]:
            self._attend_chunk(layer, chunk, qkv, out)
        return out.flatten(1)

    def _attend_chunk(self, layer: int, chunk: Chunk, qkv: Tensor, out: Tensor) -> None:
        gathered = self._pool.gather(layer, chunk.index).view(2, 1, self._kv_heads, -1, self._head_dim)
        queries = qkv[chunk.begin : chunk.end, : self._heads].transpose(0, 1).unsqueeze(0)
        mixed = functional.scaled_dot_product_attention(
            queries,
            gathered[0, :, :, : chunk.length],
            gathered[1, :, :, : chunk.length],
            attn_mask=chunk.mask,
            is_causal=chunk.mask is None,
            enable_gqa=self._heads != self._kv_heads,
        )
        out[chunk.begin : chunk.end] = mixed[0].transpose(0, 1)

    def _write_places(self, rows: Seq[Row]) -> Tensor:
        size = self._pool.block_size
        blocks: list[int] = []
        positions: list[int] = []
        for row in rows:
            table = row.sequence.block_table
            at = range(row.start, row.start + row.count)
            positions += at
            blocks += [table[position // size] for position in at]
        return self._pool.places(np.array(blocks), np.array(positions) % size)

    def _form_chunks(self, rows: Seq[Row], window: int | None) -> list[Chunk]:
        size = self._pool.block_size
        chunks = []
        begin = 0
        for row in rows:
            end = begin + row.count
            if row.count > 1:
                stop = row.start + row.count
                first = 0 if window is None else max(0, row.start - window + 1) // size
                table = np.array([row.sequence.block_table[first : (stop - 1) // size + 1]])
                mask = None
                if row.start > 0 or (window is not None and stop > window):
                    mask = torch.from_numpy(_chunk_mask(row, first * size, window))
                chunks.append(Chunk(begin, end, stop - first * size, self._pool.index(table), mask))
            begin = end
        return chunks


def _chunk_mask(row: Row, origin: int, window: int | None) -> NDArray[np.bool_]:
    at = np.arange(row.start, row.start + row.count)[:, None]
    seen_at = np.arange(origin, row.start + row.count)
    seen = seen_at <= at
    return seen if window is None else seen & (seen_at > at - window)
