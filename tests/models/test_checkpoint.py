"""Weights come from one file or many; a wrong one is refused by name; the fingerprint follows what is computed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.errors import ModelError
from engine.models.checkpoint import fingerprint, shards
from engine.models.config import load_config
from engine.models.decoder import Decoder, load_decoder


def load(directory: Path) -> Decoder:
    return load_decoder(directory, load_config(directory), torch.float32)


@pytest.fixture
def directory(build: Callable[..., Any], tmp_path: Path) -> Path:
    """A model of its own that a test may spoil."""
    return Path(shutil.copytree(build("llama").directory, tmp_path / "model"))


def rewrite(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def test_shards_give_what_one_file_gives(build: Callable[..., Any]) -> None:
    whole = build("qwen3", seed=5)
    split = build("qwen3", seed=5, max_shard_size="40KB")
    laws = [reference.runner()._model for reference in (whole, split)]

    assert len(shards(whole.directory)) == 1
    assert len(shards(split.directory)) > 2
    hidden = torch.randn(3, 48)
    assert torch.equal(laws[0].logits(hidden), laws[1].logits(hidden))


def test_bfloat16_weights_are_read_as_float32(directory: Path) -> None:
    hidden = torch.randn(3, 48)
    rewrite(directory, lambda t: t.update({name: tensor.bfloat16() for name, tensor in t.items()}))
    read = load(directory).logits(hidden)
    rewrite(directory, lambda t: t.update({name: tensor.float() for name, tensor in t.items()}))

    assert read.dtype is torch.float32
    assert torch.equal(read, load(directory).logits(hidden))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("model.layers.1.mlp.up_proj.weight"),
            r"expected the tensor model\.layers\.1\.mlp\.up_proj\.weight of shape \[96, 48\], found none",
        ),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(47)}),
            r"model\.norm\.weight: expected the shape \[48\], got \[47\]",
        ),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(48, dtype=torch.int8)}),
            r"model\.norm\.weight: expected a floating-point tensor, got torch\.int8",
        ),
        (
            lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(64)}),
            r"1 tensors unknown to this architecture, first model\.layers\.0\.self_attn\.q_proj\.bias",
        ),
    ],
)
def test_a_wrong_tensor_is_refused_by_name(
    directory: Path, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    rewrite(directory, change)

    with pytest.raises(ModelError, match=message):
        load(directory)


def test_a_missing_or_broken_file_is_named(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0broken!!")
    with pytest.raises(ModelError, match=r"model\.safetensors: "):
        load(directory)
    (directory / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors: expected a safetensors file"):
        load(directory)


def test_an_index_cannot_lead_out_of_the_directory(directory: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "../elsewhere.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))

    with pytest.raises(ModelError, match="expected a safetensors file of the model"):
        shards(directory)


def test_the_fingerprint_changes_with_config_and_weights_only(directory: Path, tmp_path: Path) -> None:
    first = fingerprint(directory)
    copy = Path(shutil.copytree(directory, tmp_path / "elsewhere"))
    (copy / "README.md").write_text("hello")
    assert fingerprint(copy) == first

    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config, indent=7))
    assert fingerprint(copy) == first
    (copy / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-4}))
    assert fingerprint(copy) != first

    rewrite(directory, lambda t: t["model.norm.weight"].add_(1e-3))
    assert fingerprint(directory) != first
