"""A model directory's tokenizer: text into ids and back.

Special tokens. A *raw prompt* belongs to its caller as a whole, control tokens included (they who render their own
template must be able to write them), so `encode` parses them unless told otherwise. A *chat* is different: the
template is the operator's and may write control tokens, the contents are the users' and may not.
`engine/text/shield.py` sees to that.

The library's `encode` holds the interpreter while it works; `encode_batch_fast` lets go of it, is the same code without
offsets, and costs a quarter less (0.6 µs a token against 0.8). It is the one that is called here, so that a long text
can be encoded on a thread while everything else goes on. `begin` splits the work accordingly: what is cheap, and the
rest, which `Encoding.ids` does on whatever thread it is called.
"""

import json
from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tokenizers import Tokenizer as Core

from engine.errors import ModelError
from engine.text.cuts import Cuts
from engine.text.memo import TYPE, IdMemo, key_of
from engine.text.shield import Shield
from engine.text.stops import StopStrings
from engine.text.stream import TextStream
from engine.text.vocabulary import Vocabulary

_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Tokenizer:
    """Encodes, counts and decodes for one model. Immutable; safe to use from several threads.

    `edges` are the ids that the post-processor puts in front of a raw prompt's and behind it, whatever the text.
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
        self._cuts = Cuts(core)
        self._newline = self._ids("\n")
        self.edges = self._edges()

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

    def begin(self, pieces: Sequence[str], memo: IdMemo, salt: bytes, *, add_special: bool = False) -> "Encoding":
        """Begin to encode a chat's pieces (or one raw prompt, with `add_special`), as far as `memo` knows their parts
        under `salt`. The ids are those of `encode_pieces` and `encode`.
        """
        return Encoding(self, pieces, memo, salt, add_special)

    def parts(self, text: str) -> list[str]:
        """What to encode one by one instead of a long text, to the same ids."""
        return self._cuts.parts(text)

    def encode_parts(self, parts: Sequence[str]) -> "list[array[int]]":
        """The ids of each text by itself, without what the post-processor adds. Lets go of the interpreter."""
        return [array(TYPE, done.ids) for done in self._core.encode_batch_fast(parts, add_special_tokens=False)]

    def seam(self, ids: "array[int]") -> "array[int] | None":
        """What follows the newline that `_continue` speaks of; None where the newline did not stay a token."""
        length = len(self._newline)
        return ids[length:] if ids[:length].tolist() == self._newline else None

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

    def _edges(self) -> "tuple[array[int], array[int]]":
        bare = next((ids for probe in "a0.\n" if (ids := self._ids(probe))), [])
        whole = next((ids for probe in "a0.\n" if (ids := self._ids(probe, True)) and self._ids(probe) == bare), [])
        surplus = len(whole) - len(bare)
        front = next((at for at in range(surplus + 1) if whole[at : at + len(bare)] == bare), 0)
        return array(TYPE, whole[:front]), array(TYPE, whole[front + len(bare) :])

    def _ids(self, text: str, add_special: bool = False) -> list[int]:
        (done,) = self._core.encode_batch_fast([text], add_special_tokens=add_special)
        ids: list[int] = done.ids
        return ids

    def _continue(self, piece: str) -> list[int]:
        """Encode what follows other text: behind a newline, as SentencePiece puts a space at a text's beginning."""
        if not piece:
            return []
        ids = self._ids("\n" + piece)
        length = len(self._newline)
        return ids[length:] if ids[:length] == self._newline else self._ids(piece)


class Encoding:
    """One prompt on its way to its ids.

    `missing_bytes` is what is still to be encoded: about 0.15 µs each. `ids` does that, remembers it, and may be called
    on any thread.
    """

    __slots__ = ("_edges", "_found", "_keys", "_memo", "_parts", "_rows", "_tokenizer", "missing_bytes")

    def __init__(self, tokenizer: Tokenizer, pieces: Sequence[str], memo: IdMemo, salt: bytes, special: bool) -> None:
        first, *rest = pieces
        self._tokenizer = tokenizer
        self._memo = memo
        self._edges = tokenizer.edges if special else None
        self._parts: list[str] = []
        self._rows: list[tuple[int, str]] = []  # where each piece's parts end, and the piece
        for text, piece in ((first, first), *(("\n" + piece, piece) for piece in rest if piece)):
            self._parts += tokenizer.parts(text)
            self._rows.append((len(self._parts), piece))
        data = [part.encode() for part in self._parts]
        self._keys = [key_of(each, salt, b"part") for each in data]
        self._found = memo.find(self._keys)
        self.missing_bytes = sum(len(each) for each, ids in zip(data, self._found, strict=True) if ids is None)

    def ids(self) -> "array[int]":
        """Encode what is missing, and give all ids."""
        found, parts = self._found, self._parts
        missing = [place for place, ids in enumerate(found) if ids is None]
        if missing:
            for place, ids in zip(missing, self._tokenizer.encode_parts([parts[at] for at in missing]), strict=True):
                found[place] = ids
                self._memo.keep(self._keys[place], ids)
        whole = array(TYPE)
        begin = 0
        for end, piece in self._rows:
            row = array(TYPE)
            for part in found[begin:end]:
                assert part is not None, "every part is encoded by now"
                row += part
            if not begin:
                whole = row
            elif (behind := self._tokenizer.seam(row)) is not None:
                whole += behind
            else:
                whole += self._tokenizer.encode_parts([piece])[0]
            begin = end
        if self._edges is not None:
            front, back = self._edges
            whole = front + whole + back
        return whole


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
