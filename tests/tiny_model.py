"""Model directories made on the spot: a byte-level BPE learnt from a few lines, and random weights of a real family.

`transformers` reads the directories as well as the engine does; it is not needed to write them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

TEXT = """\
A sidecar stands beside the rider, not between the rider and the road. The quick brown fox jumps over the lazy dog.
The engine reads a batch, writes the keys and values into their blocks, and gives back one token for each sequence.
Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. El pingüino Wenceslao hizo kilómetros bajo la lluvia.
我能吞下玻璃而不伤身体。日本語の文章もここにあります。 Быстрая лиса перепрыгнула.
🦊🚀👩‍🚀 naïve café, 3.14159, x_1 = {"a": [1, 2]};
def step(batch): return [sample(row) for row in batch if row.samples]
"""
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MARKUP = ("<tool_call>", "</tool_call>")
CHATML = """\
{%- if tools %}<|im_start|>system
Tools:{% for tool in tools %} {{ tool | tojson }}{% endfor %}<|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def byte_level_tokenizer(vocab_size: int = 512) -> Tokenizer:
    """A byte-level BPE over `TEXT`: every byte is a token, the special ones have the first ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(TEXT.splitlines(), trainer)
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in MARKUP])
    return tokenizer


def write_tokenizer(
    path: Path, tokenizer: Tokenizer | None = None, *, chat_template: str | None = CHATML, **config: object
) -> Path:
    """Write `tokenizer.json` and `tokenizer_config.json`; `config` adds to the latter."""
    path.mkdir(parents=True, exist_ok=True)
    (tokenizer or byte_level_tokenizer()).save(str(path / "tokenizer.json"))
    settings: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
    }
    if chat_template is not None:
        settings["chat_template"] = chat_template
    (path / "tokenizer_config.json").write_text(json.dumps(settings | config))
    return path


def tiny_model_dir(
    path: Path,
    family: str = "llama",
    *,
    seed: int = 0,
    hidden_size: int = 64,
    num_layers: int = 2,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    tied: bool = False,
    max_positions: int = 512,
    dtype: str = "float32",
    settings: Mapping[str, object] | None = None,
) -> Path:
    """Write a whole model directory with random weights; `settings` override fields of its `config.json`.

    The weights are large enough that the likeliest token leads clearly: greedy answers then do not hang on rounding.
    """
    tokenizer = byte_level_tokenizer()
    write_tokenizer(path, tokenizer)
    end = tokenizer.token_to_id("<|im_end|>")
    config: dict[str, object] = {
        "architectures": [f"{family.title()}ForCausalLM"],
        "model_type": family,
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "head_dim": hidden_size // num_heads,
        "max_position_embeddings": max_positions,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "sliding_window": None,
        "tie_word_embeddings": tied,
        "bos_token_id": None,
        "eos_token_id": end,
        "dtype": dtype,
    }
    config |= settings or {}
    (path / "config.json").write_text(json.dumps(config, indent=2))
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": end}))
    random = torch.Generator().manual_seed(seed)
    weights = {
        name: (torch.ones(shape) if "norm" in name else torch.randn(shape, generator=random) * 0.2).to(
            getattr(torch, dtype)
        )
        for name, shape in _shapes(config, family).items()
    }
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return path


def _shapes(config: Mapping[str, Any], family: str) -> dict[str, tuple[int, ...]]:
    """The tensors of a checkpoint by their names at Hugging Face."""
    hidden, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        block: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (hidden,),
            "post_attention_layernorm.weight": (hidden,),
            "self_attn.q_proj.weight": (queries, hidden),
            "self_attn.k_proj.weight": (keys, hidden),
            "self_attn.v_proj.weight": (keys, hidden),
            "self_attn.o_proj.weight": (hidden, queries),
            "mlp.gate_proj.weight": (inner, hidden),
            "mlp.up_proj.weight": (inner, hidden),
            "mlp.down_proj.weight": (hidden, inner),
        }
        if family == "qwen2":
            block |= {
                f"self_attn.{name}_proj.bias": (size,) for name, size in zip("qkv", (queries, keys, keys), strict=True)
            }
        if family == "qwen3":
            block |= {"self_attn.q_norm.weight": (head,), "self_attn.k_norm.weight": (head,)}
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in block.items()}
    return shapes
