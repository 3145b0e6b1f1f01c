"""A model directory's tokenizer: text into ids and back.

Special tokens. A *raw prompt* belongs to its caller as a whole, control tokens included (they who render their own
template must be able to write them), so `encode` parses them unless told otherwise. A *chat* is different: the
template is the operator's and may write control tokens, the contents are the users' and may not.
`engine/text/shield.py` sees to that.

The library holds the interpreter while it encodes (about 1.2 ms for a thousand tokens). `encode` is the one place
where it is called, so that a core which lets go can take its place.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tokenizers import Tokenizer as Core

from engine.errors import ModelError
from engine.text.shield import Shield
from engine.text.stops import StopStrings
from engine.text.stream import TextStream
from engine.text.vocabulary import Vocabulary

_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Tokenizer:
    """Encodes, counts and decodes for one model. Immutable; safe to use from several threads.

    `stop_ids` end an answer. `named_tokens` (`bos_token`, `eos_token`, …) are what chat templates may refer to.
    `vocab_size` is one more than the largest id; the model's own vocabulary may be padded beyond it.
    """

    def __init__(self, core: Core, *, named_tokens: Mapping[str, str], stop_ids: frozenset[int]) -> None:
        self._core = core
        self.vocabulary = Vocabulary(core)
        self.named_tokens = dict(named_tokens)
        self.stop_ids = stop_ids
        self.vocab_size = 1 + max(core.get_vocab(with_added_tokens=True).values(), default=-1)
        self.shield = Shield(token.content for token in core.get_added_tokens_decoder().values() if _controls(token))
        self._newline = self._ids("\n")

    @classmethod
    def from_dir(cls, path: Path) -> "Tokenizer":
        """Read `tokenizer.json` and, where they are, `tokenizer_config.json`, `generation_config.json`, `config.json`.

        Raises `ModelError`, naming the file.
        """
        file = path / "tokenizer.json"
        if not file.is_file():
            raise ModelError(f"{file} is missing: only tokenizers in the format of the tokenizers library are read")
        with _Reading(file):
            core = Core.from_str(file.read_text(encoding="utf-8"))
        core.no_padding()
        core.no_truncation()
        named = _named_tokens(read_json(path / "special_tokens_map.json"), read_json(path / "tokenizer_config.json"))
        declared = _token_ids(read_json(path / "generation_config.json").get("eos_token_id"))
        declared = declared or _token_ids(read_json(path / "config.json").get("eos_token_id"))
        spoken_end = core.token_to_id(named["eos_token"]) if "eos_token" in named else None
        stop_ids = declared if spoken_end is None else declared | {spoken_end}
        return cls(core, named_tokens=named, stop_ids=stop_ids)

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """The ids of a raw prompt. `add_special` puts in front what the tokenizer's post-processor adds (mostly a BOS);
        without `parse_special` the spelling of a control token becomes ordinary tokens.
        """
        if parse_special:
            return self._ids(text, add_special)
        shielded, mark = self.shield.cover(text)
        head, *rest = str(shielded).split(mark) if mark else [text]
        return self._ids(head, add_special) + self.encode_pieces(["", *rest])

    def encode_pieces(self, pieces: Sequence[str]) -> list[int]:
        """The ids of a rendered chat, whose pieces are encoded apart so that no control token spans a seam."""
        first, *rest = pieces
        ids = self._ids(first)
        for piece in rest:
            ids += self._continue(piece)
        return ids

    def count(self, text: str) -> int:
        """How many tokens a raw prompt has."""
        return len(self._ids(text, True))

    def decode(self, token_ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of a whole sequence from its beginning. Bytes that are not UTF-8 become U+FFFD."""
        return self.vocabulary.decode(token_ids, skip_special=skip_special)

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes of one token, special ones spelled out; none for an id without a token."""
        return self.vocabulary.exact[token_id]

    def token_text(self, token_id: int) -> str:
        """One token as the vocabulary spells it, for people to look at; empty for an id without a token."""
        return self._core.id_to_token(token_id) or ""

    def stream(
        self, prompt_ids: Sequence[int], stops: StopStrings | None = None, *, include_stop: bool = False
    ) -> TextStream:
        """The detokeniser of one answer to this prompt."""
        return TextStream(self.vocabulary, prompt_ids, stops, include_stop=include_stop)

    def _ids(self, text: str, add_special: bool = False) -> list[int]:
        ids: list[int] = self._core.encode(text, add_special_tokens=add_special).ids
        return ids

    def _continue(self, piece: str) -> list[int]:
        """Encode what follows other text: behind a newline, as SentencePiece puts a space at a text's beginning."""
        if not piece:
            return []
        ids = self._ids("\n" + piece)
        length = len(self._newline)
        return ids[length:] if ids[:length] == self._newline else self._ids(piece)


class _Reading:
    """Translates what the library raises for any defect of a file: the bare `Exception`, which nothing else here is."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is Exception or isinstance(error, (OSError, UnicodeDecodeError)):
            raise ModelError(f"{self._file} cannot be read: {error}") from error


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a model directory; an empty one where the file is not. Raises `ModelError`."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{file}: expected a JSON object, got {type(value).__name__}")
    return value


def _named_tokens(*configs: Mapping[str, Any]) -> dict[str, str]:
    """Each named token's text, from configs of growing authority; they hold strings or objects with `content`."""
    named: dict[str, str] = {}
    for config in configs:
        for name in _NAMED_TOKENS:
            match config.get(name):
                case str(text) | {"content": str(text)}:
                    named[name] = text
    return named


def _token_ids(value: Any) -> frozenset[int]:
    match value:
        case None:
            return frozenset()
        case int():
            return frozenset([value])
        case list() if all(isinstance(item, int) for item in value):
            return frozenset(value)
    raise ModelError(f"eos_token_id: expected an integer or a list of integers, got {value!r}")


def _controls(token: Any) -> bool:
    """Whether an added token steers the model, so that only a template may write it.

    The special ones do, and those that look like them: several models declare role markers as ordinary added tokens.
    Markup such as `<think>` or `<tool_call>` is neither, and belongs into the contents of a history.
    """
    text: str = token.content
    looks_like_one = text.startswith(("<|", "<｜")) and text.endswith(("|>", "｜>"))
    return looks_like_one or bool(token.special)
