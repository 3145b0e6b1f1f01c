"""Keeps users' texts from speaking with a template's voice.

A chat is rendered to text and the text is tokenised, and there `<|im_end|>` in a message would become the very token
that ends a turn. So before rendering, a mark (a private-use character that the texts do not hold) is put inside every
control token that a caller wrote, behind its first character; the rendered text is cut at the marks, and the pieces
are encoded apart. No piece holds the whole spelling, whatever the template does with it (trims, splits, turns into
JSON). Texts without a control token are not touched, and their ids are those of `transformers`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TypeAlias

from engine.errors import TemplateError

Json: TypeAlias = "str | int | float | bool | Sequence[Json] | Mapping[str, Json] | None"

_MARKS = range(0xF0000, 0xFFFFE)  # plane 15 is private: no text assigns it a meaning of its own


class Shield:
    """Finds and breaks the control tokens of one tokenizer. A token of a single character cannot be broken and is left
    out.
    """

    def __init__(self, control_tokens: Iterable[str]) -> None:
        spellings = sorted({token for token in control_tokens if len(token) > 1}, key=len, reverse=True)
        any_of = "|".join(map(re.escape, spellings)) if spellings else "(?!)"
        self._one = re.compile(any_of)
        # A look-ahead finds overlapping ones too: with `<<a` and `<a>`, breaking one of them in `<<a>` leaves the
        # other.
        self._each = re.compile(f"(?=(?:{any_of}))")

    def cover(self, *values: Json) -> tuple[Json, str | None]:
        """The values (a single one as itself, several as a tuple) with a mark in every control token, and the mark.

        The mark is None, and the values are the very ones, when there was nothing to do. Reads strings at any depth,
        the names in mappings too, and the texts of neighbouring content parts together. Raises `TemplateError` for a
        text that uses up all marks.
        """
        whole: Json = values[0] if len(values) == 1 else values
        strings = list(_strings(whole))
        if not any(map(self._one.search, strings)):
            return whole, None
        used = set().union(*strings)
        mark = next((chr(point) for point in _MARKS if chr(point) not in used), None)
        if mark is None:
            raise TemplateError("the texts use every private character of plane 15")
        return _Marker(self._each, mark).value(whole), mark


class _Marker:
    """Puts one mark into values, rebuilding them."""

    def __init__(self, pattern: re.Pattern[str], mark: str) -> None:
        self._pattern = pattern
        self._mark = mark

    def value(self, value: Json) -> Json:
        match value:
            case str():
                return self.texts([value])[0]
            case Mapping():
                return {self.texts([name])[0]: self.value(held) for name, held in value.items()}
            case list() | tuple() if _is_parts(value):
                texts = iter(self.texts([text for part in value if (text := _part_text(part)) is not None]))
                return [self._part(part, texts) for part in value]
            case list() | tuple():
                return [self.value(held) for held in value]
            case _:
                return value

    def _part(self, part: Json, texts: Iterator[str]) -> Json:
        if _part_text(part) is None or not isinstance(part, Mapping):
            return self.value(part)
        return {name: next(texts) if name == "text" else self.value(held) for name, held in part.items()}

    def texts(self, texts: Sequence[str]) -> list[str]:
        """Mark texts that may be printed one behind the other without a gap."""
        joined = "".join(texts)
        cuts = [match.start() + 1 for match in self._pattern.finditer(joined)]
        marked = []
        begin = 0
        for text in texts:
            end = begin + len(text)
            inside = [cut - begin for cut in cuts if begin <= cut < end]
            places = [0, *inside, len(text)]
            marked.append(self._mark.join(text[a:b] for a, b in pairwise(places)))
            begin = end
        return marked


def _strings(value: Json) -> Iterable[str]:
    match value:
        case str():
            yield value
        case Mapping():
            yield from value
            for held in value.values():
                yield from _strings(held)
        case list() | tuple():
            if _is_parts(value):
                yield "".join(text for part in value if (text := _part_text(part)) is not None)
            for held in value:
                yield from _strings(held)


def _is_parts(value: Sequence[Json]) -> bool:
    return any(_part_text(part) is not None for part in value)


def _part_text(part: Json) -> str | None:
    if isinstance(part, Mapping) and part.get("type") == "text":
        text = part.get("text")
        return text if isinstance(text, str) else None
    return None
