"""The decoder of the Llama, Mistral, Qwen2 and Qwen3 families, over one line of tokens.

All tokens of a step, of whichever sequence, stand in one line `[num_tokens, hidden]`; every layer's products see the
whole line, and only `Attention` knows where one sequence ends and the next begins.

Each head's dimensions are reordered once at loading, so that the two that turn together are neighbours:

    stored   | x0 x1 … xh | y0 y1 … yh |      here   | x0 y0 | x1 y1 | … | xh yh |

Then a rotation is one complex product, in place, over queries and keys alike. Scores do not change: queries and keys
are reordered in the same way, and values are not touched.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from engine.models.checkpoint import Checkpoint
from engine.models.config import ModelConfig
from engine.models.linear import Linear
from engine.models.norm import Norm
from engine.models.rope import rotations


class Attention(Protocol):
    """One step's attention: knows which token belongs to whom and where the earlier keys and values lie."""

    def attend(self, layer: int, qkv: Tensor) -> Tensor:
        """Store the step's keys and values and attend.

        `qkv: [num_tokens, num_heads + 2 * num_kv_heads, head_dim]`, queries, keys, values in this order.
        Gives `[num_tokens, num_heads * head_dim]`, contiguous.
        """
        ...


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


class Decoder:
    """Weights, ready to run, for positions below `num_positions`. Immutable; shared by whatever runs it."""

    def __init__(
        self,
        config: ModelConfig,
        embedding: Tensor,
        layers: list[Layer],
        norm: Norm,
        head: Linear,
        num_positions: int,
    ) -> None:
        self.config = config
        self.num_positions = num_positions
        self.dtype = embedding.dtype
        self._embedding = embedding
        self._layers = layers
        self._norm = norm
        self._head = head
        self._rotations = rotations(config.rope, config.head_dim, num_positions).to(embedding.device)

    def forward(self, ids: Tensor, positions: Tensor, attention: Attention, wanted: Tensor | None = None) -> Tensor:
        """`ids, positions: [num_tokens]` int64 -> hidden states `[num_tokens, hidden]`, before the last norm.

        `wanted` names the tokens whose hidden states are asked for (None: all); the others are spared what follows the
        last layer's keys and values.
        """
        config = self.config
        num_turned = config.num_heads + config.num_kv_heads
        shape = (ids.shape[0], num_turned + config.num_kv_heads, config.head_dim)
        turns = self._rotations.index_select(0, positions)
        x = functional.embedding(ids, self._embedding)
        for number, layer in enumerate(self._layers):
            h = layer.attention_norm(x)
            qkv = layer.qkv(h).view(shape)
            if layer.qk_norms is not None:
                self._norm_heads(qkv, layer.qk_norms)
            self._turn(qkv.narrow(1, 0, num_turned), turns)
            attended = attention.attend(number, qkv)
            if wanted is not None and layer is self._layers[-1]:
                attended, x = attended.index_select(0, wanted), x.index_select(0, wanted)
                if not wanted.numel():
                    return x
            x = layer.output.plus(attended, x)
            h = layer.mlp_norm(x)
            gate, up = layer.gate_up(h).chunk(2, 1)
            x = layer.down.plus(functional.silu(gate).mul_(up), x)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """`hidden: [rows, hidden]` of `forward` -> `[rows, vocab]` float32."""
        return self._head(self._norm(hidden)).float()

    def _norm_heads(self, qkv: Tensor, norms: tuple[Norm, Norm]) -> None:
        config = self.config
        queries = qkv.narrow(1, 0, config.num_heads)
        keys = qkv.narrow(1, config.num_heads, config.num_kv_heads)
        for part, norm in ((queries, norms[0]), (keys, norms[1])):
            part.copy_(norm(part))

    def _turn(self, heads: Tensor, turns: Tensor) -> None:
        """Turn `heads: [num_tokens, heads, head_dim]` in place; in float32 whatever the dtype."""
        if heads.dtype is torch.float32:
            torch.view_as_complex(heads.view(*heads.shape[:2], -1, 2)).mul_(turns)
            return
        turned = torch.view_as_complex(heads.float().view(*heads.shape[:2], -1, 2)).mul_(turns)
        heads.copy_(torch.view_as_real(turned).flatten(2))


def load_decoder(directory: Path, config: ModelConfig, dtype: torch.dtype, num_positions: int | None = None) -> Decoder:
    """Read and lay out a checkpoint's weights. Raises `ModelError` for a missing, unknown or misshapen tensor.

    `num_positions` is how long a sequence may get, the model's whole context by default.
    """
    checkpoint = Checkpoint(directory)
    hidden = config.hidden_size
    embedding = checkpoint.tensor("model.embed_tokens.weight", (config.vocab_size, hidden), dtype)
    layers = [_load_layer(checkpoint, config, number, dtype) for number in range(config.num_layers)]
    norm = Norm(checkpoint.tensor("model.norm.weight", (hidden,), dtype), config.norm_eps)
    head = embedding if config.tied else checkpoint.tensor("lm_head.weight", (config.vocab_size, hidden), dtype)
    checkpoint.finish(("rotary_emb.inv_freq", "lm_head.weight") if config.tied else ("rotary_emb.inv_freq",))
    return Decoder(config, embedding, layers, norm, Linear(head), num_positions or config.max_positions)


def _load_layer(checkpoint: Checkpoint, config: ModelConfig, number: int, dtype: torch.dtype) -> Layer:
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
            Norm(_pair(weight("self_attn.q_norm.weight", head_dim), head_dim), config.norm_eps),
            Norm(_pair(weight("self_attn.k_norm.weight", head_dim), head_dim), config.norm_eps),
        )
    gate_up = torch.cat([weight("mlp.gate_proj.weight", inner, hidden), weight("mlp.up_proj.weight", inner, hidden)])
    return Layer(
        attention_norm=Norm(weight("input_layernorm.weight", hidden), config.norm_eps),
        qkv=Linear(qkv, qkv_bias),
        qk_norms=norms,
        output=Linear(weight("self_attn.o_proj.weight", hidden, query_size), output_bias),
        mlp_norm=Norm(weight("post_attention_layernorm.weight", hidden), config.norm_eps),
        gate_up=Linear(gate_up, gate_up_bias),
        down=Linear(weight("mlp.down_proj.weight", hidden, inner), down_bias),
    )


def _pair(rows: Tensor, head_dim: int) -> Tensor:
    """Bring the two dimensions that turn together next to each other; see the module's picture."""
    return rows.view(-1, 2, head_dim // 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)
