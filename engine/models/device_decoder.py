"""The decoder of `decoder.py` on a device: the same layers, with every operation but the products a kernel of ours.

The line of tokens, `[num_tokens, hidden]`, is kept in two tensors: `residual`, and `branch`, what the last half of a
layer adds to it. The norm of the next half adds them up as it reads them:

    residual ──────────────┬─► + ─────────────────────────────────┬─► + ─► …
    branch of the half before ─┘ └─ norm ─ qkv ─ attend ─ output ─┘  branch

A product is torch's (cuBLASLt on a GPU).
"""

from typing import Protocol

import torch
from torch import Tensor

from engine.device import Device
from engine.kernels.embed import embed
from engine.kernels.rms_norm import rms_norm
from engine.kernels.rotary_kv_write import QKNorm
from engine.kernels.silu_mul import silu_mul
from engine.models.config import ModelConfig
from engine.models.norm import Norm
from engine.models.rope import rotations
from engine.models.weights import Layer, Weights


class DeviceAttention(Protocol):
    """One step's attention: knows which token belongs to whom and where the earlier keys and values lie."""

    def attend(self, layer: int, qkv: Tensor, rotations: Tensor, norm: QKNorm | None) -> Tensor:
        """Norm and turn queries and keys, store keys and values, and attend.

        `qkv: [num_tokens, num_heads + 2 * num_kv_heads, head_dim]`, changed in place.
        `rotations: [num_positions, head_dim / 2, 2]` float32. Gives `[num_tokens, num_heads, head_dim]`, contiguous.
        """
        ...


class DeviceDecoder:
    """Weights on a device, ready to run for positions below `num_positions`."""

    def __init__(self, device: Device, config: ModelConfig, weights: Weights, num_positions: int) -> None:
        self.config = config
        self.num_positions = num_positions
        self.dtype = weights.embedding.dtype
        self._device = device
        self._weights = weights
        self._qk_norms = [_qk_norm(layer) for layer in weights.layers]
        turns = torch.view_as_real(rotations(config.rope, config.head_dim, num_positions))
        self._rotations = device.upload(turns.squeeze(1))

    def forward(self, ids: Tensor, attention: DeviceAttention, wanted: Tensor | None = None) -> Tensor:
        """`ids: [num_tokens]` int32, negative for padding -> hidden states `[num_tokens, hidden]` behind the last norm.

        `wanted: [rows]` int32 names the tokens whose hidden states are asked for; None: all.
        """
        config, device, weights = self.config, self._device, self._weights
        (num_tokens,) = ids.shape
        heads = config.num_heads + 2 * config.num_kv_heads
        residual = self._empty(num_tokens, config.hidden_size)
        embed(device, residual, weights.embedding, ids)
        branch: Tensor | None = None
        for number, layer in enumerate(weights.layers):
            h = self._norm(layer.attention_norm, residual, branch)
            qkv = layer.qkv(h).view(num_tokens, heads, config.head_dim)
            attended = attention.attend(number, qkv, self._rotations, self._qk_norms[number]).flatten(1)
            if wanted is not None and layer is weights.layers[-1]:
                attended, residual = attended.index_select(0, wanted), residual.index_select(0, wanted)
                if not wanted.numel():
                    return residual
            h = self._norm(layer.mlp_norm, residual, layer.output(attended))
            gate_up = layer.gate_up(h)
            mixed = self._empty(gate_up.shape[0], config.intermediate_size)
            silu_mul(device, mixed, gate_up)
            branch = layer.down(mixed)
        return self._norm(weights.norm, residual, branch)

    def logits(self, hidden: Tensor) -> Tensor:
        """`hidden: [rows, hidden]` of `forward` -> `[rows, vocab]` in the model's type."""
        return self._weights.head(hidden)

    def _norm(self, norm: Norm, residual: Tensor, branch: Tensor | None) -> Tensor:
        """Add the branch to the residual, in place, and give the norm of the sum."""
        out = self._empty(*residual.shape)
        if branch is None:
            rms_norm(self._device, out, residual, norm.weight, norm.eps)
        else:
            rms_norm(self._device, out, branch, norm.weight, norm.eps, residual=residual)
        return out

    def _empty(self, *shape: int) -> Tensor:
        return self._device.empty(shape, self.dtype)


def _qk_norm(layer: Layer) -> QKNorm | None:
    if layer.qk_norms is None:
        return None
    queries, keys = layer.qk_norms
    return QKNorm(queries.weight, keys.weight, queries.eps)
