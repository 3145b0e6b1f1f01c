"""What each probe of `probes/wrappers.cu` is given, and what it has to answer by the PTX ISA's words.

A probe's number is its case in that file. Inputs are the same on every machine: they are the question of a golden.
"""

import hashlib
import math
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from tests.kernels import fragments

THREADS = 128
TILE_WORDS = 4096
Words = list[int]


def random_words(count: int, seed: int = 0) -> Words:
    chance = random.Random(seed)
    return [chance.getrandbits(32) for _ in range(count)]


def as_bytes(words: Words) -> bytes:
    return struct.pack(f"<{len(words)}I", *(word & 0xFFFFFFFF for word in words))


def as_words(data: bytes) -> Words:
    return list(struct.unpack(f"<{len(data) // 4}I", data))


def float_bits(value: float) -> int:
    return as_words(struct.pack("<f", value))[0]


@dataclass(frozen=True)
class Copied:
    """What a bulk copy moves: a tensor of bytes, a box of it and where the box begins, x first."""

    sizes: tuple[int, ...]  # of the tensor, the innermost last
    box: tuple[int, ...]
    at: tuple[int, ...]
    swizzle_bytes: int = 0
    out: bool = False

    def box_bytes(self) -> int:
        return 2 * math.prod(self.box)


@dataclass(frozen=True)
class Probe:
    which: int
    given: Words
    expected: Words
    copied: Copied | None = None
    plain_bytes: int = 0
    steps: int = 0  # by how many units in the last place a float may differ; 0: the bits are equal
    unset: set[int] = field(default_factory=set)  # words that may be anything


# ---- shuffles, votes, copies, barriers -----------------------------------------------------------------------------


def lanes() -> Probe:
    return Probe(0, [0], [word for thread in range(THREADS) for word in (thread % 32, thread)])


def shuffles() -> Probe:
    given = random_words(THREADS, 1)
    given[40] &= ~0xFF  # somebody whose low byte is zero
    out: Words = []
    for thread in range(THREADS):
        warp, lane = thread // 32 * 32, thread % 32
        values = given[warp : warp + 32]
        by = given[thread // 32] & 31
        few = by & 7
        out += [
            values[by],
            values[lane // 8 * 8 + by % 8],
            values[lane ^ by],
            values[lane - few if lane % 16 - few >= 0 else lane],
            values[lane + few if lane % 16 + few < 16 else lane],
            sum((value & 1) << i for i, value in enumerate(values)),
            any(value & 255 == 0 for value in values) * 2 + all(value & 255 != 0 for value in values),
            sum(values) & 0xFFFFFFFF,
        ]
    return Probe(1, given, out)


def cp_async() -> Probe:
    given = random_words(2 * THREADS * 4, 2)
    first = [0 if i // 4 % 4 == 3 else word for i, word in enumerate(given[: THREADS * 4])]
    return Probe(2, given, first + given[THREADS * 4 :])


def memory() -> Probe:
    given = random_words(THREADS * 4, 3)
    start = (given[0] + sum(range(THREADS))) & 0xFFFFFFFF
    return Probe(3, given, [start] + [0] * (THREADS - 1) + given, unset=set(range(1, THREADS)))


def arithmetic() -> Probe:
    chance = random.Random(4)
    values = [chance.uniform(-80, 80) for _ in range(THREADS - 2)] + [0.0, -math.inf]
    values = [struct.unpack("<f", struct.pack("<f", value))[0] for value in values]
    out: Words = []
    for value in values:
        root = math.nan if value < 0 else math.inf if value == 0 else 1 / math.sqrt(value)
        out += [float_bits(2.0**value), float_bits(root)]
    return Probe(4, [float_bits(value) for value in values], out, steps=4)


def barriers() -> Probe:
    given = random_words(THREADS, 5)
    sums = [(given[i + 32] + given[i + 64] + given[i + 96]) & 0xFFFFFFFF for i in range(32)]
    return Probe(5, given, sums + sums + given[32:96])


def mbarrier() -> Probe:
    given = random_words(3 * THREADS, 6)
    out = []
    for thread in range(THREADS):
        total = 0
        for phase in range(3):
            total = total * 3 + given[phase * THREADS + THREADS - 1 - thread]
        out.append(total & 0xFFFFFFFF)
    return Probe(16, given, out)


def dependents() -> Probe:
    given = random_words(THREADS, 7)
    return Probe(23, given, given)


# ---- matrices ------------------------------------------------------------------------------------------------------


def matrices(which: int, count: int, transposed: bool) -> Probe:
    given = random_words(TILE_WORDS, 8)
    memory = as_bytes(given)

    def element(warp: int, matrix: int, row: int, column: int) -> int:
        named_by = 8 * matrix + row  # the lane; it names row 31 - lane of its warp's 512 bytes
        at = warp * 512 + (31 - named_by) * 16 + 2 * column
        return int.from_bytes(memory[at : at + 2], "little")

    out: Words = []
    for thread in range(THREADS):
        for matrix in range(count):
            halves = []
            for i in range(2):
                row, column = fragments.ldmatrix(thread % 32, i)
                halves.append(element(thread // 32, matrix, *((column, row) if transposed else (row, column))))
            out.append(halves[0] | halves[1] << 16)
    return Probe(which, given, out)


def stmatrix() -> Probe:
    given = random_words(TILE_WORDS, 9)
    memory = bytearray(as_bytes(given))
    registers = as_bytes(given[: THREADS * 4])
    for thread in range(THREADS):
        warp, lane = divmod(thread, 32)
        for matrix in range(4):
            for i in range(2):
                row, column = fragments.ldmatrix(lane, i)
                to = warp * 512 + (31 - (8 * matrix + row)) * 16 + 2 * column
                source = (thread * 4 + matrix) * 4 + 2 * i
                memory[to : to + 2] = registers[source : source + 2]
    return Probe(15, given, as_words(bytes(memory)))


def small_numbers(count: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Whole numbers from -8 to 8: every sum of their products is exact, in whatever order it is taken."""
    chance = random.Random(seed)
    return torch.tensor([chance.randint(-8, 8) for _ in range(count)], dtype=torch.float32).to(dtype)


def product(which: int, dtype: torch.dtype) -> Probe:
    wide = dtype in (torch.bfloat16, torch.float16)
    k = 16 if wide else 32
    place_a, place_b = (
        (fragments.mma_a_16bit, fragments.mma_b_16bit) if wide else (fragments.mma_a_8bit, fragments.mma_b_8bit)
    )
    exact = torch.int32 if dtype == torch.int8 else torch.float32
    given = bytearray(THREADS * 40)
    expected = bytearray(THREADS * 16)
    for warp in range(THREADS // 32):
        a = small_numbers(16 * k, dtype, 10 * warp).reshape(16, k)
        b = small_numbers(k * 8, dtype, 10 * warp + 1).reshape(k, 8)
        c = small_numbers(128, torch.float32, 10 * warp + 2).reshape(16, 8)
        d = (a.float() @ b.float() + c).to(exact)
        in_register = 2 if wide else 4
        for lane in range(32):
            at = (warp * 32 + lane) * 40
            parts = [a[place_a(lane, i)] for i in range(4 * in_register)]
            parts += [b[place_b(lane, i)] for i in range(2 * in_register)]
            given[at : at + 24] = torch.stack(parts).view(torch.uint8).numpy().tobytes()
            start = torch.stack([c[fragments.mma_c(lane, i)] for i in range(4)]).to(exact)
            given[at + 24 : at + 40] = start.view(torch.uint8).numpy().tobytes()
            end = torch.stack([d[fragments.mma_c(lane, i)] for i in range(4)])
            at = (warp * 32 + lane) * 16
            expected[at : at + 16] = end.view(torch.uint8).numpy().tobytes()
    return Probe(which, as_words(bytes(given)), as_words(bytes(expected)))


# ---- bulk copies ---------------------------------------------------------------------------------------------------


def plain_load() -> Probe:
    given = random_words(TILE_WORDS, 11)
    return Probe(17, given, given[: 4080 // 4] + [0xABABABAB] * (TILE_WORDS - 4080 // 4), plain_bytes=4080)


def plain_store() -> Probe:
    given = random_words(TILE_WORDS, 12)
    return Probe(21, given, given[: 4080 // 4], plain_bytes=4080)


def box_rows(copied: Copied, tensor: bytes) -> list[bytes]:
    """The box's rows as they lie in shared memory, before the swizzle: zeros for what is outside of the tensor."""
    rows: list[bytes] = []

    def walk(dim: int, index: tuple[int, ...]) -> None:
        if dim < len(copied.box) - 1:
            for i in range(copied.box[dim]):
                walk(dim + 1, (*index, copied.at[-1 - dim] + i))
            return
        row = b""
        for i in range(copied.box[-1]):
            place = (*index, copied.at[0] + i)
            inside = all(0 <= p < size for p, size in zip(place, copied.sizes, strict=True))
            offset = 0
            for p, size in zip(place, copied.sizes, strict=True):
                offset = offset * size + p
            row += tensor[2 * offset : 2 * offset + 2] if inside else b"\0\0"
        rows.append(row)

    walk(0, ())
    return rows


def box_load(which: int, copied: Copied) -> Probe:
    given = random_words(math.prod(copied.sizes) // 2, 13)
    rows = box_rows(copied, as_bytes(given))
    joined = b"".join(rows)
    # The figures draw rows of the swizzle's width; a box whose rows are narrower is read in rows of 128 bytes.
    width = copied.swizzle_bytes or 16
    image = fragments.swizzled_rows([joined[i : i + width] for i in range(0, len(joined), width)], copied.swizzle_bytes)
    expected = as_words(image) + [0xABABABAB] * (TILE_WORDS - len(image) // 4)
    return Probe(which, given, expected, copied)


def box_store(copied: Copied) -> Probe:
    given = random_words(TILE_WORDS, 14)
    tile = as_bytes(given)[: copied.box_bytes()]
    width = 2 * copied.box[1]
    rows = [tile[i : i + width] for i in range(0, len(tile), width)]
    straight = [
        b"".join(row[16 * c : 16 * c + 16] for c in (
            fragments.swizzled_chunk(number, chunk, copied.swizzle_bytes) for chunk in range(width // 16)
        ))
        for number, row in enumerate(rows)
    ]  # fmt: skip
    tensor = bytearray(2 * math.prod(copied.sizes))
    for y, row in enumerate(straight):
        for x in range(copied.box[1]):
            place_x, place_y = copied.at[0] + x, copied.at[1] + y
            if 0 <= place_x < copied.sizes[1] and 0 <= place_y < copied.sizes[0]:
                to = 2 * (place_y * copied.sizes[1] + place_x)
                tensor[to : to + 2] = row[2 * x : 2 * x + 2]
    return Probe(22, given, as_words(bytes(tensor)), copied)


PROBED: dict[str, Callable[[], Probe]] = {
    "lane_id": lanes,
    "shuffles": shuffles,
    "cp_async": cp_async,
    "memory": memory,
    "arithmetic": arithmetic,
    "barriers": barriers,
    "mbarrier": mbarrier,
    "pdl": dependents,
    "ldmatrix_x1": lambda: matrices(6, 1, False),
    "ldmatrix_x2": lambda: matrices(7, 2, False),
    "ldmatrix_x4": lambda: matrices(8, 4, False),
    "ldmatrix_x2_trans": lambda: matrices(9, 2, True),
    "ldmatrix_x4_trans": lambda: matrices(10, 4, True),
    "stmatrix_x4": stmatrix,
    "mma_bf16": lambda: product(11, torch.bfloat16),
    "mma_f16": lambda: product(12, torch.float16),
    "mma_s8": lambda: product(13, torch.int8),
    "mma_e4m3": lambda: product(14, torch.float8_e4m3fn),
    "tma_load_1d": plain_load,
    "tma_load_2d": lambda: box_load(18, Copied((40, 96), (32, 64), (48, -3))),
    "tma_load_2d-swizzle-32": lambda: box_load(18, Copied((40, 96), (32, 16), (88, 20), 32)),
    "tma_load_2d-swizzle-64": lambda: box_load(18, Copied((40, 96), (32, 32), (-5, 20), 64)),
    "tma_load_2d-swizzle-128": lambda: box_load(18, Copied((40, 96), (32, 64), (33, 7), 128)),
    "tma_load_3d": lambda: box_load(19, Copied((5, 12, 64), (3, 8, 64), (8, 5, 1), 128)),
    "tma_load_4d": lambda: box_load(20, Copied((3, 4, 6, 64), (2, 2, 4, 64), (0, -1, 3, 2), 128)),
    "tma_store_1d": plain_store,
    "tma_store_2d": lambda: box_store(Copied((40, 96), (32, 64), (48, -3), out=True)),
    "tma_store_2d-swizzle-32": lambda: box_store(Copied((40, 96), (32, 16), (88, 20), 32, out=True)),
    "tma_store_2d-swizzle-64": lambda: box_store(Copied((40, 96), (32, 32), (-5, 20), 64, out=True)),
    "tma_store_2d-swizzle-128": lambda: box_store(Copied((40, 96), (32, 64), (33, 7), 128, out=True)),
}


def question(probe: Probe) -> bytes:
    """What the probe was given, in 32 bytes."""
    return hashlib.sha256(as_bytes(probe.given)).digest()
