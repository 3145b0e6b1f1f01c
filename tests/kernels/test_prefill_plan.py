"""The list of a step's prefill tiles, against a plain sort."""

import random

import pytest
import torch

from engine.device import Device
from engine.errors import ShapeError
from engine.kernels.prefill_plan import max_prefill_tiles, prefill_plan, prefill_plan_reference


def planned(
    device: Device, chunks: list[tuple[int, int]], group: int, rows: int, spare: int = 0
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The plan of chunks of (query tokens, keys): the kernel's and the reference's."""
    starts = [0]
    for queries, _ in chunks:
        starts.append(starts[-1] + queries)
    lengths = [keys for _, keys in chunks]
    count = max_prefill_tiles(starts[-1], len(chunks), group, rows) + spare
    tiles = device.empty((count, 2), torch.int32)
    prefill_plan(
        device,
        tiles,
        device.upload(torch.tensor(starts, dtype=torch.int32)),
        device.upload(torch.tensor(lengths, dtype=torch.int32)),
        group=group,
        rows=rows,
    )
    device.synchronize()
    made = [(int(sequence), int(row)) for sequence, row in tiles.cpu()]
    return made, prefill_plan_reference(count, starts, lengths, group=group, rows=rows)


def mutation_case(device: Device) -> None:
    """What a changed kernel has to fail."""
    chunks = [(65, 65), (0, 9), (1, 700), (300, 300), (13, 13), (1, 0), (128, 130)]
    for group, rows in ((1, 64), (5, 128)):
        made, expected = planned(device, chunks, group, rows, spare=150)

        assert made == expected


def test_tiles_are_listed_by_the_keys_they_see_longest_first(device: Device) -> None:
    mutation_case(device)


def test_any_batch_is_listed_as_a_sort_would(fastest: Device) -> None:
    dice = random.Random(0)
    for _ in range(40):
        chunks = []
        for _ in range(dice.randrange(1, 12)):
            queries = dice.choice((0, 1, 15, 16, 17, 64, 65, 130))
            chunks.append((queries, queries + dice.choice((0, 0, 1, 7, 128))))
        made, expected = planned(fastest, chunks, dice.choice((1, 3, 4, 5, 8, 71)), dice.choice((64, 128)))

        assert made == expected


def test_padding_sequences_have_their_tiles_at_the_end(fastest: Device) -> None:
    made, expected = planned(fastest, [(3, 0), (2, 2), (64, 0)], group=1, rows=64)

    assert made == expected == [(1, 0), (0, 0), (2, 0), (-1, 0)]


def test_the_room_that_the_shapes_promise_is_enough() -> None:
    for queries in ([1, 1, 1, 1], [64, 65, 1], [0, 0, 3], [127, 129]):
        for group in (1, 5, 8):
            needed = sum(-(-count * group // 64) for count in queries)

            assert needed <= max_prefill_tiles(sum(queries), len(queries), group, 64)


def test_wrong_arguments_are_named(fastest: Device) -> None:
    starts, lengths = torch.zeros(3, dtype=torch.int32), torch.zeros(2, dtype=torch.int32)
    with pytest.raises(ShapeError, match="query_starts"):
        prefill_plan(fastest, torch.zeros(4, 2, dtype=torch.int32), starts[:2], lengths, group=1, rows=64)
    with pytest.raises(ShapeError, match="rows"):
        prefill_plan(fastest, torch.zeros(4, 2, dtype=torch.int32), starts, lengths, group=1, rows=32)
