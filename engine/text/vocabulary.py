"""What each token id says, in exact bytes.

Detokenising in bytes is what makes streams exact: a token is a byte string, a text is their concatenation, and the only
question left is where a UTF-8 character ends. Both families of tokenizers allow it. ByteLevel (GPT-2, Llama 3, Qwen)
spells each byte as one printable character; the inverse of that table is taken here. SentencePiece styles (Llama 2,
Mistral, Gemma) write spaces as U+2581 and unknown bytes as `<0xE4>`. The `decoder` of a `tokenizer.json` says which of
the two it is.

Against the library's own decode there is one difference, on broken text only: where a run of byte tokens is not UTF-8,
the library replaces every byte of the run, also the sound characters in it, which a stream could know only when the
run is over. Here each broken part becomes one U+FFFD, as ByteLevel has it (the maximal subpart of the Unicode
standard, section 3.9).
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import Tokenizer as Core

from engine.errors import ModelError

_BYTE_TOKEN_LENGTH = len("<0x00>")


def byte_characters() -> dict[str, int]:
    """The character with which ByteLevel spells each byte (GPT-2's table), inverted."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {chr(byte): byte for byte in printable}
    moved = (byte for byte in range(256) if byte not in set(printable))
    return table | {chr(256 + place): byte for place, byte in enumerate(moved)}


class _Spelling:
    """How a decoder turns one token's string into bytes."""

    def __init__(self, decoder: dict[str, Any] | None) -> None:
        self.byte_level: dict[str, int] | None = None
        self.byte_fallback = False
        self.strips_leading_space = False
        self._replacements: list[tuple[str, str]] = []
        if decoder is None:
            raise ModelError("tokenizer.json names no decoder: expected ByteLevel or a SentencePiece style one")
        for step in decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]:
            self._learn(step)

    def _learn(self, step: dict[str, Any]) -> None:
        match step:
            case {"type": "ByteLevel"}:
                self.byte_level = byte_characters()
            case {"type": "Metaspace", "replacement": str(space), "prepend_scheme": str(prepends)}:
                self._replacements.append((space, " "))
                self.strips_leading_space = prepends != "never"
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
                self._replacements.append((old, new))
            case {"type": "Strip", "content": " ", "start": 1, "stop": 0}:
                self.strips_leading_space = True
            case {"type": "ByteFallback"}:
                self.byte_fallback = True
            case {"type": "Fuse"}:
                pass
            case _:
                raise ModelError(f"the tokenizer's decoder has a step that is not known here: {json.dumps(step)}")

    def bytes_of(self, token: str) -> bytes:
        if self.byte_level is not None:
            spelled = [self.byte_level.get(character) for character in token]
            whole = [byte for byte in spelled if byte is not None]
            return bytes(whole) if len(whole) == len(spelled) else token.encode()
        if self.byte_fallback and len(token) == _BYTE_TOKEN_LENGTH and token.startswith("<0x") and token.endswith(">"):
            try:
                return bytes([int(token[3:5], 16)])
            except ValueError:
                pass
        for old, new in self._replacements:
            token = token.replace(old, new)
        return token.encode()


class TokenBytes(dict[int, bytes]):
    """The bytes of each token id, spelled out when first asked for; an id without a token says nothing."""

    def __init__(self, core: Core, spelling: _Spelling, silent: frozenset[int]) -> None:
        super().__init__()
        self._core = core
        self._spelling = spelling
        self._silent = silent

    def __missing__(self, token_id: int) -> bytes:
        token = None if token_id in self._silent else self._core.id_to_token(token_id)
        said = b"" if token is None else self._spelling.bytes_of(token)
        self[token_id] = said
        return said


class Vocabulary:
    """The bytes of a tokenizer's tokens: `exact` with every token, `spoken` with the special ones silent.

    `strips_leading_space`: a text's first space belongs to the tokenizer (SentencePiece puts one in front) and is not
    text.
    """

    def __init__(self, core: Core) -> None:
        state = core.decoder.__getstate__() if core.decoder is not None else b"null"
        spelling = _Spelling(json.loads(state))
        self.special: frozenset[int] = frozenset(
            token_id for token_id, token in core.get_added_tokens_decoder().items() if token.special
        )
        self.strips_leading_space = spelling.strips_leading_space
        self.exact = TokenBytes(core, spelling, frozenset())
        self.spoken = TokenBytes(core, spelling, self.special)

    def decode(self, token_ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of a whole sequence, from its beginning."""
        said = self.spoken if skip_special else self.exact
        text = b"".join(map(said.__getitem__, token_ids)).decode("utf-8", "replace")
        return text[1:] if self.strips_leading_space and text.startswith(" ") else text

    def begins_text(self, prompt_ids: Sequence[int]) -> bool:
        """Whether what follows the prompt is the first text of all: no token of the prompt, if it has any, is text."""
        return all(token_id in self.special for token_id in reversed(prompt_ids))

    def open_character(self, prompt_ids: Sequence[int]) -> bytes:
        """The bytes at the prompt's end that begin a character which only a continuation can finish; mostly none."""
        tail = b""
        for token_id in reversed(prompt_ids):
            tail = self.spoken[token_id] + tail
            if len(tail) >= 3:
                break
        for length in range(min(3, len(tail)), 0, -1):
            if _is_open(tail[-length:]):
                return tail[-length:]
        return b""


def _is_open(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.start == 0 and error.reason == "unexpected end of data"
    return False
