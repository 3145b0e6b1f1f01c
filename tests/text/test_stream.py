"""Streams of text are exact at every cut, for both families of tokenizers."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from engine.text.stops import StopStrings
from engine.text.stream import Piece, TextStream
from engine.text.vocabulary import Vocabulary
from tests.text.conftest import sentencepiece_tokenizer
from tests.tiny_model import TEXT, byte_level_tokenizer

TEXTS = [
    "plain words, and a number: 42",
    "👩‍🚀 and 🏳️‍🌈 and 🦊🦊🦊",
    "我能吞下玻璃而不伤身体。日本語",
    "naïve café – Zwölf Boxkämpfer",
    " two leading spaces",
    "tab\tnewline\n\n\nend ",
    "e\u0301 combining, \u202eright to left\u202c, nul \x00, private \U0010fffd",
]
BYTE_LEVEL = byte_level_tokenizer()
SENTENCEPIECE = sentencepiece_tokenizer()
FAMILIES = [(core, Vocabulary(core)) for core in (BYTE_LEVEL, SENTENCEPIECE)]


def ids_of(core: Tokenizer, text: str) -> list[int]:
    return list(core.encode(text, add_special_tokens=False).ids)


def pieces(stream: TextStream, token_ids: list[int], cuts: list[int]) -> list[Piece]:
    """Push the ids cut at the given places, until a stop string or the end."""
    found = []
    for begin, end in pairwise([0, *cuts, len(token_ids)]):
        found.append(stream.push(token_ids[begin:end]))
        if found[-1].stop is not None:
            return found
    return [*found, stream.finish()]


def one_by_one(stream: TextStream, token_ids: list[int]) -> list[Piece]:
    return pieces(stream, token_ids, list(range(1, len(token_ids))))


def joined(found: list[Piece]) -> str:
    return "".join(piece.text for piece in found)


@pytest.mark.parametrize("text", TEXTS)
def test_the_pieces_together_are_the_text_at_every_cut(core: Tokenizer, vocabulary: Vocabulary, text: str) -> None:
    token_ids = ids_of(core, text)
    for cut in range(len(token_ids) + 1):
        assert joined(pieces(TextStream(vocabulary), token_ids, [cut])) == text
    found = one_by_one(TextStream(vocabulary), token_ids)
    assert joined(found) == text

    assert "\ufffd" not in joined(found)
    assert sum(piece.num_tokens for piece in found) == len(token_ids)


@pytest.mark.parametrize("text", TEXTS)
def test_the_text_is_what_the_library_decodes(core: Tokenizer, vocabulary: Vocabulary, text: str) -> None:
    token_ids = ids_of(core, text)

    assert vocabulary.decode(token_ids) == core.decode(token_ids)


def test_every_single_token_decodes_as_the_library_decodes_it(core: Tokenizer, vocabulary: Vocabulary) -> None:
    begin = ids_of(core, "a")[0]
    for token_id in range(core.get_vocab_size()):
        assert vocabulary.decode([begin, token_id]) == core.decode([begin, token_id])
        assert vocabulary.decode([token_id], skip_special=False) == core.decode([token_id], skip_special_tokens=False)


@given(st.data())
def test_any_token_sequence_streams_to_the_same_text_however_it_is_cut(data: st.DataObject) -> None:
    core, vocabulary = data.draw(st.sampled_from(FAMILIES))
    token_ids = data.draw(st.lists(st.integers(0, core.get_vocab_size() - 1), max_size=30))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(token_ids)), max_size=5)))

    whole = vocabulary.decode(token_ids)
    assert joined(pieces(TextStream(vocabulary), token_ids, cuts)) == whole
    found = one_by_one(TextStream(vocabulary), token_ids)
    assert joined(found) == whole
    assert sum(piece.num_tokens for piece in found) == len(token_ids)


@given(st.lists(st.integers(0, BYTE_LEVEL.get_vocab_size() - 1), max_size=30))
def test_broken_bytes_become_replacement_characters_as_the_library_places_them(token_ids: list[int]) -> None:
    assert Vocabulary(BYTE_LEVEL).decode(token_ids) == BYTE_LEVEL.decode(token_ids)


@given(st.text(max_size=40))
def test_any_text_comes_back(text: str) -> None:
    for core, vocabulary in FAMILIES:
        if core is SENTENCEPIECE and "▁" in text:  # this family cannot tell it from a space
            continue
        assert joined(one_by_one(TextStream(vocabulary), ids_of(core, text))) == text


def test_a_token_is_out_with_its_last_byte_and_not_before() -> None:
    vocabulary = Vocabulary(BYTE_LEVEL)
    token_ids = [BYTE_LEVEL.token_to_id(character) for character in "aðŁ¦Ĭb"]  # a, the four bytes of a fox, b
    stream = TextStream(vocabulary)

    found = [(piece.text, piece.num_tokens) for piece in one_by_one(stream, token_ids)]
    assert found == [("a", 1), ("", 0), ("", 0), ("", 0), ("🦊", 4), ("b", 1), ("", 0)]


def test_an_unfinished_character_at_the_end_is_replaced_and_its_tokens_come_out() -> None:
    vocabulary = Vocabulary(BYTE_LEVEL)
    stream = TextStream(vocabulary)
    held = stream.push([BYTE_LEVEL.token_to_id(character) for character in "ðŁ¦"])

    assert held == Piece("", 0, None, 3)
    assert stream.finish() == Piece("\ufffd", 3)


def test_special_tokens_are_silent_and_counted() -> None:
    vocabulary = Vocabulary(BYTE_LEVEL)
    end = BYTE_LEVEL.token_to_id("<|im_end|>")
    letter = ids_of(BYTE_LEVEL, "a")[0]

    assert TextStream(vocabulary).push([end, letter, end]) == Piece("a", 3, None, 3)
    spoken = TextStream(vocabulary, skip_special=False).push([letter, end])
    assert spoken == Piece("a<|im_end|>", 2, None, 2)


def test_ids_beyond_the_tokenizer_say_nothing() -> None:
    assert TextStream(Vocabulary(BYTE_LEVEL)).push([100_000]) == Piece("", 1, None, 1)


def test_a_leading_space_is_the_tokenizers_only_where_the_text_begins() -> None:
    vocabulary = Vocabulary(SENTENCEPIECE)
    token_ids = ids_of(SENTENCEPIECE, "dog")
    start = SENTENCEPIECE.token_to_id("<s>")

    assert joined(one_by_one(TextStream(vocabulary), token_ids)) == "dog"
    assert joined(one_by_one(TextStream(vocabulary, [start]), token_ids)) == "dog"
    assert joined(one_by_one(TextStream(vocabulary, ids_of(SENTENCEPIECE, "lazy")), token_ids)) == " dog"


def test_an_answer_finishes_a_character_that_the_prompt_began() -> None:
    vocabulary = Vocabulary(BYTE_LEVEL)
    prompt = [BYTE_LEVEL.token_to_id(character) for character in "aðŁ"]
    answer = [BYTE_LEVEL.token_to_id(character) for character in "¦Ĭ"]

    assert joined(one_by_one(TextStream(vocabulary, prompt), answer)) == "🦊"


@pytest.mark.parametrize("text", TEXTS)
def test_stop_strings_of_one_to_four_tokens_never_leak(core: Tokenizer, vocabulary: Vocabulary, text: str) -> None:
    token_ids = ids_of(core, text)
    for begin in range(len(token_ids)):
        for length in range(1, 5):
            stop = vocabulary.decode([token_ids[0], *token_ids[begin : begin + length]])
            stop = stop.removeprefix(vocabulary.decode(token_ids[:1]))
            if not stop or "\ufffd" in stop or stop not in text:
                continue
            found = one_by_one(TextStream(vocabulary, stops=StopStrings([stop])), token_ids)
            assert joined(found) == text[: text.index(stop)]
            assert found[-1].stop == stop


@given(st.data())
def test_what_is_emitted_is_the_text_before_the_stop_string_that_ends_first(data: st.DataObject) -> None:
    core, vocabulary = data.draw(st.sampled_from(FAMILIES))
    text = data.draw(st.text(alphabet="ab 🦊", max_size=25))
    stops = data.draw(st.lists(st.text(alphabet="ab 🦊", min_size=1, max_size=4), min_size=1, max_size=3))
    include = data.draw(st.booleans())
    token_ids = ids_of(core, text)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(token_ids)), max_size=5)))

    ends = [(end, -len(stop), stop) for stop in stops for end in range(len(text) + 1) if text[:end].endswith(stop)]
    expected, hit = text, None
    if ends:
        end, _, hit = min(ends)
        expected = text[:end] if include else text[: end - len(hit)]
    for places in (cuts, list(range(1, len(token_ids)))):
        stream = TextStream(vocabulary, stops=StopStrings(stops), include_stop=include)
        found = pieces(stream, token_ids, places)
        assert (joined(found), found[-1].stop) == (expected, hit)
        out = sum(piece.num_tokens for piece in found)
        assert len(vocabulary.decode(token_ids[:out])) <= len(expected)
        read = sum(piece.num_read for piece in found)
        assert hit is None or not any(stop in vocabulary.decode(token_ids[: read - 1]) for stop in stops)


def test_only_what_may_become_a_stop_string_is_withheld() -> None:
    vocabulary = Vocabulary(BYTE_LEVEL)
    stream = TextStream(vocabulary, stops=StopStrings(["END!", "NOT"]))
    letters = [BYTE_LEVEL.token_to_id(letter) for letter in "xENEND?"]

    texts = [stream.push([letter]).text for letter in letters]
    assert texts == ["x", "", "", "EN", "", "", "END?"]


def test_a_stop_string_inside_a_token_cuts_the_token_and_does_not_release_it() -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.add_tokens(["wordSTOPword"])
    vocabulary = Vocabulary(tokenizer)
    token = tokenizer.token_to_id("wordSTOPword")

    assert TextStream(vocabulary, stops=StopStrings(["STOP"])).push([token]) == Piece("word", 0, "STOP", 1)
    including = TextStream(vocabulary, stops=StopStrings(["STOP"]), include_stop=True)
    assert including.push([token]) == Piece("wordSTOP", 0, "STOP", 1)


def test_tokens_behind_the_one_that_completed_a_stop_string_are_not_read() -> None:
    vocabulary = Vocabulary(BYTE_LEVEL)
    letters = [BYTE_LEVEL.token_to_id(letter) for letter in "abcd"]

    assert TextStream(vocabulary, stops=StopStrings(["b"])).push(letters) == Piece("a", 1, "b", 2)


def test_a_stop_string_does_not_end_the_text_until_it_may() -> None:
    vocabulary = Vocabulary(BYTE_LEVEL)
    letters = [BYTE_LEVEL.token_to_id(letter) for letter in "abab"]
    stream = TextStream(vocabulary, stops=StopStrings(["ab"]))

    assert stream.push(letters[:2], scan=False) == Piece("ab", 2, None, 2)
    assert stream.push(letters[2:]) == Piece("", 0, "ab", 2)


def test_a_stop_string_that_begins_too_early_but_ends_in_time_is_cut_whole() -> None:
    vocabulary = Vocabulary(BYTE_LEVEL)
    letters = [BYTE_LEVEL.token_to_id(letter) for letter in "xab"]
    stream = TextStream(vocabulary, stops=StopStrings(["ab"]))

    assert stream.push(letters[:2], scan=False) == Piece("x", 1, None, 2)
    assert stream.push(letters[2:]) == Piece("", 0, "ab", 1)


def test_a_long_answer_costs_the_same_per_token() -> None:
    """Nothing that grows with the answer is kept: what is held stays a few characters."""
    vocabulary = Vocabulary(BYTE_LEVEL)
    stream = TextStream(vocabulary, stops=StopStrings(["never seen"]))
    token_ids = ids_of(BYTE_LEVEL, TEXT)
    out = 0
    for _ in range(50):
        for token_id in token_ids:
            out += stream.push([token_id]).num_tokens

    assert out + stream.finish().num_tokens == 50 * len(token_ids)
    assert len(stream._ends) == 0
    assert stream._held == ""
