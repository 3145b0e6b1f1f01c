"""Single numbers to their places in a table that stays on the device: `cuda/scatter.cu`."""

import torch
from torch import Tensor

from engine.device import Device
from engine.kernels.registry import Instance
from engine.kernels.shapes import check

NUM_THREADS = 128

INSTANCES = (Instance("scatter.cu", f"scatter<{NUM_THREADS}>", "PPi", block=(NUM_THREADS, 1, 1), overlaps=True),)


def scatter(device: Device, table: Tensor, changes: Tensor) -> None:
    """Write each change's value to its place. `table`: int32 of any shape, contiguous, whose places are counted flat.

    `changes: [num_changes, 2]` int32, place and value, at an even address; a negative place is skipped. Mutates the
    table. No place may stand twice. Raises `ShapeError`.
    """
    check("scatter", "table", table, tuple(table.shape), torch.int32)
    check("scatter", "changes", changes, (None, 2), torch.int32)
    if num_changes := changes.shape[0]:
        grid = (-(-num_changes // NUM_THREADS), 1, 1)
        device.launch(INSTANCES[0], grid, table.data_ptr(), changes.data_ptr(), num_changes)


def scatter_reference(table: Tensor, changes: Tensor) -> Tensor:
    """Give the table as it is afterwards."""
    changed = table.clone()
    for place, value in changes.tolist():
        if place >= 0:
            changed.view(-1)[place] = value
    return changed
