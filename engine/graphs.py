"""Steps of decodes alone, captured once for each padded size and replayed: a step of a large model is hundreds of
launches, and the device would wait for the host between them.

A graph has fixed addresses and fixed grids, so the number of rows is rounded up to the next captured size; the rows
beyond the last decode are padding, which reads nothing and writes nothing (id and slot −1, length 0):

    ids, positions, slots, lengths | row 0 | row 1 | … | row n-1 | -1 -1 -1 … |      one staging, one copy
    block tables                   stay on the device; changes are scattered into them before the replay
    logits                         of the padding rows are not looked at

What differs between steps is all in these arrays: the deal of the attention's work is planned by a kernel in the graph.
"""

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq

import numpy as np
import torch
from torch import Tensor

from engine.batch import Row
from engine.block_tables import BlockTables
from engine.device import Device
from engine.device_attention import DevicePools, StepAttention
from engine.inputs import Ragged, StepInputs, slots_of
from engine.kernels.scatter import scatter
from engine.models.device_decoder import DeviceDecoder

ROW_INTS = 4  # id, position, slot, length


def graph_sizes(max_sequences: int) -> list[int]:
    """Give the sizes that are captured: all up to 4, then steps of an eighth to a quarter of the size."""
    sizes = [size for size in (1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32) if size <= max_sequences]
    size = 40
    while size < max_sequences:
        sizes.append(size)
        size += max(8, 1 << (size.bit_length() - 3))
    return sizes if sizes[-1] == max_sequences else [*sizes, max_sequences]


class DecodeGraphs:
    """Runs steps of at most `max_sequences` decodes. Captures a size when it is first needed, or in `capture`."""

    def __init__(self, device: Device, model: DeviceDecoder, pools: DevicePools, max_sequences: int) -> None:
        width = -(-model.num_positions // pools.block_size)
        self.max_sequences = max_sequences
        self._device = device
        self._model = model
        self._pools = pools
        self._tables = BlockTables(device, max_sequences, width)
        self._sizes = graph_sizes(max_sequences)
        self._graphs: dict[int, _Graph] = {}

    def run(self, rows: Seq[Row]) -> tuple[Tensor, list[int]]:
        """Compute rows of one token each. Gives `logits: [num_rows, vocab]`, overwritten by the next run of this size,
        and the order: `logits[i]` are those of `rows[order[i]]`."""
        order = self._tables.place([row.sequence for row in rows])
        changes = self._tables.changes()
        graph = self._graph(next(size for size in self._sizes if size >= len(rows)))
        try:
            staged = graph.stage([rows[index] for index in order], changes, self._pools.block_size)
            if len(changes):
                scatter(self._device, self._tables.tensor, staged)
            graph.replay()
        except BaseException:
            self._tables.forget()
            raise
        return graph.logits[: len(rows)], order

    def capture(self, sizes: Iterable[int] | None = None) -> None:
        """Capture these sizes, or all, largest first: the others find its memory."""
        for size in sorted(self._sizes if sizes is None else sizes, reverse=True):
            self._graph(size)

    def _graph(self, size: int) -> "_Graph":
        graph = self._graphs.get(size)
        if graph is None:
            graph = self._graphs[size] = _Graph(self._device, self._model, self._pools, self._tables.tensor[:size])
        return graph


class _Graph:
    """One size: its arrays, and what replays it."""

    def __init__(self, device: Device, model: DeviceDecoder, pools: DevicePools, tables: Tensor) -> None:
        (size, _), self._device = tables.shape, device
        self._arrays = device.upload(torch.tensor([[-1], [0], [-1], [0]], dtype=torch.int32).repeat(1, size))
        ids, positions, slots, lengths = self._arrays.unbind(0)
        starts = device.upload(torch.arange(size + 1, dtype=torch.int32))
        none = Ragged(starts[:1], lengths[:0], tables[:0])
        inputs = StepInputs(ids, positions, slots, None, size, Ragged(starts, lengths, tables), none)
        self.size = size
        self.logits = device.empty((0,), model.dtype)

        def step() -> None:
            self.logits = model.logits(model.forward(ids, StepAttention(pools, inputs)))

        self.replay: Callable[[], None] = device.capture(step)

    def stage(self, rows: Seq[Row], changes: "np.typing.NDArray[np.int32]", block_size: int) -> Tensor:
        """Bring a step's numbers to the device by one copy; give the changes there."""
        staged = np.empty(ROW_INTS * self.size + changes.size, np.int32)
        arrays = staged[: ROW_INTS * self.size].reshape(ROW_INTS, self.size)
        arrays[:] = ((-1,), (0,), (-1,), (0,))
        positions = [row.start for row in rows]
        arrays[0, : len(rows)] = [row.sequence.token_ids[row.start] for row in rows]
        arrays[1, : len(rows)] = positions
        arrays[2, : len(rows)] = slots_of(rows, block_size)
        arrays[3, : len(rows)] = positions
        arrays[3, : len(rows)] += 1
        staged[ROW_INTS * self.size :] = changes.ravel()
        on_device = self._device.upload(torch.from_numpy(staged))
        self._arrays.view(-1).copy_(on_device[: ROW_INTS * self.size])
        return on_device[ROW_INTS * self.size :].view(-1, 2)
