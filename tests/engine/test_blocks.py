"""What the block pool promises."""

import pytest

from engine.blocks import BlockPool, hash_block
from engine.params import SamplingParams
from engine.sequence import Sequence

SIZE = 4


def sequence(tokens: list[int], salt: bytes = b"") -> Sequence:
    return Sequence("r", 0, list(tokens), len(tokens), SamplingParams(max_tokens=8), salt=salt)


def computed(pool: BlockPool, tokens: list[int], salt: bytes = b"") -> Sequence:
    """A sequence with all its tokens in blocks."""
    made = sequence(tokens, salt)
    pool.allocate(made, pool.match(made))
    pool.advance(made, len(tokens))
    return made


def test_a_sequence_gets_the_blocks_its_tokens_need() -> None:
    pool = BlockPool(8, SIZE)
    made = sequence(list(range(9)))

    assert pool.can_allocate(made, [])

    pool.allocate(made, [])

    assert len(made.block_table) == 3
    assert (pool.num_free, pool.num_cached) == (5, 0)
    pool.check_integrity([made])


def test_what_cannot_be_allocated_is_told_before() -> None:
    pool = BlockPool(2, SIZE)

    assert pool.can_allocate(sequence(list(range(8))), [])
    assert not pool.can_allocate(sequence(list(range(8))), [], spare=1)
    assert not pool.can_allocate(sequence(list(range(9))), [])


def test_a_prefix_is_found_while_held_and_after_it_was_freed() -> None:
    pool = BlockPool(8, SIZE)
    first = computed(pool, list(range(10)))
    blocks = list(first.block_table)

    assert pool.match(sequence([*range(10), 77])) == blocks[:2]

    pool.free(first)

    assert pool.match(sequence([*range(10), 77])) == blocks[:2]
    assert (pool.num_free, pool.num_cached) == (6, 2)


def test_only_full_computed_blocks_are_indexed() -> None:
    pool = BlockPool(8, SIZE)
    first = sequence(list(range(12)))
    pool.allocate(first, [])
    pool.advance(first, 7)

    assert pool.match(sequence(list(range(12)))) == first.block_table[:1]


def test_the_block_of_the_last_token_is_never_matched() -> None:
    pool = BlockPool(8, SIZE)
    first = computed(pool, list(range(8)))

    assert pool.match(sequence(list(range(8)))) == first.block_table[:1]


def test_a_shared_block_is_counted_once_for_each_holder() -> None:
    pool = BlockPool(8, SIZE)
    first = computed(pool, list(range(9)))
    second = computed(pool, list(range(9)))

    assert second.block_table[:2] == first.block_table[:2]
    assert pool.num_exclusive(first) == 1
    pool.check_integrity([first, second])

    pool.free(first)

    assert pool.num_exclusive(second) == 3
    pool.check_integrity([second])


def test_other_salts_and_other_fingerprints_never_meet() -> None:
    pool = BlockPool(8, SIZE)
    computed(pool, list(range(9)), salt=b"a")

    assert pool.match(sequence(list(range(9)), salt=b"b")) == []
    assert len(pool.match(sequence(list(range(9)), salt=b"a"))) == 2

    one, other = sequence(list(range(9))), sequence(list(range(9)))
    BlockPool(8, SIZE, fingerprint=b"one").match(one)
    BlockPool(8, SIZE, fingerprint=b"other").match(other)

    assert one.block_keys[0] != other.block_keys[0]


def test_the_block_that_was_used_longest_ago_is_evicted_and_the_end_of_a_prefix_first() -> None:
    pool = BlockPool(4, SIZE)
    pool.free(computed(pool, list(range(8))))
    pool.free(computed(pool, list(range(100, 108))))
    pool.free(computed(pool, list(range(9))))  # uses the first again, and the last of the four

    assert len(pool.match(sequence([*range(8), 1]))) == 2

    pool.allocate(sequence(list(range(200, 204))), [])

    assert len(pool.match(sequence([*range(100, 108), 1]))) < 2
    assert len(pool.match(sequence([*range(8), 1]))) == 2


def test_a_matched_block_is_not_evicted_for_the_rest_of_its_own_sequence() -> None:
    pool = BlockPool(3, SIZE)
    pool.free(computed(pool, list(range(8))))
    again = sequence([*range(8), 9, 10, 11])
    found = pool.match(again)

    assert len(found) == 2
    assert pool.shortage(again, found) == 0

    pool.allocate(again, found)
    pool.check_integrity([again])


@pytest.mark.parametrize("tokens", [[9, 9, 9, 9, 4, 5, 6, 7, 8], [0, 1, 2, 3, 9, 9, 9, 9, 8]])
def test_a_collision_of_hashes_serves_nothing(tokens: list[int]) -> None:
    """Every block of every prefix has the same key, or every first and every second block have."""
    depth = {b"root": b"first", b"first": b"second"}
    for collide in (lambda parent, content: b"same", lambda parent, content: depth.get(parent, b"root")):
        pool = BlockPool(8, SIZE, hash_block=collide)
        computed(pool, list(range(9)))
        shared = [i for i in range(2) if tokens[: (i + 1) * SIZE] == list(range((i + 1) * SIZE))]

        assert len(pool.match(sequence(tokens))) <= len(shared)


def test_the_same_tokens_behind_another_prefix_collide_in_vain() -> None:
    """The second blocks hold the same tokens and have the same key; only their parents differ."""

    def collide(parent: bytes, content: bytes) -> bytes:
        same = bytes(content) == bytes(array_of([4, 5, 6, 7]))
        return b"collision" if same else hash_block(parent[:32], content)

    pool = BlockPool(8, SIZE, hash_block=collide)
    computed(pool, [0, 1, 2, 3, 4, 5, 6, 7, 8])
    other = computed(pool, [9, 9, 9, 9, 8])

    assert pool.match(sequence([9, 9, 9, 9, 4, 5, 6, 7, 8])) == other.block_table[:1]


def test_the_colliding_block_takes_the_place_of_the_other() -> None:
    pool = BlockPool(8, SIZE, hash_block=lambda parent, content: b"same")
    first = computed(pool, list(range(5)))
    second = computed(pool, list(range(50, 55)))

    assert pool.match(sequence(list(range(5)))) == []
    assert pool.match(sequence(list(range(50, 55)))) == second.block_table[:1]

    pool.free(first)
    pool.free(second)

    assert (pool.num_free, pool.num_cached) == (7, 1)
    pool.check_integrity()


def test_an_orphan_of_an_evicted_parent_is_not_found_and_is_replaced() -> None:
    pool = BlockPool(4, SIZE)
    first, second = sequence(list(range(9))), sequence([*range(4), 7, 7, 7, 7])
    pool.allocate(first, [])
    pool.advance(first, 4)
    pool.free(first)
    parent = pool.match(first)[0]
    pool.allocate(second, [])  # computes the shared first block a second time
    pool.advance(second, 8)
    taken = [pool._take(), pool._take()]  # the free one, and the cached parent

    assert parent in taken
    assert pool.match(sequence([*range(4), 7, 7, 7, 7, 7])) == []
    assert len(second.block_table) == 2


def test_two_that_compute_the_same_at_once_share_their_descendants() -> None:
    pool = BlockPool(8, SIZE)
    first, second = sequence(list(range(4))), sequence([*range(4), 5, 6, 7, 8])
    for one in (first, second):
        pool.allocate(one, [])
    pool.advance(first, 4)
    pool.advance(second, 8)

    assert pool.match(sequence([*range(4), 5, 6, 7, 8, 9])) == [first.block_table[0], second.block_table[1]]


def test_without_caching_nothing_is_kept() -> None:
    pool = BlockPool(8, SIZE, caching=False)
    pool.free(computed(pool, list(range(8))))

    assert pool.match(sequence(list(range(8)))) == []
    assert (pool.num_free, pool.num_cached) == (8, 0)


def test_keys_are_computed_once_in_a_sequence_s_life() -> None:
    calls = []

    def counting(parent: bytes, content: bytes) -> bytes:
        calls.append(content)
        return hash_block(parent, content)

    pool = BlockPool(8, SIZE, hash_block=counting)
    made = sequence(list(range(9)))
    for _ in range(3):
        pool.allocate(made, pool.match(made))
        pool.advance(made, 9)
        pool.free(made)

    assert len(calls) == 3  # the root and two blocks


def test_check_integrity_finds_a_lost_block() -> None:
    pool = BlockPool(8, SIZE)
    made = computed(pool, list(range(8)))
    made.block_table.pop()

    with pytest.raises(AssertionError, match="reference counts"):
        pool.check_integrity([made])


def array_of(tokens: list[int]) -> bytes:
    return b"".join(token.to_bytes(4, "little") for token in tokens)
