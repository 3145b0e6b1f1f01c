"""What is on the device is what the sequences say, whoever comes and goes, and little is sent for it."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.block_tables import BlockTables
from engine.device import Device
from engine.graphs import graph_sizes
from engine.params import SamplingParams
from engine.sequence import Sequence

WIDTH = 6
PLACES = 5
MOVES = st.lists(st.tuples(st.sampled_from(["come", "go", "grow", "preempt", "skip"]), st.integers(0, 9)), max_size=40)


class Memory:
    """Only memory: nothing is launched here."""

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype)


def tables_of(places: int = PLACES) -> BlockTables:
    device: Device = Memory()  # type: ignore[assignment]
    return BlockTables(device, places, WIDTH)


def sequence_with(*blocks: int) -> Sequence:
    sequence = Sequence("a", 0, [1], 1, SamplingParams(max_tokens=1))
    sequence.block_table = list(blocks)
    return sequence


def bring(tables: BlockTables, sequences: list[Sequence], mirror: np.ndarray) -> tuple[list[int], int]:
    """Do on a copy what the device would; give the order and how many entries it took."""
    order, changes = tables.place(sequences), tables.changes()
    mirror.reshape(-1)[changes[:, 0]] = changes[:, 1]
    return order, len(changes)


@settings(max_examples=200, deadline=None)
@given(MOVES)
def test_every_row_is_its_sequences_table_after_any_moves(moves: list[tuple[str, int]]) -> None:
    tables, mirror, fresh = tables_of(), np.full((PLACES, WIDTH), -7, np.int32), iter(range(100, 10_000))
    alive: list[Sequence] = []
    for what, number in moves:
        at = alive[number % len(alive)] if alive else None
        if what == "come" and len(alive) < PLACES:
            alive.insert(number % (len(alive) + 1), sequence_with(next(fresh), next(fresh)))
        elif at is None or what == "come":
            continue
        elif what == "go":
            alive.remove(at)
        elif what == "grow" and len(at.block_table) < WIDTH:
            at.block_table.append(next(fresh))
        elif what == "preempt":
            at.num_preemptions += 1
            at.block_table = [next(fresh)]
        if what == "skip":
            continue
        order, _ = bring(tables, alive, mirror)

        assert sorted(order) == list(range(len(alive)))
        for row, index in enumerate(order):
            table = alive[index].block_table
            assert mirror[row, : len(table)].tolist() == table


def test_only_what_changed_is_sent_and_those_who_stay_keep_their_rows() -> None:
    tables, mirror = tables_of(), np.zeros((PLACES, WIDTH), np.int32)
    a, b, c = sequence_with(1, 2), sequence_with(3), sequence_with(4, 5, 6)

    assert bring(tables, [a, b, c], mirror) == ([0, 1, 2], 6)
    assert bring(tables, [a, b, c], mirror) == ([0, 1, 2], 0)
    b.block_table.append(7)
    assert bring(tables, [a, b, c], mirror) == ([0, 1, 2], 1)
    assert bring(tables, [b, c], mirror) == ([1, 0], 3)  # the last moves into the gap
    tables.forget()
    assert bring(tables, [b, c], mirror) == ([1, 0], 5)


def test_padding_is_at_most_a_quarter_and_the_largest_step_has_its_size() -> None:
    for most in (1, 2, 5, 128, 200, 256):
        sizes = graph_sizes(most)

        assert sizes == sorted(set(sizes))
        assert sizes[-1] == most
        for rows in range(4, most + 1):
            size = next(size for size in sizes if size >= rows)
            assert size - rows <= max(1, rows // 4)
