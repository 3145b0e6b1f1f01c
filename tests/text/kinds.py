"""Tokenizers of the kinds that models come with, learnt on the spot from a few lines."""

import json
from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tests.tiny_model import MARKUP, SPECIAL, TEXT

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = LLAMA_3.replace("{1,3}", "")
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = O200K.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "").replace("{1,3}", "")
DEEPSEEK = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
)
DEMO = r"\p{N}|\p{L}+|\n|[^\p{L}\p{N}\n]+"
MORE = """\
it's we've I'M they'll “quoted” (a) (b), x=1; y:2. {"key": "value", "n": [0.125, 12345]}
a  b   c    d\t\te\n\n\nf \n g\r\nh the end. The end, the end; the end: the end
"""


def byte_level(*patterns: str, normalizer: Any = None, prefix: bool = False, vocab_size: int = 900) -> Tokenizer:
    """GPT-2's descendants; without patterns GPT-2's own."""
    tokenizer = Tokenizer(models.BPE())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    last = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=not patterns)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, last]) if splits else last
    tokenizer.decoder = decoders.ByteLevel()
    learn(tokenizer, vocab_size, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in MARKUP])
    return tokenizer


def sentencepiece(style: str, vocab_size: int = 600, *, lines: bool = False) -> Tokenizer:
    """Llama 2's and Gemma's. With `lines` the merges were learnt over whole lines, and some span a space."""
    tokenizer = Tokenizer(models.BPE())
    replaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = replaces
    if not lines:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    learn(tokenizer, vocab_size)
    match style:
        case "prepend":
            tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replaces])
            tokenizer.pre_tokenizer = None
        case "replace":
            tokenizer.pre_tokenizer = None
        case "always" | "first" | "never":
            tokenizer.normalizer = None
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=style, split=False)
        case "words":
            tokenizer.normalizer = None
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    state = json.loads(tokenizer.to_str())
    vocab = state["model"]["vocab"]
    for byte in range(256):
        vocab.setdefault(f"<0x{byte:02X}>", len(vocab))
    vocab.setdefault("<unk>", len(vocab))
    if style == "prepend":
        state["normalizer"] = {"type": "Sequence", "normalizers": state["normalizer"]["normalizers"]}
    state["model"] |= {"byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>"}
    tokenizer = Tokenizer.from_str(json.dumps(state))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return tokenizer


def learn(tokenizer: Tokenizer, vocab_size: int, **settings: Any) -> None:
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False, special_tokens=list(SPECIAL), **settings)
    tokenizer.train_from_iterator([TEXT, MORE] if not settings else (TEXT + MORE).splitlines(keepends=True), trainer)


def unknown_words() -> Tokenizer:
    """A known pattern behind one that is not, and takes the space behind a word."""
    return byte_level(r"\p{L}+\s?", LLAMA_3)


def flagged() -> Tokenizer:
    """Control tokens that take in the white space beside them."""
    tokenizer = byte_level(LLAMA_3)
    tokenizer.add_special_tokens([AddedToken("<|assistant|>", rstrip=True, normalized=False)])
    tokenizer.add_special_tokens([AddedToken("<|user|>", lstrip=True, normalized=False)])
    return tokenizer


def overlapping() -> Tokenizer:
    """Added tokens one of which can begin inside another."""
    tokenizer = byte_level(LLAMA_3)
    tokenizer.add_special_tokens([AddedToken("<|im", normalized=False), AddedToken("_start|><|", normalized=False)])
    return tokenizer


def spaced() -> Tokenizer:
    """An added token that a plain cut would go through."""
    tokenizer = byte_level(LLAMA_3)
    tokenizer.add_tokens([AddedToken("over the", normalized=False), AddedToken("batch)", normalized=True)])
    return tokenizer


# What may be cut where: "plain" inside a text too, "control" only before added tokens, "whole" nowhere.
KINDS: Mapping[str, tuple[str, Callable[[], Tokenizer]]] = MappingProxyType(
    {
        "gpt-2": ("plain", byte_level),
        "llama-3": ("plain", lambda: byte_level(LLAMA_3)),
        "qwen": ("plain", lambda: byte_level(QWEN, normalizer=normalizers.NFC())),
        "o200k": ("plain", lambda: byte_level(O200K)),
        "tekken": ("plain", lambda: byte_level(TEKKEN)),
        "deepseek": ("plain", lambda: byte_level(*DEEPSEEK)),
        "demo": ("plain", lambda: byte_level(DEMO)),
        "llama-2": ("plain", lambda: sentencepiece("prepend")),
        "gemma": ("plain", lambda: sentencepiece("replace")),
        "metaspace": ("plain", lambda: sentencepiece("always")),
        "metaspace first": ("plain", lambda: sentencepiece("first")),
        "metaspace words": ("plain", lambda: sentencepiece("words")),
        "merges over spaces": ("any", lambda: sentencepiece("replace", lines=True)),
        "gpt-2 with a prefix": ("control", lambda: byte_level(prefix=True)),
        "nfkc": ("control", lambda: byte_level(LLAMA_3, normalizer=normalizers.NFKC())),
        "unknown words": ("control", unknown_words),
        "an added token with a space": ("control", spaced),
        "overlapping control tokens": ("plain only", overlapping),
        "a control token with flags": ("whole", flagged),
    }
)


@cache
def kind(name: str) -> Tokenizer:
    """One of `KINDS`, learnt once."""
    return KINDS[name][1]()
