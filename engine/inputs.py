"""One step's integers, laid out by the host and brought to the device by one copy.

The line of tokens has the decodes in front and the prefill chunks behind; each part has its own ragged batch:

    staging | ids | positions | slots | wanted | decodes: starts, lengths, tables | chunks: starts, lengths, tables |
            '------------ of the line ---------'-- starts count from the first token of their own part ------------'

Tables are as wide as the longest sequence of their part needs; what is behind a shorter one's last block is 0 and is
not followed.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.batch import Row
from engine.device import Device

Ids = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Ragged:
    """The sequences of a part. All int32: `query_starts: [num_sequences + 1]`, `kv_lengths: [num_sequences]` with this
    step's tokens, `block_tables: [num_sequences, blocks]`."""

    query_starts: Tensor
    kv_lengths: Tensor
    block_tables: Tensor

    @property
    def num_sequences(self) -> int:
        """How many."""
        return self.kv_lengths.shape[0]


@dataclass(frozen=True, slots=True)
class StepInputs:
    """A step on the device. `ids, positions, slots: [num_tokens]` int32; `wanted: [rows]` int32, or None for all.

    Tokens before `num_decode_tokens` are decodes'.
    """

    ids: Tensor
    positions: Tensor
    slots: Tensor
    wanted: Tensor | None
    num_decode_tokens: int
    decodes: Ragged
    chunks: Ragged


def lay_out(device: Device, rows: Seq[Row], block_size: int, max_decode_tokens: int) -> StepInputs:
    """Lay a step out. Rows of at most `max_decode_tokens` tokens stand in front of all longer ones."""
    num_decodes = sum(row.count <= max_decode_tokens for row in rows)
    assert all(row.count <= max_decode_tokens for row in rows[:num_decodes]), "decodes stand in front"
    ids = np.fromiter(
        chain.from_iterable(row.sequence.token_ids[row.start : row.start + row.count] for row in rows), np.int32
    )
    positions = np.concatenate([np.arange(row.start, row.start + row.count, dtype=np.int32) for row in rows])
    lasts = (np.cumsum([row.count for row in rows]) - 1)[[row.samples for row in rows]].astype(np.int32)
    parts = [_ragged(part) for part in (rows[:num_decodes], rows[num_decodes:])]
    slots = np.concatenate([_slots(row, block_size) for row in rows])
    arrays = [ids, positions, slots, lasts, *chain.from_iterable(parts)]
    staged = device.upload(torch.from_numpy(np.concatenate([array.ravel() for array in arrays])))
    ends = np.cumsum([array.size for array in arrays])
    views = [staged[end - array.size : end].view(array.shape) for array, end in zip(arrays, ends.tolist(), strict=True)]
    return StepInputs(
        ids=views[0],
        positions=views[1],
        slots=views[2],
        wanted=views[3] if len(lasts) < len(ids) else None,
        num_decode_tokens=sum(row.count for row in rows[:num_decodes]),
        decodes=Ragged(*views[4:7]),
        chunks=Ragged(*views[7:10]),
    )


def slots_of(rows: Seq[Row], block_size: int) -> list[int]:
    """Give the slot of each row's first token."""
    return [row.sequence.block_table[row.start // block_size] * block_size + row.start % block_size for row in rows]


def _slots(row: Row, block_size: int) -> Ids:
    positions = np.arange(row.start, row.start + row.count)
    first = row.start // block_size
    blocks = np.array(row.sequence.block_table[first : (row.start + row.count - 1) // block_size + 1])
    slots: Ids = (blocks[positions // block_size - first] * block_size + positions % block_size).astype(np.int32)
    return slots


def _ragged(rows: Seq[Row]) -> tuple[Ids, Ids, Ids]:
    starts = np.zeros(len(rows) + 1, np.int32)
    np.cumsum([row.count for row in rows], out=starts[1:])
    lengths = np.array([row.start + row.count for row in rows], np.int32)
    tables = np.zeros((len(rows), max((len(row.sequence.block_table) for row in rows), default=0)), np.int32)
    for table, row in zip(tables, rows, strict=True):
        table[: len(row.sequence.block_table)] = row.sequence.block_table
    return starts, lengths, tables
