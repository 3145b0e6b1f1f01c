"""Philox 4x32-10: random numbers that are a function of their place, not of what was drawn before.

From "Parallel random numbers: as easy as 1, 2, 3" (Salmon, Moraes, Dror and Shaw, 2011): ten rounds turn a counter of
four words under a key of two into four random words. So the draw at one position of one answer can be made anywhere, in
any order, any number of times: by another slot, after a preemption, or by a kernel on a device that keys it alike.

    key      | seed low | seed high |
    counter  | position low | position high | choice | 0 |
"""

import numpy as np
from numpy.typing import NDArray

MULTIPLY_0, MULTIPLY_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
WEYL_0, WEYL_1 = 0x9E3779B9, 0xBB67AE85
WORD = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)
ROUNDS = 10

Words = NDArray[np.uint64]


def philox(counter: tuple[Words, Words, Words, Words], key: tuple[int, int]) -> tuple[Words, Words, Words, Words]:
    """Encrypt counters under a key, all as 32-bit words held in 64 bits. Works elementwise over arrays of one shape."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        product_0, product_1 = MULTIPLY_0 * c0, MULTIPLY_1 * c2
        c0, c1, c2, c3 = (
            (product_1 >> HALF) ^ c1 ^ np.uint64(k0),
            product_1 & WORD,
            (product_0 >> HALF) ^ c3 ^ np.uint64(k1),
            product_0 & WORD,
        )
        k0, k1 = (k0 + WEYL_0) & 0xFFFFFFFF, (k1 + WEYL_1) & 0xFFFFFFFF
    return c0, c1, c2, c3


def uniforms(seed: int, choice: int, start: int, count: int) -> NDArray[np.float64]:
    """Give the draws for positions `start` to `start + count - 1` of a choice, in [0, 1) with 53 random bits each."""
    positions = np.arange(start, start + count, dtype=np.uint64)
    zeros = np.zeros(count, dtype=np.uint64)
    counter = (positions & WORD, positions >> HALF, np.full(count, choice, dtype=np.uint64), zeros)
    c0, c1, _, _ = philox(counter, (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))
    return ((c0 >> np.uint64(5)) * np.float64(1 << 26) + (c1 >> np.uint64(6))) * 2.0**-53
