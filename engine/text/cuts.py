"""Where a text may be cut so that its parts, encoded apart, give the ids of the whole: never by guess.

A tokenizer looks at a text in four steps: added tokens are found, what lies between them is normalised, split into
words, and each word is merged on its own. A cut is safe where each of these steps ends something anyway, whatever
stands on either side:

    <|im_start|>user⏎ … a long text … ¦ that goes on<|im_end|>⏎ ¦ <|im_start|>assistant⏎
                                      plain cut                 control cut

- *Before an added token* the library itself splits, for every kind of tokenizer. Not if such a token takes in the
  white space beside it or minds its neighbours (`lstrip`, `rstrip`, `single_word`), nor if two of them could overlap.
- *Inside plain text* it depends on the kind. With byte-level BPE, between a letter or digit and a space, a line's end
  or certain punctuation: in none of the patterns below can a match hold such a pair, and none of them looks back, so
  that one match ends there and the next begins as if the text did. The last match on the left is of letters or digits
  and looks at nothing behind it. NFC neither joins nor moves anything across, as the character on the right begins
  anew. With SentencePiece's BPE the text is one word or is split before each space; there, between a letter that no
  token of the vocabulary has in front of a space, and that space: no merge can span what no token spans.

Every kind that is not provably one of these gets no plain cuts, and what nothing is known of gets no cuts at all.
"""

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any

from tokenizers import Tokenizer as Core

# A part is at least so long, so that looking it up costs less than encoding it, and little is encoded again at the end
# of a text that grew.
PART_CHARS = 2048
_WINDOW_CHARS = 1 << 16  # searched at a time, so that other threads come in between

_LETTERS = "0-9A-Za-zÀ-ÖØ-öø-ÿΑ-ΡΣ-Ωα-ωА-яא-תぁ-ゖァ-ヺ一-龥가-힣"
_BREAKS = ' \n",.:;(){}=。，、！？；：'
_PLAIN = f"(?<=[{_LETTERS}])(?=[{_BREAKS}])"
_ASCII_WORD = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

# How byte-level tokenizers split: in none of these can a match hold a letter or digit and, right behind it, a break.
_CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD, _SPACES = r"[^\r\n\p{L}\p{N}]?", r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CL100K = rf"(?i:{_CONTRACTIONS})|{_LEAD}\p{{L}}+|%s| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_O200K = rf"{_LEAD}{_UPPER}*{_LOWER}+%s|{_LEAD}{_UPPER}+{_LOWER}*%s|%s| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
_ENDING = f"(?i:{_CONTRACTIONS})?"
_DEEPSEEK = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    rf"""| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"""
)
WORDS = frozenset(
    (
        rf"{_CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+",  # GPT-2
        _CL100K % r"\p{N}{1,3}",  # Llama 3, GPT-4, GLM
        _CL100K % r"\p{N}",  # Qwen
        _O200K % (_ENDING, _ENDING, r"\p{N}{1,3}"),  # GPT-4o, gpt-oss, Llama 4
        _O200K % ("", "", r"\p{N}"),  # Mistral's Tekken
        _DEEPSEEK,
        r"\p{N}|\p{L}+|\n|[^\p{L}\p{N}\n]+",  # the demo model's
    )
)
_BEFORE_WORDS = frozenset((r"\p{N}", r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+"))


class Cuts:
    """Cuts texts for one tokenizer, into parts of at least `part_chars`."""

    def __init__(self, core: Core, part_chars: int = PART_CHARS) -> None:
        added = list(core.get_added_tokens_decoder().values())
        spellings = [token.content for token in added if not token.normalized]
        self._part_chars = part_chars
        self._drops_space = False
        places: list[str] = []
        if not any(token.lstrip or token.rstrip or token.single_word for token in added):
            if spellings and not _overlap(spellings):
                places.append(f"(?={'|'.join(map(re.escape, spellings))})")
            plain, self._drops_space = _plain(core)
            if plain and not _inside(plain, (token.content for token in added)):
                places.append(plain)
        self._place = re.compile("|".join(places)) if places else None

    def parts(self, text: str) -> list[str]:
        """Give the texts to encode one by one; their ids in a row are the text's. One, where nothing can be cut.

        A text that another one begins with has the other's parts, but for its last ones.
        """
        if self._place is None or len(text) <= self._part_chars:
            return [text]
        parts = []
        begin = 0
        for cut in self._cuts(text, self._place):
            parts.append(self._part(text, begin, cut))
            begin = cut
        parts.append(self._part(text, begin, len(text)))
        return parts

    def _part(self, text: str, begin: int, end: int) -> str:
        # Such a tokenizer puts a space in front of whatever it is given: the one that stands there.
        return text[begin + (self._drops_space and begin > 0 and text[begin] == " ") : end]

    def _cuts(self, text: str, place: re.Pattern[str]) -> Iterator[int]:
        length = len(text)
        at = self._part_chars
        while at < length:
            found = place.search(text, at, at + _WINDOW_CHARS)
            if found is None:
                at += _WINDOW_CHARS
            elif found.start() < length:
                yield found.start()
                at = found.start() + self._part_chars
            else:
                return


def _plain(core: Core) -> tuple[str | None, bool]:
    """Give the pattern of plain cuts, None where there are none, and whether the space at a cut is put there anew."""
    model = core.model
    if type(model).__name__ != "BPE" or model.dropout is not None:
        return None, False
    if model.continuing_subword_prefix or model.end_of_word_suffix:
        return None, False
    try:
        normalizers, splits = _steps(core.normalizer, "normalizers"), _steps(core.pre_tokenizer, "pretokenizers")
    except ValueError:  # written in Python: what it does cannot be read
        return None, False
    if splits and splits[-1]["type"] == "ByteLevel":
        known = all(step == {"type": "NFC"} for step in normalizers) and _splits_words(splits)
        return (_PLAIN if known else None), False
    return _before_spaces(core, normalizers, splits)


def _splits_words(splits: list[dict[str, Any]]) -> bool:
    """Whether byte-level steps are known, and one of them splits into words."""
    *first, last = splits
    if last.get("add_prefix_space"):
        return False
    splits_words = last.get("use_regex", True)
    for step in first:
        if step["type"] == "Digits":
            continue
        pattern = _pattern(step)
        if pattern in WORDS:
            splits_words = True
        elif pattern not in _BEFORE_WORDS:
            return False
    return bool(splits_words)


def _pattern(step: dict[str, Any]) -> str | None:
    """Give the pattern whose matches a step splits off, nothing lost; None where it does something else."""
    match step:
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False}:
            return pattern
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Removed", "invert": True}:
            return pattern if pattern in WORDS else None  # they leave out nothing
    return None


def _before_spaces(
    core: Core, normalizers: list[dict[str, Any]], splits: list[dict[str, Any]]
) -> tuple[str | None, bool]:
    """SentencePiece's BPE: spaces are written as U+2581 and belong to the word behind them."""
    model = core.model
    prepends = False
    match normalizers, splits:
        case [], [{"type": "Metaspace", "replacement": "▁"}]:
            pass
        case [{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}], []:
            pass
        case [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}], []:
            prepends = True
        case _:
            return None, False
    if model.ignore_merges or any(token.normalized for token in core.get_added_tokens_decoder().values()):
        return None, False
    vocab = core.get_vocab(with_added_tokens=False)
    letters = {letter for letter in _ASCII_WORD if letter in vocab} if "▁" in vocab else set()
    for token in vocab:
        place = token.find("▁", 1)
        while place > 0:
            letters.discard(token[place - 1])
            place = token.find("▁", place + 1)
    return (f"(?<=[{''.join(sorted(letters))}])(?= )" if letters else None), prepends


def _steps(part: Any, inner: str) -> list[dict[str, Any]]:
    """Give a normaliser's or pre-tokenizer's steps, sequences unfolded. Raises `ValueError`."""
    if part is None:
        return []
    try:
        state = json.loads(part.__getstate__())
    except Exception as error:  # the library's own bare one
        raise ValueError(str(error)) from error
    return list(_unfolded(state, inner))


def _unfolded(state: dict[str, Any], inner: str) -> Iterator[dict[str, Any]]:
    if state["type"] == "Sequence":
        for step in state[inner]:
            yield from _unfolded(step, inner)
    else:
        yield state


def _overlap(spellings: Iterable[str]) -> bool:
    """Whether one token could begin inside another."""
    held = set(spellings)
    beginnings = {token[:length] for token in held for length in range(1, len(token) + 1)}
    for token in held:
        for place in range(1, len(token)):
            rest = token[place:]
            if rest in beginnings or any(rest[:length] in held for length in range(1, len(rest))):
                return True
    return False


def _inside(plain: str, spellings: Iterable[str]) -> bool:
    """Whether a plain cut could go through an added token."""
    place = re.compile(plain)
    return any(place.search(form) for token in spellings for form in (token, unicodedata.normalize("NFC", token)))
