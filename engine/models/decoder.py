"""The decoder of the Llama, Mistral, Qwen2 and Qwen3 families, over one line of tokens.

All tokens of a step, of whichever sequence, stand in one line `[num_tokens, hidden]`; every layer's products see the
whole line, and only `Attention` knows where one sequence ends and the next begins.
"""

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from engine.models.config import ModelConfig
from engine.models.norm import Norm
from engine.models.rope import rotations
from engine.models.weights import Weights, load_weights


class Attention(Protocol):
    """One step's attention: knows which token belongs to whom and where the earlier keys and values lie."""

    def attend(self, layer: int, qkv: Tensor) -> Tensor:
        """Store the step's keys and values and attend.

        `qkv: [num_tokens, num_heads + 2 * num_kv_heads, head_dim]`, queries, keys, values in this order.
        Gives `[num_tokens, num_heads * head_dim]`, contiguous.
        """
        ...


class Decoder:
    """Weights, ready to run, for positions below `num_positions`. Immutable; shared by whatever runs it."""

    def __init__(self, config: ModelConfig, weights: Weights, num_positions: int) -> None:
        self.config = config
        self.num_positions = num_positions
        self.dtype = weights.embedding.dtype
        self._embedding = weights.embedding
        self._layers = weights.layers
        self._norm = weights.norm
        self._head = weights.head
        self._rotations = rotations(config.rope, config.head_dim, num_positions)

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
    """Read a checkpoint's weights. Raises `ModelError` for a missing, unknown or misshapen tensor.

    `num_positions` is how long a sequence may get, the model's whole context by default.
    """
    return Decoder(config, load_weights(directory, config, dtype), num_positions or config.max_positions)
