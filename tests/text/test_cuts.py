"""The parts of a text, encoded apart, have the ids of the whole: for every kind of tokenizer, wherever it is cut."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from engine.text.cuts import Cuts
from tests.text.kinds import KINDS, kind
from tests.tiny_model import TEXT

FRAGMENTS = (
    *(
        "<|im_start|>",
        "<|im_end|>",
        "<|endoftext|>",
        "<tool_call>",
        "<|",
        "|>",
        "<|im",
        "_start|><|",
        "<|assistant|>",
        "<|user|>",
    ),
    *(" ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", " \n ", "\u00a0", "\u3000", "\u200b", "\x00", "▁"),
    *("the", "The", "over the", "batch)", "a", "b", "I", "ſ", "É", "e\u0301", "é", "ß", "'s", "'LL", "'", "’s", "’"),
    *("1", "12", "123", "1234567", "٣", "½", "x_1", "=", "=\u0338", "(", ")", "{", '"', ",", ".", ":", ";", "!", "?"),
    *("我", "能吞下", "。", "，", "、", "日本語", "ここに", "カタ", "ー", "・", "\u3099", "한국", "\u1100\u1161\u11a8"),
    *("Быстрая", "й", "и\u0306", "שלום", "\u05b7", "हिन्दी", "\u0958", "\ufb2c", "🦊", "👩‍🚀", "\U0001d160", "ﬁ"),
)
BYTE_LEVEL = (
    "gpt-2",
    "llama-3",
    "qwen",
    "o200k",
    "tekken",
    "deepseek",
    "demo",
    "gpt-2 with a prefix",
    "nfkc",
    "unknown words",
)
texts = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=40).map("".join)


def ids(core: Tokenizer, text: str) -> list[int]:
    found: list[int] = core.encode(text, add_special_tokens=False).ids
    return found


@pytest.mark.parametrize("name", KINDS)
def test_parts_have_the_ids_of_the_whole(name: str) -> None:
    core = kind(name)
    every = {size: Cuts(core, size) for size in (1, 2, 5, 17)}

    @settings(max_examples=400, deadline=None, derandomize=True)
    @given(texts, st.sampled_from(sorted(every)))
    @example(TEXT, 1)
    @example("the end the end<|im_end|>\nthe end", 1)
    @example(" the end  the end", 1)
    def holds(text: str, size: int) -> None:
        parts = every[size].parts(text)

        assert [each for part in parts for each in ids(core, part)] == ids(core, text)

    holds()


@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_parts_have_the_words_of_the_whole(name: str) -> None:
    """Ids can agree by chance, where no merge was learnt over a wrong cut; words cannot."""
    core = kind(name)
    cuts = Cuts(core, 1)

    def words(text: str) -> list[str]:
        normal = text if core.normalizer is None else core.normalizer.normalize_str(text)
        return [word for word, _ in core.pre_tokenizer.pre_tokenize_str(normal)]

    @settings(max_examples=400, deadline=None, derandomize=True)
    @given(texts)
    def holds(text: str) -> None:
        text = text.replace("<", "").replace("|im", "")  # added tokens are none of the splitter's business
        parts = cuts.parts(text)

        assert [word for part in parts for word in words(part)] == words(text)

    holds()


@pytest.mark.parametrize("name", KINDS)
def test_only_what_is_proven_for_a_kind_is_cut(name: str) -> None:
    cuts = Cuts(kind(name), 8)
    plain = len(cuts.parts("word " * 100)) > 1
    control = len(cuts.parts("<|im_start|>" * 20)) > 1

    expected = {"plain": [(True, True)], "plain only": [(True, False)], "control": [(False, True)]}
    expected |= {"whole": [(False, False)], "any": [(True, True), (False, True)]}
    assert (plain, control) in expected[KINDS[name][0]]


@pytest.mark.parametrize("name", KINDS)
def test_a_text_that_grows_keeps_its_parts_but_the_last(name: str) -> None:
    cuts = Cuts(kind(name), 16)

    @settings(max_examples=100, deadline=None, derandomize=True)
    @given(texts, texts)
    def holds(text: str, more: str) -> None:
        before, after = cuts.parts(text), cuts.parts(text + more)

        assert before[:-1] == after[: len(before) - 1]

    holds()


def test_a_long_text_without_a_place_to_cut_is_searched_in_windows() -> None:
    cuts = Cuts(kind("llama-3"))

    assert cuts.parts("x" * 300_000) == ["x" * 300_000]
    assert [len(part) for part in cuts.parts("x" * 300_000 + " y")] == [300_000, 2]


def test_an_empty_text_has_one_part() -> None:
    assert Cuts(kind("llama-3")).parts("") == [""]
