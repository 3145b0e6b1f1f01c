"""Where the elements of a tile lie, over the lanes of a warp and in shared memory.

Written down from the PTX ISA's own formulas and figures, for each instruction by itself, and from nothing of ours:
this is what the emulator is held to. Names and cases are those of the sections "Matrix fragments for ..." of
https://docs.nvidia.com/cuda/parallel-thread-execution/; `i` is the number of an element among those of a lane.
"""


def mma_a_16bit(lane: int, i: int) -> tuple[int, int]:
    """Row and column of a_i, m16n8k16."""
    group, thread = lane >> 2, lane % 4
    row = group if i < 2 or 4 <= i < 6 else group + 8
    column = thread * 2 + (i & 1) if i < 4 else thread * 2 + (i & 1) + 8
    return row, column


def mma_b_16bit(lane: int, i: int) -> tuple[int, int]:
    """Row (of k) and column of b_i, m16n8k16."""
    group, thread = lane >> 2, lane % 4
    return (thread * 2 + (i & 1) if i < 2 else thread * 2 + (i & 1) + 8), group


def mma_a_8bit(lane: int, i: int) -> tuple[int, int]:
    """Row and column of a_i, m16n8k32."""
    group, thread = lane >> 2, lane % 4
    row = group if i < 4 or 8 <= i < 12 else group + 8
    column = thread * 4 + (i & 3) if i < 8 else thread * 4 + (i & 3) + 16
    return row, column


def mma_b_8bit(lane: int, i: int) -> tuple[int, int]:
    """Row (of k) and column of b_i, m16n8k32."""
    group, thread = lane >> 2, lane % 4
    return (thread * 4 + (i & 3) if i < 4 else thread * 4 + (i & 3) + 16), group


def mma_c(lane: int, i: int) -> tuple[int, int]:
    """Row and column of c_i, m16n8."""
    group, thread = lane >> 2, lane % 4
    return (group if i < 2 else group + 8), thread * 2 + (i & 1)


def ldmatrix(lane: int, i: int) -> tuple[int, int]:
    """Row and column of element i of a lane's register: a row is four neighbouring lanes' registers."""
    return lane // 4, lane % 4 * 2 + i


def wgmma_d(thread: int, i: int) -> tuple[int, int]:
    """Row and column of d_i of a thread of a warpgroup, m64nN."""
    warp, lane = thread // 32, thread % 32
    row = 16 * warp + lane // 4 + (8 if i % 4 >= 2 else 0)
    return row, i // 4 * 8 + lane % 4 * 2 + i % 2


def swizzled_chunk(row: int, chunk: int, swizzle_bytes: int) -> int:
    """Where 16-byte chunk `chunk` of row `row` goes within its row of `swizzle_bytes`, as the figures show it.

    128 bytes: eight rows, each with another order. 64: the order changes every two rows. 32: every four.
    """
    if swizzle_bytes == 128:
        return chunk ^ row % 8
    if swizzle_bytes == 64:
        return chunk ^ row // 2 % 4
    if swizzle_bytes == 32:
        return chunk ^ row // 4 % 2
    return chunk


def swizzled_rows(rows: list[bytes], swizzle_bytes: int) -> bytes:
    """Rows of `swizzle_bytes` as TMA writes them, one below the other."""
    image = bytearray()
    for row, data in enumerate(rows):
        chunks = [data[at : at + 16] for at in range(0, len(data), 16)]
        placed = [b""] * len(chunks)
        for number, chunk in enumerate(chunks):
            placed[swizzled_chunk(row, number, swizzle_bytes)] = chunk
        image += b"".join(placed)
    return bytes(image)


def k_major(matrix: list[bytes], swizzle_bytes: int) -> tuple[bytes, int, int]:
    """An operand whose rows (of m or n) hold one instruction's 32 bytes of k; its image, stride and leading bytes.

    Without a swizzle 8 rows of 16 bytes are one piece of memory (a core matrix); the two halves of k of the same rows
    are neighbours here, and the pieces of the next 8 rows follow. With one, rows are `swizzle_bytes` long and the
    instruction's k is at their beginning, zeros behind it.
    """
    if swizzle_bytes:
        return swizzled_rows([row.ljust(swizzle_bytes, b"\0") for row in matrix], swizzle_bytes), 8 * swizzle_bytes, 16
    image = bytearray()
    for first in range(0, len(matrix), 8):
        for half in (0, 16):
            for row in matrix[first : first + 8]:
                image += row[half : half + 16]
    return bytes(image), 256, 128


def mn_major(matrix: list[bytes], swizzle_bytes: int) -> tuple[bytes, int, int]:
    """An operand of 16 rows of k, each of which holds all of n (2 bytes each); its image, stride and leading bytes.

    Swizzled, pieces are 8 of k by `swizzle_bytes` of n; here the pieces of k follow each other, then those of n: stride
    is from 8 of k to the next, leading from one piece of n to the next. Unswizzled, pieces are 8 of k by 16 bytes of n,
    and stride is along n, leading along k.
    """
    width = swizzle_bytes or 16
    image = bytearray()
    for n in range(0, len(matrix[0]), width):
        for k in range(0, len(matrix), 8):
            rows = [matrix[k + i][n : n + width].ljust(width, b"\0") for i in range(8)]
            image += swizzled_rows(rows, swizzle_bytes)
    piece = 8 * width
    return bytes(image), (piece if swizzle_bytes else 2 * piece), (2 * piece if swizzle_bytes else piece)
