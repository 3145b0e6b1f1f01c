"""A runner without a model: tokens are a pure function of the history, and every block is checked before it is read.

Instead of keys and values, a slot stores the digest of the whole history up to its position, salt and token included:
exactly what a real key and value depend on. A row whose blocks do not hold its sequence's history, because a block was
shared wrongly, evicted too soon, computed by another or never computed, fails at once.
"""

from collections.abc import Iterable
from collections.abc import Sequence as Seq

from engine.batch import Batch, Logprobs, Sampled
from engine.sequence import Sequence
from engine.text.stream import Piece

MASK = (1 << 64) - 1


def digest_of(parent: int, token: int) -> int:
    """Chain one token behind a history (a 64-bit mixer of splitmix's kind)."""
    mixed = (parent ^ (token + 0x9E3779B97F4A7C15)) * 0xBF58476D1CE4E5B9 & MASK
    return (mixed ^ (mixed >> 29)) * 0x94D049BB133111EB & MASK


def root_of(salt: bytes) -> int:
    """Give the digest of no token at all."""
    return int.from_bytes(salt[:8].ljust(8, b"."), "big")


class ScriptedRunner:
    """The `Runner` of the tests. `fail_on` makes the steps fail that contain a sequence of such a request id.

    `script` maps a request id to the tokens that it shall generate; others get a function of history, seed and index.
    """

    def __init__(
        self, num_blocks: int = 64, block_size: int = 16, max_model_len: int = 512, vocab_size: int = 1000
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.max_model_len = max_model_len
        self.vocab_size = vocab_size
        self.slots: list[list[int | None]] = [[None] * block_size for _ in range(num_blocks)]
        self.batches: list[Batch] = []
        self.forgotten: list[Sequence] = []
        self.num_computed_tokens = 0
        self.script: dict[str, list[int]] = {}
        self.fail_on: set[str] = set()

    def run(self, batch: Batch) -> list[Sampled]:
        """Check every row against the blocks as they were before the step, then write and sample."""
        self.batches.append(batch)
        assert batch.num_tokens == sum(row.count for row in batch.rows)
        assert len({row.sequence for row in batch.rows}) == len(batch.rows), "a sequence has two rows"
        if any(row.sequence.request_id in self.fail_on for row in batch.rows):
            raise RuntimeError("the device is gone")
        digests = [self._checked(row.sequence, row.start, row.start + row.count) for row in batch.rows]
        written: set[tuple[int, int]] = set()
        sampled = []
        for row, digest in zip(batch.rows, digests, strict=True):
            sequence = row.sequence
            assert row.count > 0
            assert row.samples == (row.start + row.count == len(sequence.token_ids))
            for position in range(row.start, row.start + row.count):
                block, offset = sequence.block_table[position // self.block_size], position % self.block_size
                assert (block, offset) not in written, "two rows write one slot"
                written.add((block, offset))
                self.slots[block][offset] = digest[position]
            if row.samples:
                sampled.append(self._sample(sequence, digest[-1]))
        self.num_computed_tokens += batch.num_tokens
        return sampled

    def forget(self, sequence: Sequence) -> None:
        """Remember that the brain said so."""
        self.forgotten.append(sequence)

    def token(self, digest: int, seed: int, index: int) -> int:
        """Choose the token behind a history."""
        return digest_of(digest_of(digest, seed), index) % self.vocab_size

    def undisturbed(
        self, prompt: Iterable[int], num_tokens: int, *, salt: bytes = b"", seed: int = 0, index: int = 0
    ) -> list[int]:
        """Generate as if nobody else were there."""
        digest = root_of(salt)
        for token in prompt:
            digest = digest_of(digest, token)
        generated: list[int] = []
        while len(generated) < num_tokens:
            generated.append(self.token(digest, seed, index))
            digest = digest_of(digest, generated[-1])
        return generated

    def _checked(self, sequence: Sequence, start: int, end: int) -> list[int]:
        """Give the digests of a history up to `end`, having found all before `start` in the blocks."""
        digest, digests = root_of(sequence.salt), []
        for position, token in enumerate(sequence.token_ids[:end]):
            digest = digest_of(digest, token)
            digests.append(digest)
            if position < start:
                block = sequence.block_table[position // self.block_size]
                stored = self.slots[block][position % self.block_size]
                assert stored == digest, f"position {position} of {sequence.request_id} is not what the block holds"
        return digests

    def _sample(self, sequence: Sequence, digest: int) -> Sampled:
        if sequence.request_id in self.script:
            token = self.script[sequence.request_id][sequence.num_generated]
        else:
            token = self.token(digest, sequence.params.seed, sequence.index)
        if sequence.params.logprobs is None:
            return Sampled((token,))
        return Sampled((token,), (Logprobs(-float(token), ()),))


class Spelled:
    """A text stream over single characters: token t says chr(t); "~" is withheld until the next token arrives.

    Satisfies the contract of `engine.text.stream.TextStream` with stop strings of one character.
    """

    def __init__(self, stops: Seq[str] = ()) -> None:
        self.stops = stops
        self.withheld = ""

    def push(self, token_ids: Seq[int], *, scan: bool = True) -> Piece:
        text, num_tokens, read = "", 0, 0
        for token in token_ids:
            read += 1
            character = chr(token)
            if scan and character in self.stops:
                num_tokens += len(self.withheld)
                return Piece(text + self._released(), num_tokens, character, read)
            num_tokens += len(self.withheld)
            text += self._released()
            if character == "~":
                self.withheld = character
            else:
                text += character
                num_tokens += 1
        return Piece(text, num_tokens, None, read)

    def finish(self) -> Piece:
        num_tokens = len(self.withheld)
        return Piece(self._released(), num_tokens)

    def _released(self) -> str:
        text, self.withheld = self.withheld, ""
        return text
