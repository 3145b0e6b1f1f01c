"""Paged KV blocks: who holds which, what is found again by its content, and which one goes when room is needed.

A block is in exactly one of three states:

    free     nobody holds it and nothing finds it          _free, a stack
    cached   nobody holds it, the prefix index finds it    _cached, least recently used first
    held     one or more sequences hold it                 refs > 0; indexed too once it is full and computed

The index maps a chain key to a block. The key of a sequence's i-th full block is a hash over the key of the one before
and its own token ids, and the first block's parent is a root over the model's fingerprint and the sequence's salt: so a
key stands for a whole prefix, and tenants of different salts never meet. (vLLM's automatic prefix caching has the idea;
nano-vllm adds the comparison of token ids.)

A hash may collide, and wrong KV must not be served even then. So a hit is verified: the block's token ids must be the
sought ones, and its parent the very block content that was matched before it. For the second half every content gets a
number of its own, its node, when it is first computed, and a block remembers its parent's node (the first block the
salt itself). By induction a verified chain holds exactly the sought tokens from the first to the last.
"""

from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from hashlib import blake2b
from itertools import count

from engine.sequence import Sequence

HashBlock = Callable[[bytes, bytes], bytes]


def hash_block(parent: bytes, content: bytes) -> bytes:
    """Chain `content` behind the key `parent` (32 bytes): BLAKE2b keyed by the parent."""
    return blake2b(content, key=parent, digest_size=32).digest()


@dataclass(slots=True)
class Block:
    """What the pool knows about one block. `key` is set while the index finds it."""

    refs: int = 0
    key: bytes | None = None
    content: bytes = b""
    parent: int | bytes = b""
    node: int = -1


class BlockPool:
    """Gives blocks to sequences and takes them back; every operation is O(1) a block.

    Writes `block_table`, `block_keys` and `num_computed` of the sequences that it serves. A block is shared only when
    it is full and computed, and is never written while shared. With a sliding window all blocks of a sequence are
    kept, also those that the window has left behind.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int = 16,
        *,
        fingerprint: bytes = b"",
        caching: bool = True,
        hash_block: HashBlock = hash_block,
    ) -> None:
        assert num_blocks > 0
        assert block_size > 0
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.caching = caching
        self._hash = hash_block
        self._root = blake2b(fingerprint, digest_size=32, person=b"penstock kv 1").digest()
        self._blocks = [Block() for _ in range(num_blocks)]
        self._free = list(range(num_blocks - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._index: dict[bytes, int] = {}
        self._nodes = count()

    @property
    def num_free(self) -> int:
        """How many blocks nobody holds and nothing finds."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """How many blocks nobody holds and the index finds."""
        return len(self._cached)

    @property
    def num_available(self) -> int:
        """How many blocks can be handed out: the free ones and, after them, the cached ones."""
        return len(self._free) + len(self._cached)

    @property
    def capacity(self) -> int:
        """How many tokens the whole pool holds."""
        return self.num_blocks * self.block_size

    # A sequence that holds nothing yet: match, then ask, then do.

    def match(self, sequence: Sequence) -> list[int]:
        """Find the longest cached prefix, without taking it.

        Whole blocks only, and never the one with the last token: its logits are wanted, so it is computed again.
        """
        found: list[int] = []
        if not self.caching:
            return found
        parent: int | bytes = sequence.salt
        for i in range((len(sequence.token_ids) - 1) // self.block_size):
            number = self._index.get(self._key(sequence, i))
            if number is None:
                break
            block = self._blocks[number]
            if not self._holds(block, parent, self._content(sequence, i)):
                break
            found.append(number)
            parent = block.node
        return found

    def shortage(self, sequence: Sequence, found: Seq[int]) -> int:
        """Tell how many blocks are lacking to hold all of the sequence's tokens; negative is what would be left."""
        fresh = self._blocks_for(len(sequence.token_ids)) - len(found)
        revived = sum(1 for number in found if not self._blocks[number].refs)
        return fresh + revived - self.num_available

    def can_allocate(self, sequence: Sequence, found: Seq[int], spare: int = 0) -> bool:
        """Tell whether `allocate` would succeed and leave `spare` blocks to others."""
        return self.shortage(sequence, found) + spare <= 0

    def allocate(self, sequence: Sequence, found: Seq[int]) -> None:
        """Give the sequence the matched blocks, and fresh ones for the rest of its tokens."""
        assert not sequence.block_table
        for number in found:
            block = self._blocks[number]
            if not block.refs:
                del self._cached[number]
            block.refs += 1
            sequence.block_table.append(number)
        sequence.num_computed = len(found) * self.block_size
        for _ in range(self._blocks_for(len(sequence.token_ids)) - len(found)):
            sequence.block_table.append(self._take())

    # A sequence that runs.

    def lacks_blocks(self, sequence: Sequence) -> bool:
        """Tell whether the sequence has more tokens than its blocks hold."""
        return len(sequence.token_ids) > len(sequence.block_table) * self.block_size

    def can_append(self, sequence: Sequence) -> bool:
        """Tell whether `append` would succeed."""
        return self._blocks_for(len(sequence.token_ids)) - len(sequence.block_table) <= self.num_available

    def append(self, sequence: Sequence) -> None:
        """Give the sequence the blocks that its newest tokens lack."""
        for _ in range(self._blocks_for(len(sequence.token_ids)) - len(sequence.block_table)):
            sequence.block_table.append(self._take())

    def advance(self, sequence: Sequence, num_computed: int) -> None:
        """Take note that the first `num_computed` tokens are in their blocks, and index those that became full."""
        first, last = sequence.num_computed // self.block_size, num_computed // self.block_size
        sequence.num_computed = num_computed
        if first < last and self.caching:
            for i in range(first, last):
                self._enter(sequence, i)

    def num_exclusive(self, sequence: Sequence, besides: Seq[int] = ()) -> int:
        """Count the blocks, `besides` those, that nobody else holds: what freeing the sequence would make available."""
        return sum(1 for number in sequence.block_table if self._blocks[number].refs == 1 and number not in besides)

    def num_reclaimable(self, sequences: Iterable[Sequence], besides: Seq[int] = ()) -> int:
        """Count the blocks, `besides` those, that nobody but `sequences` holds: what freeing all of them brings."""
        refs: dict[int, int] = {}
        for sequence in sequences:
            for number in sequence.block_table:
                refs[number] = refs.get(number, 0) + 1
        return sum(1 for number, held in refs.items() if self._blocks[number].refs == held and number not in besides)

    def free(self, sequence: Sequence, *, spoilt: bool = False) -> None:
        """Take every block back; indexed ones stay cached, the end of the sequence first to be evicted.

        Of a `spoilt` sequence nothing is found from now on, neither by those who share its blocks.
        """
        for number in reversed(sequence.block_table):
            block = self._blocks[number]
            block.refs -= 1
            if spoilt and block.key is not None:
                self._forget(block)
            if block.refs:
                continue
            if block.key is None:
                self._free.append(number)
            else:
                self._cached[number] = None
        sequence.block_table.clear()
        sequence.num_computed = 0

    def check_integrity(self, sequences: Iterable[Sequence] = ()) -> None:
        """Assert that free + cached + held = total and that `sequences` are exactly the holders. Walks every block."""
        refs = [0] * self.num_blocks
        for sequence in sequences:
            assert len(set(sequence.block_table)) == len(sequence.block_table), "a block twice in one table"
            for i, number in enumerate(sequence.block_table):
                refs[number] += 1
                full = (i + 1) * self.block_size <= sequence.num_computed
                assert full or self._blocks[number].refs == 1, "a block is shared before it is full"
        free, cached = set(self._free), set(self._cached)
        held = {number for number, block in enumerate(self._blocks) if block.refs}
        assert [block.refs for block in self._blocks] == refs, "reference counts differ from the tables"
        assert len(free) == len(self._free), "a block twice in the free stack"
        assert len(free) + len(cached) + len(held) == self.num_blocks, "free + cached + held is not the total"
        assert len(free | cached | held) == self.num_blocks, "a block is in two states"
        assert all(self._blocks[number].key is None for number in free), "a free block is indexed"
        assert all(self._blocks[number].key is not None for number in cached), "a cached block is not indexed"
        indexed = {block.key: number for number, block in enumerate(self._blocks) if block.key is not None}
        assert indexed == self._index, "the index differs from the blocks' keys"

    def _take(self) -> int:
        """Hand out a free block, or else evict the cached one that was used longest ago."""
        if self._free:
            number = self._free.pop()
        else:
            number, _ = self._cached.popitem(last=False)
            self._forget(self._blocks[number])
        self._blocks[number].refs = 1
        return number

    def _enter(self, sequence: Sequence, i: int) -> None:
        """Index the sequence's i-th block, which has just become full and computed."""
        key, content = self._key(sequence, i), self._content(sequence, i)
        parent = self._blocks[sequence.block_table[i - 1]].node if i else sequence.salt
        block = self._blocks[sequence.block_table[i]]
        present = self._index.get(key)
        if present is not None:
            other = self._blocks[present]
            if self._holds(other, parent, content):
                block.node = other.node  # computed twice at the same time: one is indexed, both mean the same
                return
            # A collision, or the orphan of an evicted parent: what is computed now is the likelier to be asked for.
            self._forget(other)
            if not other.refs:
                del self._cached[present]
                self._free.append(present)
        block.key, block.content, block.parent, block.node = key, content, parent, next(self._nodes)
        self._index[key] = sequence.block_table[i]

    def _forget(self, block: Block) -> None:
        assert block.key is not None
        del self._index[block.key]
        block.key = None

    def _holds(self, block: Block, parent: int | bytes, content: bytes) -> bool:
        """Verify a hit: the same tokens behind the same prefix."""
        return block.parent == parent and block.content == content

    def _key(self, sequence: Sequence, i: int) -> bytes:
        """Give the chain key of the sequence's i-th full block; each is computed once in the sequence's life."""
        keys = sequence.block_keys
        while len(keys) <= i:
            parent = keys[-1] if keys else self._hash(self._root, sequence.salt)
            keys.append(self._hash(parent, self._content(sequence, len(keys))))
        return keys[i]

    def _content(self, sequence: Sequence, i: int) -> bytes:
        return array("I", sequence.token_ids[i * self.block_size : (i + 1) * self.block_size]).tobytes()

    def _blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)
