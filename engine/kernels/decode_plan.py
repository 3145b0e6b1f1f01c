"""The work of decode attention, dealt evenly to blocks on the device: `cuda/decode_plan.cu`.

Made once a step and read by every layer that has the same window.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from engine.device import Device
from engine.errors import ShapeError
from engine.kernels.registry import Instance
from engine.kernels.shapes import check

NUM_THREADS = 256
ITEM_WORDS = 12

# Of the balanced plan, in tiles; as in the kernel.
LANE_COST = 2
SMALLEST_PART = 6

_INSTANCE = Instance(
    source="decode_plan.cu",
    expression=f"decode_plan<{NUM_THREADS}>",
    signature="PPPPPiiiiiiii",
    block=(NUM_THREADS, 1, 1),
    overlaps=True,
)
INSTANCES = (_INSTANCE,)


@dataclass(frozen=True, slots=True)
class Item:
    """One piece of work, as `DecodeItem` in `cuda/decode_work.cuh` has it. Slots are 0 where a lane is not split."""

    sequence: int
    token_begin: int
    token_end: int
    row_begin: int
    query_begin: int
    q_len: int
    kv_length: int
    slot: int
    first_slot: int
    num_slots: int


@dataclass(frozen=True, slots=True, eq=False)
class DecodePlan:
    """A plan's buffers on the device, made once, and how it deals.

    `items: [max_items, 12]`, `item_starts: [num_parts + 1]` and `scratch` are int32. `group` query heads share a KV
    head; up to `rows_per_item` (query token, head) pairs are packed into a lane; `tile_tokens` is what a block attends
    to at once. Tokens see the last `window` positions, all where 0. `split_tokens` > 0 cuts lanes at its multiples,
    whatever else is in the batch; it is a multiple of `tile_tokens`.
    """

    items: Tensor
    item_starts: Tensor
    scratch: Tensor
    max_sequences: int
    max_tokens: int
    group: int
    rows_per_item: int
    tile_tokens: int
    window: int
    split_tokens: int

    @property
    def num_parts(self) -> int:
        """Blocks for each KV head."""
        return self.item_starts.shape[0] - 1


def make_decode_plan(
    device: Device,
    *,
    max_sequences: int,
    max_tokens: int,
    group: int,
    rows_per_item: int,
    tile_tokens: int,
    num_parts: int,
    window: int = 0,
    split_tokens: int = 0,
    max_splits: int = 0,
) -> DecodePlan:
    """Allocate a plan for steps of at most so many sequences and query tokens.

    `max_splits`: how many splits of `split_tokens` there is room for besides one a lane. A step that needs more has its
    splits doubled until they fit, and loses what fixed splits are for. Raises `ShapeError`.
    """
    if split_tokens % tile_tokens or split_tokens < 0:
        raise ShapeError("decode_plan", "split_tokens", f"a multiple of {tile_tokens}", str(split_tokens))
    max_lanes = max_sequences + max_tokens * group // rows_per_item
    return DecodePlan(
        items=device.zeros((max_lanes + (max_splits if split_tokens else num_parts), ITEM_WORDS), torch.int32),
        item_starts=device.zeros((num_parts + 1,), torch.int32),
        scratch=device.zeros((2 * (max_sequences + 1) + 3 * (num_parts + 1),), torch.int32),
        max_sequences=max_sequences,
        max_tokens=max_tokens,
        group=group,
        rows_per_item=rows_per_item,
        tile_tokens=tile_tokens,
        window=window,
        split_tokens=split_tokens,
    )


def decode_plan(device: Device, plan: DecodePlan, query_starts: Tensor, kv_lengths: Tensor) -> None:
    """Deal this step's work. `query_starts: [num_sequences + 1]`, `kv_lengths: [num_sequences]`, int32.

    There must be no more query tokens than `plan.max_tokens`, which only the device could check. Mutates the plan's
    buffers. Raises `ShapeError`.
    """
    (num_sequences,) = kv_lengths.shape
    check("decode_plan", "query_starts", query_starts, (num_sequences + 1,), torch.int32)
    check("decode_plan", "kv_lengths", kv_lengths, (num_sequences,), torch.int32)
    if num_sequences > plan.max_sequences:
        raise ShapeError("decode_plan", "kv_lengths", f"at most {plan.max_sequences} sequences", str(num_sequences))
    device.launch(
        _INSTANCE,
        (1, 1, 1),
        query_starts.data_ptr(),
        kv_lengths.data_ptr(),
        plan.items.data_ptr(),
        plan.item_starts.data_ptr(),
        plan.scratch.data_ptr(),
        num_sequences,
        plan.num_parts,
        plan.group,
        plan.rows_per_item,
        plan.tile_tokens,
        plan.window,
        plan.split_tokens // plan.tile_tokens,
        plan.items.shape[0],
    )


def read_plan(plan: DecodePlan) -> list[list[Item]]:
    """Give the items of each part, from the device's buffers."""
    starts = plan.item_starts.cpu().tolist()
    items = [Item(*words[:10]) for words in plan.items[: starts[-1]].cpu().tolist()]
    items = [item if item.num_slots > 1 else replace(item, slot=0, first_slot=0) for item in items]
    return [items[begin:end] for begin, end in pairwise(starts)]


def decode_plan_reference(plan: DecodePlan, query_starts: list[int], kv_lengths: list[int]) -> list[list[Item]]:
    """Give the same, by walking along the line of lanes."""
    split_tiles = plan.split_tokens // plan.tile_tokens
    while True:
        lanes = [
            _Lane(plan, sequence, begin, end - begin, kv_length, row_begin)
            for sequence, ((begin, end), kv_length) in enumerate(zip(pairwise(query_starts), kv_lengths, strict=True))
            for row_begin in range(0, (end - begin) * plan.group, plan.rows_per_item)
        ]
        if not split_tiles:
            return _balanced(plan, lanes)
        pieces = [lane.cut_every(split_tiles) for lane in lanes]
        if sum(map(len, pieces)) <= plan.items.shape[0]:
            return _dealt_whole(plan, pieces)
        split_tiles *= 2


class _Lane:
    """One lane, in tiles counted from its first."""

    def __init__(
        self, plan: DecodePlan, sequence: int, query_begin: int, q_len: int, kv_length: int, row_begin: int
    ) -> None:
        self._plan = plan
        self._head = sequence, row_begin
        self._tail = query_begin, q_len, kv_length
        self.first = max(0, kv_length - q_len + 1 - plan.window) if plan.window > 0 else 0
        self.first_tile = self.first // plan.tile_tokens
        self.num_tiles = -(-kv_length // plan.tile_tokens) - self.first_tile

    def item(self, begin: int, end: int, slot: int = 0, first_slot: int = 0, num_slots: int = 1) -> Item:
        sequence, row_begin = self._head
        _, _, kv_length = self._tail
        token_begin = max(self.first, (self.first_tile + begin) * self._plan.tile_tokens)
        token_end = min(kv_length, (self.first_tile + end) * self._plan.tile_tokens)
        return Item(sequence, token_begin, token_end, row_begin, *self._tail, slot, first_slot, num_slots)

    def cut_every(self, split_tiles: int) -> list[tuple["_Lane", int, int]]:
        last = self.first_tile + self.num_tiles
        cuts = [tile - self.first_tile for tile in range(self.first_tile + 1, last) if tile % split_tiles == 0]
        return [(self, begin, end) for begin, end in zip([0, *cuts], [*cuts, self.num_tiles], strict=True)]


def _balanced(plan: DecodePlan, lanes: list[_Lane]) -> list[list[Item]]:
    total = sum(lane.num_tiles + LANE_COST for lane in lanes)
    part_cost = max(SMALLEST_PART, -(-total // plan.num_parts))
    parts: list[list[Item]] = [[] for _ in range(plan.num_parts)]
    line = 0
    for lane in lanes:
        end_of_lane = line + lane.num_tiles + LANE_COST
        cuts = {}  # tile: the part that begins there
        first_part = 0
        for part in range(plan.num_parts):
            tile = part * part_cost - line - LANE_COST
            if part * part_cost >= end_of_lane:
                break
            if tile <= 0:
                first_part = part
            elif lane.num_tiles - tile >= LANE_COST:
                cuts[tile] = part
        begins, ends = [0, *cuts], [*cuts, lane.num_tiles]
        for piece, (begin, end) in enumerate(zip(begins, ends, strict=True)):
            slots = (2 * first_part + 1 + piece, 2 * first_part + 1, len(begins)) if cuts else (0, 0, 1)
            parts[first_part + piece].append(lane.item(begin, end, *slots))
        line = end_of_lane
    return parts


def _dealt_whole(plan: DecodePlan, lanes: list[list[tuple[_Lane, int, int]]]) -> list[list[Item]]:
    total = sum(lane.num_tiles + LANE_COST * len(pieces) for pieces in lanes for lane, _, _ in pieces[:1])
    part_cost = max(SMALLEST_PART, -(-total // plan.num_parts))
    parts: list[list[Item]] = [[] for _ in range(plan.num_parts)]
    line = index = 0
    for pieces in lanes:
        for piece, (lane, begin, end) in enumerate(pieces):
            slots = (index, index - piece, len(pieces)) if len(pieces) > 1 else (0, 0, 1)
            parts[min(line // part_cost, plan.num_parts - 1)].append(lane.item(begin, end, *slots))
            line += end - begin + LANE_COST
            index += 1
    return parts
