"""Tokenizers of both families, learnt on the spot."""

import json

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, trainers

from engine.text.vocabulary import Vocabulary
from tests.tiny_model import TEXT, byte_level_tokenizer


def sentencepiece_tokenizer() -> Tokenizer:
    """A BPE as Llama 2 has it: spaces are U+2581, unknown characters fall back to byte tokens."""
    learnt = Tokenizer(models.BPE())
    learnt.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False, special_tokens=["<unk>", "<s>", "</s>"])
    learnt.train_from_iterator([line for line in TEXT.splitlines() if line.isascii()], trainer)
    state = json.loads(learnt.to_str())
    vocab = state["model"]["vocab"]
    for byte in range(256):
        vocab.setdefault(f"<0x{byte:02X}>", len(vocab))
    state["model"] |= {"byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>"}
    tokenizer = Tokenizer.from_str(json.dumps(state))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("<s>", "</s>")])
    return tokenizer


@pytest.fixture(scope="session", params=["byte-level", "sentencepiece"])
def core(request: pytest.FixtureRequest) -> Tokenizer:
    return byte_level_tokenizer() if request.param == "byte-level" else sentencepiece_tokenizer()


@pytest.fixture(scope="session")
def vocabulary(core: Tokenizer) -> Vocabulary:
    return Vocabulary(core)
