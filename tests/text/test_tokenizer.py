"""A tokenizer is what its model directory says it is."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Core
from tokenizers import decoders, models, processors
from transformers import PreTrainedTokenizerFast

from engine.errors import ModelError
from engine.text.tokenizer import Tokenizer
from tests.tiny_model import TEXT, byte_level_tokenizer, write_tokenizer


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_tokenizer(tmp_path)


def test_ids_and_texts_are_those_of_transformers(path: Path) -> None:
    ours = Tokenizer.from_dir(path)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json"))
    for line in TEXT.splitlines():
        ids = ours.encode(line)

        assert ids == theirs.encode(line)
        assert ours.decode(ids) == theirs.decode(ids) == line
        assert ours.count(line) == len(ids)


def test_a_raw_prompt_may_hold_control_tokens_unless_told_otherwise(path: Path) -> None:
    tokenizer = Tokenizer.from_dir(path)
    text = "a<|im_end|>b"
    end = tokenizer.encode("<|im_end|>")

    assert end == [2]
    assert end[0] in tokenizer.encode(text)
    plain = tokenizer.encode(text, parse_special=False)
    assert end[0] not in plain
    assert tokenizer.decode(plain) == text


def test_the_post_processor_speaks_for_raw_prompts_only(tmp_path: Path) -> None:
    core = byte_level_tokenizer()
    core.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    tokenizer = Tokenizer.from_dir(write_tokenizer(tmp_path, core))

    assert tokenizer.encode("a")[0] == 0
    assert tokenizer.encode("a", parse_special=False)[0] == 0
    assert tokenizer.encode("a", add_special=False)[0] != 0
    assert tokenizer.encode_pieces(["a", "b"])[0] != 0
    assert tokenizer.count("a") == 2


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": 0}, {"eos_token_id": 1}, {0, 2}),
        ({"eos_token_id": [0, 1]}, {}, {0, 1, 2}),
        ({}, {"eos_token_id": [0]}, {0, 2}),
        ({}, {}, {2}),
    ],
)
def test_stop_ids_come_from_every_file_that_names_some(
    path: Path, generation: dict[str, object], config: dict[str, object], expected: set[int]
) -> None:
    (path / "generation_config.json").write_text(json.dumps(generation))
    (path / "config.json").write_text(json.dumps(config))

    assert Tokenizer.from_dir(path).stop_ids == expected


def test_named_tokens_are_read_as_texts_and_as_objects(tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path, bos_token={"content": "<|im_start|>", "lstrip": False})
    (path / "special_tokens_map.json").write_text(json.dumps({"unk_token": "<|endoftext|>", "bos_token": "other"}))

    expected = {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
    }
    assert Tokenizer.from_dir(path).named_tokens == expected


def test_token_bytes_are_exact(path: Path) -> None:
    tokenizer = Tokenizer.from_dir(path)
    for line in TEXT.splitlines():
        ids = tokenizer.encode(line)
        assert b"".join(map(tokenizer.token_bytes, ids)) == line.encode()

    assert tokenizer.token_bytes(2) == b"<|im_end|>"
    assert tokenizer.token_bytes(99_999) == b""
    assert tokenizer.vocab_size == byte_level_tokenizer().get_vocab_size()


def test_padding_and_truncation_of_the_file_are_not_for_us(tmp_path: Path) -> None:
    core = byte_level_tokenizer()
    core.enable_truncation(4)
    core.enable_padding(length=32)
    tokenizer = Tokenizer.from_dir(write_tokenizer(tmp_path, core))

    assert tokenizer.decode(tokenizer.encode("much longer than four tokens")) == "much longer than four tokens"


def test_defects_of_a_directory_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json is missing"):
        Tokenizer.from_dir(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read"):
        Tokenizer.from_dir(tmp_path)

    write_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ModelError, match=r"config\.json: expected a JSON object, got list"):
        Tokenizer.from_dir(tmp_path)
    (tmp_path / "config.json").write_text('{"eos_token_id": "two"}')
    with pytest.raises(ModelError, match="eos_token_id"):
        Tokenizer.from_dir(tmp_path)


@pytest.mark.parametrize("decoder", [None, decoders.WordPiece()])
def test_a_decoder_that_is_not_known_is_refused(tmp_path: Path, decoder: decoders.Decoder | None) -> None:
    core = Core(models.WordLevel({"a": 0}, unk_token="a"))
    if decoder is not None:
        core.decoder = decoder
    with pytest.raises(ModelError, match="decoder"):
        Tokenizer.from_dir(write_tokenizer(tmp_path, core))
