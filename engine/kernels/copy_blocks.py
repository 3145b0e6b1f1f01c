"""KV blocks from pools to pools, on the device and between it and pinned host memory: `cuda/copy_blocks.cu`."""

from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from engine.device import Device
from engine.errors import ShapeError
from engine.kernels.registry import Instance
from engine.kernels.shapes import check

NUM_THREADS = 256
VECTORS = 4  # of 16 bytes, for each thread

INSTANCES = (
    Instance(
        source="copy_blocks.cu",
        expression=f"copy_blocks<{NUM_THREADS}, {VECTORS}>",
        signature="PPPu",
        block=(NUM_THREADS, 1, 1),
        overlaps=True,
    ),
)


def addresses(device: Device, pools: Seq[Tensor]) -> Tensor:
    """Give the pools' addresses, `[num_layers]` int64 in the device's memory. The pools must outlive them."""
    return device.upload(torch.tensor([pool.data_ptr() for pool in pools], dtype=torch.int64))


def copy_blocks(device: Device, destinations: Tensor, sources: Tensor, pairs: Tensor, block_bytes: int) -> None:
    """Copy blocks in every layer at once.

    `destinations, sources: [num_layers]` of `addresses`, each of a list of blocks of `block_bytes`, a multiple of 16,
    from a multiple of 16 on. `pairs: [num_pairs, 2]` int32 (source block, destination block), the same in every layer;
    no destination is in another pair. Raises `ShapeError`.
    """
    check("copy_blocks", "sources", sources, (None,), torch.int64)
    check("copy_blocks", "pairs", pairs, (None, 2), torch.int32)
    num_layers, num_pairs = sources.shape[0], pairs.shape[0]
    check("copy_blocks", "destinations", destinations, (num_layers,), torch.int64)
    block_vectors, rest = divmod(block_bytes, 16)
    if rest or not block_vectors:
        raise ShapeError("copy_blocks", "block_bytes", "a multiple of 16, not 0", str(block_bytes))
    if num_pairs and num_layers:
        grid = (num_pairs, -(-block_vectors // (NUM_THREADS * VECTORS)), num_layers)
        device.launch(INSTANCES[0], grid, sources.data_ptr(), destinations.data_ptr(), pairs.data_ptr(), block_vectors)


def copy_blocks_reference(destinations: Seq[Tensor], sources: Seq[Tensor], pairs: Tensor) -> list[Tensor]:
    """Give the destinations as they are afterwards; a pool is `[num_blocks, …]`."""
    copied = [pool.clone() for pool in destinations]
    for destination, source in zip(copied, sources, strict=True):
        for source_block, destination_block in pairs.tolist():
            destination[destination_block] = source[source_block]
    return copied
