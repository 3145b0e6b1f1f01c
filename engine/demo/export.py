"""Write a network as a Hugging Face directory, and read one back."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from tokenizers import Tokenizer

from engine.demo import vocabulary
from engine.demo.chat import END, STOP
from engine.demo.network import Dimensions, Network

MODEL_DIR = Path(__file__).parent / "model"
DRAFT_DIR = Path(__file__).parent / "draft"


def export(network: Network, tokenizer: Tokenizer, folder: Path) -> None:
    """Fill the folder: configuration, weights in bf16, tokenizer with its chat template, generation defaults."""
    folder.mkdir(parents=True, exist_ok=True)
    dims = network.dims
    end, stop = (vocabulary.id_of(tokenizer, token) for token in (END, STOP))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": dims.vocab_size,
        "hidden_size": dims.hidden_size,
        "intermediate_size": dims.intermediate_size,
        "num_hidden_layers": dims.num_layers,
        "num_attention_heads": dims.num_heads,
        "num_key_value_heads": dims.num_kv_heads,
        "head_dim": dims.head_dim,
        "max_position_embeddings": dims.max_positions,
        "rope_theta": dims.rope_theta,
        "rms_norm_eps": dims.norm_eps,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "use_cache": True,
        "torch_dtype": "bfloat16",
        "bos_token_id": None,
        "eos_token_id": end,
        "pad_token_id": stop,
    }
    _write(folder / "config.json", config)
    _write(folder / "generation_config.json", {"do_sample": False, "eos_token_id": [end, stop], "pad_token_id": stop})
    vocabulary.save(tokenizer, folder, dims.max_positions)
    weights = {
        name: tensor.detach().to("cpu", torch.bfloat16).contiguous() for name, tensor in network.state_dict().items()
    }
    (folder / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))


def _write(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def load(folder: Path) -> tuple[Network, Tokenizer]:
    """The network in fp32, ready to be evaluated, and its tokenizer."""
    config = json.loads((folder / "config.json").read_text())
    dims = Dimensions(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
        max_positions=config["max_position_embeddings"],
        rope_theta=config["rope_theta"],
        norm_eps=config["rms_norm_eps"],
    )
    network = Network(dims)
    weights = load_file(str(folder / "model.safetensors"))
    network.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return network.eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))
