"""The plan of decode attention: all of the work, once, in parts that are as long as each other."""

import random
from itertools import pairwise

import pytest
import torch

from engine.device import Device
from engine.errors import ShapeError
from engine.kernels.decode_plan import (
    LANE_COST,
    SMALLEST_PART,
    DecodePlan,
    Item,
    decode_plan,
    decode_plan_reference,
    make_decode_plan,
    read_plan,
)
from engine.kernels.emulated_device import EmulatedDevice

TILE = 64


def make(device: Device, **changes: int) -> DecodePlan:
    """A plan with room for what the tests need."""
    options = {
        "max_sequences": 700,
        "max_tokens": 1400,
        "group": 4,
        "rows_per_item": 16,
        "tile_tokens": TILE,
        "num_parts": 33,
    }
    return make_decode_plan(device, **(options | changes))


def run(device: Device, plan: DecodePlan, q_lens: list[int], kv_lengths: list[int]) -> list[list[Item]]:
    """Plan, compare with the reference, and give what was planned."""
    starts = [sum(q_lens[:i]) for i in range(len(q_lens) + 1)]
    uploaded = [device.upload(torch.tensor(numbers, dtype=torch.int32)) for numbers in (starts, kv_lengths)]
    decode_plan(device, plan, *uploaded)
    device.synchronize()
    parts = read_plan(plan)

    assert parts == decode_plan_reference(plan, starts, kv_lengths)
    assert_complete(plan, parts, starts, kv_lengths)
    return parts


def assert_complete(plan: DecodePlan, parts: list[list[Item]], starts: list[int], kv_lengths: list[int]) -> None:
    """Every row meets every token that it may see in exactly one item; slots are nobody else's."""
    items = [item for part in parts for item in part]
    lanes: dict[tuple[int, int], list[Item]] = {}
    for item in items:
        lanes.setdefault((item.sequence, item.row_begin), []).append(item)
    expected = {
        (s, row): (max(0, kv_lengths[s] - (end - begin) + 1 - plan.window) if plan.window else 0, kv_lengths[s])
        for s, (begin, end) in enumerate(pairwise(starts))
        for row in range(0, (end - begin) * plan.group, plan.rows_per_item)
    }

    assert {lane: (of[0].token_begin, of[-1].token_end) for lane, of in lanes.items()} == expected
    for of in lanes.values():
        assert [item.token_begin for item in of[1:]] == [item.token_end for item in of[:-1]]
        assert all(item.token_begin % plan.tile_tokens == 0 for item in of[1:])
        assert all(item.num_slots == len(of) for item in of)
        assert {item.first_slot for item in of} == {of[0].slot}
        assert [item.slot for item in of] == [of[0].slot + i for i in range(len(of))]
    slots = [item.slot for item in items if item.num_slots > 1]

    assert len(set(slots)) == len(slots)
    assert max(slots, default=0) < (plan.items.shape[0] if plan.split_tokens else 2 * plan.num_parts)


def cost(items: list[Item]) -> int:
    """What a part takes, in tiles."""
    tiles = [-(-item.token_end // TILE) - item.token_begin // TILE for item in items]
    return sum(tiles) + LANE_COST * len(items)


BATCHES = [
    ([1], [1]),
    ([1], [0]),
    ([1], [100_000]),
    ([1] * 64, [8192] * 64),
    ([1] * 5, [0, 63, 64, 65, 1]),
    ([8, 1, 5, 2], [700, 3000, 5, 64 * 40]),
    ([1, 0, 1, 0, 0], [640, 17, 0, 5, 900]),
    ([1] * 600, [1 + 37 * i % 400 for i in range(600)]),
]


def mutation_case(device: Device) -> None:
    """A small complete check, for those who break the kernel on purpose."""
    for split_tokens in (0, 256):
        plan = make(device, num_parts=5, split_tokens=split_tokens, max_splits=80)
        run(device, plan, [8, 1, 0, 5, 1], [700, 3000, 5, 0, 640])
    run(device, make(device, num_parts=3, window=200), [1, 5, 1], [100, 1000, 700])
    for split_tokens in (0, 256):  # the line ends where the last part does, and the batch where memory does
        run(device, make(device, num_parts=3, split_tokens=split_tokens, max_splits=9), [1] * 3, [256] * 3)
    run(device, make(device, max_sequences=1, max_tokens=1, split_tokens=128, max_splits=3), [1], [512])  # no room left
    run(device, make(device, num_parts=300), [1] * 250, [65 + 37 * i % 400 for i in range(250)])


@pytest.mark.parametrize(("q_lens", "kv_lengths"), BATCHES, ids=lambda numbers: f"{len(numbers)}")
def test_all_work_is_dealt_once(emulator: EmulatedDevice, q_lens: list[int], kv_lengths: list[int]) -> None:
    for window in (0, 1, 1000):
        run(emulator, make(emulator, window=window), q_lens, kv_lengths)
        run(emulator, make(emulator, window=window, split_tokens=512, max_splits=700), q_lens, kv_lengths)


def test_threads_do_not_disturb_each_other(device: Device) -> None:
    mutation_case(device)


def test_random_batches_are_dealt_as_the_reference_deals_them(emulator: EmulatedDevice) -> None:
    rng = random.Random(5)
    for _ in range(40):
        num_sequences = rng.randint(1, 40)
        q_lens = [rng.choice((1, 1, 1, 0, 2, 5, 8)) for _ in range(num_sequences)]
        kv_lengths = [rng.choice((0, q_len, rng.randint(q_len, 300), rng.randint(q_len, 9000))) for q_len in q_lens]
        options = {
            "group": rng.choice((1, 4, 5, 8, 16)),
            "rows_per_item": rng.choice((16, 32)),
            "num_parts": rng.choice((1, 2, 7, 49, 396)),
            "window": rng.choice((0, 0, 1, 64, 777)),
        }
        run(emulator, make(emulator, **options), q_lens, kv_lengths)
        run(emulator, make(emulator, **options, split_tokens=256, max_splits=3000), q_lens, kv_lengths)


@pytest.mark.parametrize("kv_lengths", [[8192] * 64, [100_000], [100_000, *[500] * 63], [1024] * 64])
def test_parts_are_as_long_as_each_other(emulator: EmulatedDevice, kv_lengths: list[int]) -> None:
    plan = make(emulator, num_parts=49)
    parts = run(emulator, plan, [1] * len(kv_lengths), kv_lengths)
    even = max(SMALLEST_PART, -(-sum(-(-n // TILE) + LANE_COST for n in kv_lengths) // 49))

    assert max(map(cost, parts)) <= even + 2 * LANE_COST


def test_short_sequences_are_not_split(emulator: EmulatedDevice) -> None:
    parts = run(emulator, make(emulator), [1] * 3, [200, 256, 100])

    assert [item.num_slots for part in parts for item in part] == [1, 1, 1]


def test_fixed_splits_are_those_of_the_sequence_alone(emulator: EmulatedDevice) -> None:
    def ranges(kv_lengths: list[int], index: int, num_parts: int) -> list[tuple[int, int]]:
        plan = make(emulator, split_tokens=512, max_splits=200, num_parts=num_parts)
        parts = run(emulator, plan, [1] * len(kv_lengths), kv_lengths)
        return [(item.token_begin, item.token_end) for part in parts for item in part if item.sequence == index]

    alone = ranges([3000], 0, 7)

    assert alone == ranges([17, 3000, 0, 9999], 1, 33)
    assert alone == [(at, min(at + 512, 3000)) for at in range(0, 3000, 512)]


def test_splits_grow_where_there_is_no_room_for_so_many(emulator: EmulatedDevice) -> None:
    plan = make(emulator, max_sequences=3, max_tokens=3, split_tokens=128, max_splits=10)
    parts = run(emulator, plan, [1] * 3, [3000, 64, 2000])
    items = [item for part in parts for item in part]

    assert len(items) <= plan.items.shape[0]
    assert {item.token_end - item.token_begin for item in items if item.token_end % 1000} == {512, 64}


def test_what_does_not_fit_is_refused(emulator: EmulatedDevice) -> None:
    with pytest.raises(ShapeError, match="a multiple of 64"):
        make(emulator, split_tokens=100)
    plan = make(emulator, max_sequences=2)
    starts = emulator.upload(torch.arange(4, dtype=torch.int32))
    with pytest.raises(ShapeError, match="at most 2 sequences"):
        decode_plan(emulator, plan, starts, starts[:3])
    with pytest.raises(ShapeError, match="query_starts"):
        decode_plan(emulator, plan, starts, starts[:2])
