"""Where keys and values live: blocks of tokens, one pool a layer.

The pool of one layer is `[num_blocks, 2, num_kv_heads, block_size, head_dim]`, keys at 0 and values at 1. Seen as
rows of one block, one kind and one head it is a list of contiguous kilobytes, so that any set of sequences can be
gathered by one `index_select` into tensors that a matrix product takes as they are:

    pool rows   | block 0: k·h0 k·h1 v·h0 v·h1 | block 1: k·h0 … |
    gathered    | k: seq 0 h0: blocks …, h1: blocks …; seq 1 … | v: the same |
"""

import math
from collections.abc import Sequence as Seq

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.models.config import ModelConfig

Ids = NDArray[np.int64]


class KeyValuePool:
    """Every block's keys and values, layer by layer. One block more than asked for, always zero, pads short tables."""

    def __init__(self, config: ModelConfig, num_blocks: int, block_size: int, dtype: torch.dtype) -> None:
        self.padding = num_blocks
        self.block_size = block_size
        self.num_heads = config.num_kv_heads
        self.head_dim = config.head_dim
        shape = (num_blocks + 1, 2, self.num_heads, block_size, self.head_dim)
        # Zeros, not empty: what a mask hides must still be finite, since 0 times NaN is NaN. Numpy's come from the
        # system as they are touched, so that a large pool costs no time at the start.
        num_bytes = math.prod(shape) * dtype.itemsize
        raw = [torch.from_numpy(np.zeros(num_bytes, dtype=np.uint8)) for _ in range(config.num_layers)]
        self._layers = [layer.view(dtype).view(shape) for layer in raw]
        self._by_block = [layer.view(-1, block_size * self.head_dim) for layer in self._layers]
        self._by_token = [layer.view(-1, self.head_dim) for layer in self._layers]

    def write(self, layer: int, places: Tensor, keys_values: Tensor) -> None:
        """Store a step's keys and values. `keys_values: [num_tokens, 2 * num_kv_heads, head_dim]`; see `places`."""
        stored = self._by_token[layer]
        stored.index_copy_(0, places, keys_values.reshape(-1, self.head_dim).to(stored.dtype))

    def gather(self, layer: int, index: Tensor) -> Tensor:
        """Copy whole blocks: `[2, rows * num_kv_heads, blocks * block_size, head_dim]`, flat; see `index`."""
        return self._by_block[layer].index_select(0, index)

    def places(self, blocks: Ids, offsets: Ids) -> Tensor:
        """Where `write` puts each token, in the order token, kind, head. `blocks, offsets: [num_tokens]`."""
        planes = blocks[:, None] * (2 * self.num_heads) + np.arange(2 * self.num_heads)
        return torch.from_numpy((planes * self.block_size + offsets[:, None]).reshape(-1))

    def index(self, tables: Ids) -> Tensor:
        """What `gather` copies, in the order kind, row, head, block. `tables: [rows, blocks]`."""
        planes = np.arange(2 * self.num_heads).reshape(2, 1, self.num_heads, 1)
        return torch.from_numpy((tables[None, :, None, :] * (2 * self.num_heads) + planes).reshape(-1))

    def scrub(self, blocks: Seq[int]) -> None:
        """Make non-finite entries of these blocks zero, so that whoever gets a block next is not poisoned by it."""
        index = torch.tensor(blocks)
        for layer in self._layers:
            layer[index] = torch.nan_to_num(layer[index], nan=0.0, posinf=0.0, neginf=0.0)
