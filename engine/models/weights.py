"""A decoder's weights, read from a checkpoint and laid out for the products that take them.

Each head's dimensions are reordered, so that the two that turn together are neighbours:

    stored   | x0 x1 … xh | y0 y1 … yh |      here   | x0 y0 | x1 y1 | … | xh yh |

Then a rotation is one complex product, in place, over queries and keys alike. Scores do not change: queries and keys
are reordered in the same way, and values are not touched.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from engine.models.checkpoint import Checkpoint
from engine.models.config import ModelConfig
from engine.models.linear import Linear
from engine.models.norm import Norm

Place = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's weights; queries, keys and values in one product, gate and up in another."""

    attention_norm: Norm
    qkv: Linear
    qk_norms: tuple[Norm, Norm] | None
    output: Linear
    mlp_norm: Norm
    gate_up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class Weights:
    """All of a decoder's. `embedding: [vocab_size, hidden_size]` is the head's weight too where they are tied."""

    embedding: Tensor
    layers: list[Layer]
    norm: Norm
    head: Linear


def stay(tensor: Tensor) -> Tensor:
    """Leave a tensor where it was read to."""
    return tensor


def load_weights(directory: Path, config: ModelConfig, dtype: torch.dtype, place: Place = stay) -> Weights:
    """Read a checkpoint. `place` brings each tensor to where it will be used, one at a time.

    Raises `ModelError` for a missing, unknown or misshapen tensor.
    """
    checkpoint = Checkpoint(directory)
    hidden = config.hidden_size
    embedding = place(checkpoint.tensor("model.embed_tokens.weight", (config.vocab_size, hidden), dtype))
    layers = [_load_layer(checkpoint, config, number, dtype, place) for number in range(config.num_layers)]
    norm = Norm(place(checkpoint.tensor("model.norm.weight", (hidden,), dtype)), config.norm_eps)
    head = embedding if config.tied else place(checkpoint.tensor("lm_head.weight", (config.vocab_size, hidden), dtype))
    checkpoint.finish(("rotary_emb.inv_freq", "lm_head.weight") if config.tied else ("rotary_emb.inv_freq",))
    return Weights(embedding, layers, norm, Linear(head))


def _load_layer(checkpoint: Checkpoint, config: ModelConfig, number: int, dtype: torch.dtype, place: Place) -> Layer:
    prefix = f"model.layers.{number}."
    hidden, inner, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
    query_size, kv_size = config.num_heads * head_dim, config.num_kv_heads * head_dim

    def weight(name: str, *shape: int) -> Tensor:
        return checkpoint.tensor(prefix + name, shape, dtype)

    qkv = torch.cat(
        [
            _pair(weight("self_attn.q_proj.weight", query_size, hidden), head_dim),
            _pair(weight("self_attn.k_proj.weight", kv_size, hidden), head_dim),
            weight("self_attn.v_proj.weight", kv_size, hidden),
        ]
    )
    qkv_bias = output_bias = gate_up_bias = down_bias = None
    if config.qkv_bias:
        queries, keys = weight("self_attn.q_proj.bias", query_size), weight("self_attn.k_proj.bias", kv_size)
        values = weight("self_attn.v_proj.bias", kv_size)
        qkv_bias = torch.cat([_pair(queries, head_dim), _pair(keys, head_dim), values])
    if config.output_bias:
        output_bias = weight("self_attn.o_proj.bias", hidden)
    if config.mlp_bias:
        gate_up_bias = torch.cat([weight("mlp.gate_proj.bias", inner), weight("mlp.up_proj.bias", inner)])
        down_bias = weight("mlp.down_proj.bias", hidden)
    norms = None
    if config.family == "qwen3":
        norms = (
            Norm(place(_pair(weight("self_attn.q_norm.weight", head_dim), head_dim)), config.norm_eps),
            Norm(place(_pair(weight("self_attn.k_norm.weight", head_dim), head_dim)), config.norm_eps),
        )
    gate_up = torch.cat([weight("mlp.gate_proj.weight", inner, hidden), weight("mlp.up_proj.weight", inner, hidden)])

    def linear(weight: Tensor, bias: Tensor | None) -> Linear:
        return Linear(place(weight), None if bias is None else place(bias))

    return Layer(
        attention_norm=Norm(place(weight("input_layernorm.weight", hidden)), config.norm_eps),
        qkv=linear(qkv, qkv_bias),
        qk_norms=norms,
        output=linear(weight("self_attn.o_proj.weight", hidden, query_size), output_bias),
        mlp_norm=Norm(place(weight("post_attention_layernorm.weight", hidden)), config.norm_eps),
        gate_up=linear(gate_up, gate_up_bias),
        down=linear(weight("mlp.down_proj.weight", hidden, inner), down_bias),
    )


def _pair(rows: Tensor, head_dim: int) -> Tensor:
    """Bring the two dimensions that turn together next to each other; see the module's picture."""
    return rows.view(-1, 2, head_dim // 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)
