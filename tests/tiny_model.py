"""Model directories made on the spot: a byte-level BPE learnt from a few lines, and random weights of a real family.

The directories are what `save_pretrained` writes, so that `transformers` reads them as well as the engine does.
"""

import json
from collections.abc import Mapping
from pathlib import Path

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
    """Write a whole model directory with random weights; `settings` override fields of its `config.json`."""
    import torch
    import transformers

    write_tokenizer(path)
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    shape: dict[str, object] = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "head_dim": hidden_size // num_heads,
        "max_position_embeddings": max_positions,
        "tie_word_embeddings": tied,
        "bos_token_id": None,
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "pad_token_id": tokenizer.token_to_id("<|endoftext|>"),
        # Weights large enough that the likeliest token leads clearly: greedy answers then do not hang on rounding.
        "initializer_range": 0.2,
    }
    config_class = getattr(
        transformers, {"llama": "Llama", "mistral": "Mistral"}.get(family, family.title()) + "Config"
    )
    config = config_class(**(shape | dict(settings or {})))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.generation_config = transformers.GenerationConfig(eos_token_id=config.eos_token_id, do_sample=False)
    model.save_pretrained(path)
    return path
