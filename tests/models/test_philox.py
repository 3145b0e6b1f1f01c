"""Philox is the published generator, and its draws depend on seed, choice and position only."""

import numpy as np
import pytest

from engine.philox import philox, uniforms

# Known answers for philox4x32-10 that Random123 carries (tests/kat_vectors), as counter, key, result.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter: str, key: str, expected: str) -> None:
    c0, c1, c2, c3 = (np.array([word], dtype=np.uint64) for word in words(counter))
    k0, k1 = words(key)

    assert [int(word[0]) for word in philox((c0, c1, c2, c3), (k0, k1))] == words(expected)


def test_known_answers_hold_side_by_side() -> None:
    columns = np.array([words(counter) for counter, _, _ in KNOWN[:1] * 3], dtype=np.uint64).T
    result = philox((columns[0], columns[1], columns[2], columns[3]), (0, 0))

    assert [word.tolist() for word in result] == [[word] * 3 for word in words(KNOWN[0][2])]


def test_a_draw_does_not_depend_on_where_the_run_began() -> None:
    whole = uniforms(seed=12345, choice=2, start=0, count=200)

    for start in (0, 1, 63, 64, 150):
        np.testing.assert_array_equal(uniforms(12345, 2, start, 50), whole[start : start + 50])


def test_seed_choice_and_position_all_matter() -> None:
    draws = [
        uniforms(seed, choice, start, 4).tolist()
        for seed in (0, 1, 1 << 32, (1 << 64) - 1)
        for choice in (0, 1)
        for start in (0, 7, 1 << 33)
    ]

    assert len({draw for row in draws for draw in row}) == 4 * len(draws)


def test_a_negative_seed_is_its_64_bits() -> None:
    np.testing.assert_array_equal(uniforms(-1, 0, 0, 8), uniforms((1 << 64) - 1, 0, 0, 8))


def test_draws_are_uniform() -> None:
    draws = uniforms(seed=7, choice=0, start=0, count=100_000)
    counts = np.histogram(draws, bins=100, range=(0, 1))[0]
    statistic = float(((counts - 1000) ** 2 / 1000).sum())

    assert draws.min() >= 0
    assert draws.max() < 1
    assert statistic < 168  # the 1 - 2e-5 quantile of chi-square with 99 degrees of freedom
