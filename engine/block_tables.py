"""The running sequences' block tables, kept on the device from step to step.

A row belongs to one sequence for as long as it decodes. Tables only grow while a sequence runs, and begin anew when it
was preempted, so what has to be sent is what stands behind the entries that were sent before. Rows stay where they
are when others leave, and the last ones move into the gaps: rows 0 to n-1 are always n sequences.
"""

from collections.abc import Sequence as Seq

import numpy as np
import torch
from numpy.typing import NDArray

from engine.device import Device
from engine.sequence import Sequence

Changes = NDArray[np.int32]


class BlockTables:
    """`tensor: [max_sequences, width]` int32 on the device, as the changes that were given out make it."""

    def __init__(self, device: Device, max_sequences: int, width: int) -> None:
        self.tensor = device.zeros((max_sequences, width), torch.int32)
        self.max_sequences = max_sequences
        self.width = width
        self._rows: list[_Row] = []

    def place(self, sequences: Seq[Sequence]) -> list[int]:
        """Give each sequence a row, at most one of `max_sequences`; give the order: `order[row]` is its index here.

        Whoever is not among them loses its row.
        """
        assert len(sequences) <= self.max_sequences, "there is a row for everybody"
        index = {id(sequence): number for number, sequence in enumerate(sequences)}
        kept = self._rows[: len(sequences)]
        moving = [row for row in self._rows[len(sequences) :] if id(row.sequence) in index]
        here = {id(row.sequence) for row in self._rows} & index.keys()
        fresh = [_Row(sequence) for sequence in sequences if id(sequence) not in here]
        for row in moving:
            row.sent = 0  # its entries stand in the row that it leaves
        coming = iter([*moving, *fresh])
        rows = [row if id(row.sequence) in index else next(coming) for row in kept]
        rows += coming
        self._rows = rows
        return [index[id(row.sequence)] for row in rows]

    def changes(self) -> Changes:
        """Give what has to be sent, `[num_changes, 2]`: places in the flat tensor, and the block there."""
        places: list[int] = []
        blocks: list[int] = []
        for number, row in enumerate(self._rows):
            table = row.sequence.block_table
            if row.preemptions != row.sequence.num_preemptions:
                row.preemptions, row.sent = row.sequence.num_preemptions, 0
            if len(table) > row.sent:
                places += range(number * self.width + row.sent, number * self.width + len(table))
                blocks += table[row.sent :]
                row.sent = len(table)
        return np.array([places, blocks], np.int32).T

    def forget(self) -> None:
        """Have everything sent again: a step that failed may not have brought what it was given."""
        for row in self._rows:
            row.sent = 0


class _Row:
    """Whose a row is, and how many entries of its table are on the device."""

    __slots__ = ("preemptions", "sent", "sequence")

    def __init__(self, sequence: Sequence) -> None:
        self.sequence = sequence
        self.preemptions = sequence.num_preemptions
        self.sent = 0
