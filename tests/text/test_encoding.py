"""Encoding with a memory gives the ids of encoding without one, whatever came before, and finds only one's own."""

from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors

from engine.text.cuts import Cuts
from engine.text.memo import ENTRY_BYTES, IdMemo, key_of
from engine.text.tokenizer import Tokenizer
from tests.text.kinds import KINDS, kind
from tests.text.test_cuts import texts
from tests.tiny_model import TEXT, byte_level_tokenizer

ALICE, BOB = b"alice's salt", b"bob's salt"
LONG = TEXT * 20


def tokenizer_of(name: str, part_chars: int = 16) -> Tokenizer:
    core = kind(name)
    tokenizer = Tokenizer(core, named_tokens={}, stop_ids=frozenset())
    tokenizer._cuts = Cuts(core, part_chars)
    return tokenizer


@pytest.mark.parametrize("name", KINDS)
def test_ids_are_those_of_a_fresh_encoding_after_any_edit(name: str) -> None:
    tokenizer, memo = tokenizer_of(name), IdMemo()

    @settings(max_examples=150, deadline=None, derandomize=True)
    @given(texts, texts, st.integers(0, 1000), st.integers(0, 1000))
    def holds(text: str, other: str, begin: int, end: int) -> None:
        edited = text[: begin % (len(text) + 1)] + other + text[end % (len(text) + 1) :]
        for each in (text, edited, text + other):
            assert tokenizer.begin((each,), memo, ALICE).ids().tolist() == tokenizer.encode_pieces((each,))

    holds()


@pytest.mark.parametrize("name", ["llama-3", "llama-2", "metaspace first", "a control token with flags"])
def test_pieces_that_a_caller_spelt_are_encoded_as_without_a_memory(name: str) -> None:
    tokenizer, memo = tokenizer_of(name), IdMemo()

    @settings(max_examples=150, deadline=None, derandomize=True)
    @given(st.lists(texts, min_size=1, max_size=4))
    def holds(pieces: list[str]) -> None:
        assert tokenizer.begin(pieces, memo, ALICE).ids().tolist() == tokenizer.encode_pieces(pieces)

    holds()


@pytest.mark.parametrize("single", ["<|endoftext|> $A", "$A <|im_end|>", "<|endoftext|> $A <|im_end|>"])
@pytest.mark.parametrize("text", ["", "a", LONG, "<|endoftext|>" * 2])
def test_a_raw_prompt_has_what_the_post_processor_adds(single: str, text: str) -> None:
    core = byte_level_tokenizer()
    tokens = [("<|endoftext|>", 0), ("<|im_end|>", 2)]
    core.post_processor = processors.TemplateProcessing(single=single, special_tokens=tokens)
    tokenizer = Tokenizer(core, named_tokens={}, stop_ids=frozenset())

    found = tokenizer.begin((text,), IdMemo(), ALICE, add_special=True).ids().tolist()

    assert found == tokenizer.encode(text) == core.encode(text).ids


def test_a_text_that_grew_costs_what_it_grew_by() -> None:
    tokenizer, memo = tokenizer_of("llama-3", 64), IdMemo()
    first = tokenizer.begin((LONG,), memo, ALICE)
    first.ids()
    again = tokenizer.begin((LONG,), memo, ALICE)
    grown = tokenizer.begin((LONG + " And so on.",), memo, ALICE)

    assert first.missing_bytes == len(LONG.encode())
    assert again.missing_bytes == 0
    assert 0 < grown.missing_bytes < 400


def test_nobody_finds_what_another_one_asked() -> None:
    tokenizer, memo = tokenizer_of("llama-3", 64), IdMemo()
    tokenizer.begin((LONG,), memo, ALICE).ids()

    assert tokenizer.begin((LONG,), memo, ALICE).missing_bytes == 0
    assert tokenizer.begin((LONG,), memo, BOB).missing_bytes == len(LONG.encode())
    assert tokenizer.begin((LONG,), memo, b"").missing_bytes == len(LONG.encode())


def test_keys_differ_by_text_by_owner_and_by_use() -> None:
    long = [b"x" * 64, b"x" * 65, b"x" * 200]
    keys = {key_of(data, salt, sort) for data in (b"", b"a") for salt in (b"", ALICE, *long) for sort in (b"a", b"b")}

    assert len(keys) == 2 * 5 * 2


def test_the_memory_is_bounded_in_bytes_and_forgets_what_was_used_longest_ago() -> None:
    size = ENTRY_BYTES + 4 * 100
    memo = IdMemo(max_bytes=4 * size)
    ids = [array("I", [place] * 100) for place in range(6)]
    for place in range(4):
        memo.keep(b"%d" % place, ids[place])
    memo.find([b"0"])
    memo.keep(b"4", ids[4])

    assert memo.find([b"0", b"1", b"2", b"3", b"4"]) == [ids[0], None, ids[2], ids[3], ids[4]]
    assert memo.size_bytes == 4 * size
    memo.keep(b"4", ids[5])
    assert (len(memo), memo.size_bytes, memo.find([b"4"])) == (4, 4 * size, [ids[5]])


def test_one_text_cannot_push_everything_else_out() -> None:
    memo = IdMemo(max_bytes=1000)
    memo.keep(b"small", array("I"))
    memo.keep(b"large", array("I", range(1000)))

    assert memo.find([b"small", b"large"]) == [array("I"), None]
