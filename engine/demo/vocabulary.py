"""Learn the tokenizer from the little world's own text, and turn documents into ids with a mark on what to learn."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from engine.demo.chat import BEGIN, END, MARKUP_TOKENS, SPECIAL_TOKENS, STOP, TEMPLATE

VOCAB_SIZE = 2048
_PIECES = r"\p{N}|\p{L}+|\n|[^\p{L}\p{N}\n]+"
"""A digit, a word, a newline, or whatever stands between them, spaces included.

A word is spelled alike after a space, a quote or nothing at all, so a small network can copy it; it costs a quarter
more tokens than words that carry their space, and JSON's `": "` wins most of that back.
"""


def learn(texts: Iterable[str]) -> Tokenizer:
    """Train a byte-level BPE of at most `VOCAB_SIZE` entries. A digit is always a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        min_frequency=3,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[*SPECIAL_TOKENS, *MARKUP_TOKENS],
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in MARKUP_TOKENS])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return _with_visible_markup(tokenizer)


def _with_visible_markup(tokenizer: Tokenizer) -> Tokenizer:
    """Have `skip_special_tokens` keep `<tool_call>` and the like: a caller has to see them."""
    state = json.loads(tokenizer.to_str())
    for token in state["added_tokens"]:
        token["special"] = token["content"] in SPECIAL_TOKENS
    return Tokenizer.from_str(json.dumps(state))


def save(tokenizer: Tokenizer, folder: Path, max_positions: int) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`, the chat template within."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_positions,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": False,
        "bos_token": None,
        "eos_token": END,
        "pad_token": STOP,
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def id_of(tokenizer: Tokenizer, token: str) -> int:
    """The id of a token that the tokenizer has."""
    found: int | None = tokenizer.token_to_id(token)
    assert found is not None, f"the tokenizer has no {token}"
    return found


class Marker:
    """Find the tokens to learn from: all that the assistant says and how it ends; all of a text without turns."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.begin, self.end = id_of(tokenizer, BEGIN), id_of(tokenizer, END)
        self.opening = tokenizer.encode(f"{BEGIN}assistant\n").ids

    def learned(self, ids: Sequence[int]) -> list[bool]:
        """For each token, whether the network should learn to predict it."""
        if self.begin not in ids:
            return [True] * len(ids)
        marks = [False] * len(ids)
        place, width = 0, len(self.opening)
        while place < len(ids):
            if ids[place] == self.begin and list(ids[place : place + width]) == self.opening:
                place += width
                while place < len(ids):
                    marks[place] = True
                    if ids[place] == self.end:
                        break
                    place += 1
            place += 1
        return marks

    def last_turn(self, ids: Sequence[int]) -> list[bool]:
        """As `learned`, but only of the assistant's last turn."""
        marks = self.learned(ids)
        last = max(place for place, token in enumerate(ids) if token == self.begin)
        return [mark and place > last for place, mark in enumerate(marks)]
