"""Define a small Llama that can be trained here and loaded anywhere.

Module and parameter names are those of Hugging Face's `LlamaForCausalLM`, so that a state dict *is* the
exported checkpoint: RMSNorm before each half of a block, rotary positions in the `rotate_half` convention,
grouped-query attention, SwiGLU, and an output head tied to the embedding.

Training batches are ragged. Conversations of similar length stand together in a group `[rows, length]`, and
a batch is several such groups laid end to end as one `[num_tokens]` line. Every linear layer sees the whole
line; only attention looks at the groups. So one step mixes short and long conversations with next to no padding.

    line:  | group 0: 12 rows of 31 | group 1: 7 rows of 64 | group 2: 2 rows of 210 |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

Groups = Sequence[tuple[int, int]]
"""`(rows, length)` of each group of a ragged line, in order."""


@dataclass(frozen=True, slots=True)
class Dimensions:
    """What fixes the size of a network."""

    vocab_size: int = 2048
    hidden_size: int = 192
    intermediate_size: int = 448
    num_layers: int = 8
    num_heads: int = 3
    num_kv_heads: int = 1
    head_dim: int = 64
    max_positions: int = 4096
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5


class RMSNorm(nn.Module):
    """Scale each row to unit root mean square, then by a learned weight."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class Rotary:
    """Cosines and sines for every position, `[max_positions, head_dim]`; built outside autograd, never saved."""

    def __init__(self, dims: Dimensions) -> None:
        exponents = torch.arange(0, dims.head_dim, 2, dtype=torch.float32) / dims.head_dim
        angles = torch.outer(torch.arange(dims.max_positions, dtype=torch.float32), dims.rope_theta**-exponents)
        angles = torch.cat((angles, angles), dim=-1)
        self.cos = angles.cos()
        self.sin = angles.sin()

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """`positions: [...]` -> cosines and sines `[..., 1, head_dim]`, ready to broadcast over heads."""
        if self.cos.device != positions.device:
            self.cos, self.sin = self.cos.to(positions.device), self.sin.to(positions.device)
        return self.cos[positions].unsqueeze(-2), self.sin[positions].unsqueeze(-2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn `x: [..., heads, head_dim]` by its position's angle."""
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + turned * sin


def causal(length: int, device: torch.device) -> Tensor:
    """`[1, length, length]`: zero up to a query's own place, minus infinity beyond."""
    return torch.full((1, length, length), float("-inf"), device=device).triu(1)


class KeyValues:
    """One layer's keys and values for a batch of rows, `[rows, kv_heads, capacity, head_dim]`."""

    def __init__(self, rows: int, capacity: int, dims: Dimensions, device: torch.device) -> None:
        self.keys = torch.zeros(rows, dims.num_kv_heads, capacity, dims.head_dim, device=device)
        self.values = torch.zeros_like(self.keys)

    def write(self, positions: Tensor, keys: Tensor, values: Tensor) -> None:
        """`positions: [rows, length]`; `keys, values: [rows, length, kv_heads, head_dim]`. Mutates the store."""
        rows = torch.arange(positions.shape[0], device=positions.device).unsqueeze(1)
        self.keys[rows, :, positions] = keys.to(self.keys.dtype)
        self.values[rows, :, positions] = values.to(self.values.dtype)


class Attention(nn.Module):
    """Causal grouped-query attention, over a ragged line or over a key-value store."""

    def __init__(self, dims: Dimensions) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = dims.num_heads, dims.num_kv_heads, dims.head_dim
        self.q_proj = nn.Linear(dims.hidden_size, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(dims.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(dims.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, dims.hidden_size, bias=False)

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`x: [..., hidden]` -> rotated queries, rotated keys, values, each `[..., heads or kv_heads, head_dim]`."""
        lead = x.shape[:-1]
        queries = self.q_proj(x).view(*lead, self.heads, self.head_dim)
        keys = self.k_proj(x).view(*lead, self.kv_heads, self.head_dim)
        values = self.v_proj(x).view(*lead, self.kv_heads, self.head_dim)
        return rotate(queries, cos, sin), rotate(keys, cos, sin), values

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, hidden: Tensor) -> Tensor:
        """`queries: [rows, heads, length, head_dim]`, keys and values alike with `kv_heads` and `stored` for length.

        `hidden: [rows or 1, length, stored]` is minus infinity where a query must not look, else zero. Heads that
        share keys are laid end to end, so one product serves them all; at these lengths it beats torch's fused
        attention on a CPU by half, which loses its time going backwards.
        """
        rows, _, length, _ = queries.shape
        share = self.heads // self.kv_heads
        wide = queries.reshape(rows * self.kv_heads, share * length, self.head_dim)
        keys, values = keys.flatten(0, 1), values.flatten(0, 1)
        bias = hidden.to(queries.dtype).repeat(1, share, 1)
        if bias.shape[0] > 1:
            bias = bias.repeat_interleave(self.kv_heads, dim=0)
        scores = torch.baddbmm(bias, wide, keys.transpose(1, 2), alpha=self.head_dim**-0.5)
        mixed = scores.softmax(dim=-1).to(values.dtype) @ values
        return mixed.view(rows, self.heads, length, self.head_dim)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, groups: Groups) -> Tensor:
        queries, keys, values = self.project(x, cos, sin)
        outputs = []
        start = 0
        for rows, length in groups:
            end = start + rows * length
            q, k, v = (t[start:end].view(rows, length, *t.shape[1:]).transpose(1, 2) for t in (queries, keys, values))
            outputs.append(self.attend(q, k, v, causal(length, x.device)).transpose(1, 2).flatten(2).flatten(0, 1))
            start = end
        mixed: Tensor = self.o_proj(torch.cat(outputs))
        return mixed

    def step(self, x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, store: KeyValues, mask: Tensor) -> Tensor:
        """Attend over everything stored so far. `x: [rows, length, hidden]`; `mask: [rows, length, stored]`."""
        queries, keys, values = self.project(x, cos, sin)
        store.write(positions, keys, values)
        stored = mask.shape[-1]
        k, v = store.keys[:, :, :stored], store.values[:, :, :stored]
        out = self.attend(queries.transpose(1, 2), k.to(queries.dtype), v.to(queries.dtype), mask)
        mixed: Tensor = self.o_proj(out.transpose(1, 2).flatten(2))
        return mixed


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, dims: Dimensions) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dims.hidden_size, dims.intermediate_size, bias=False)
        self.up_proj = nn.Linear(dims.hidden_size, dims.intermediate_size, bias=False)
        self.down_proj = nn.Linear(dims.intermediate_size, dims.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Block(nn.Module):
    """One layer: attention and feed-forward, each behind a norm and around a residual."""

    def __init__(self, dims: Dimensions) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(dims.hidden_size, dims.norm_eps)
        self.self_attn = Attention(dims)
        self.post_attention_layernorm = RMSNorm(dims.hidden_size, dims.norm_eps)
        self.mlp = FeedForward(dims)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, groups: Groups) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, groups)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out

    def step(self, x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, store: KeyValues, mask: Tensor) -> Tensor:
        x = x + self.self_attn.step(self.input_layernorm(x), cos, sin, positions, store, mask)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Trunk(nn.Module):
    """Everything below the head; it exists for the prefix `model.` that it gives its parameters' names."""

    def __init__(self, dims: Dimensions) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(dims.vocab_size, dims.hidden_size)
        self.layers = nn.ModuleList(Block(dims) for _ in range(dims.num_layers))
        self.norm = RMSNorm(dims.hidden_size, dims.norm_eps)


class Network(nn.Module):
    """The causal language model."""

    def __init__(self, dims: Dimensions) -> None:
        super().__init__()
        self.dims = dims
        self.model = Trunk(dims)
        self.rotary = Rotary(dims)
        self._initialise()

    def _initialise(self) -> None:
        residual_scale = (2 * self.dims.num_layers) ** -0.5
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                std = 0.02 if "embed" in name else weight.shape[1] ** -0.5 * 0.5
                nn.init.normal_(
                    weight, std=std * (residual_scale if name.endswith(("o_proj.weight", "down_proj.weight")) else 1)
                )

    def forward(self, ids: Tensor, positions: Tensor, groups: Groups) -> Tensor:
        """`ids, positions: [num_tokens]` -> hidden states `[num_tokens, hidden]`, normed and ready for `head`."""
        cos, sin = self.rotary.at(positions)
        x: Tensor = self.model.embed_tokens(ids)
        for block in self.model.layers:
            x = block(x, cos, sin, groups)
        out: Tensor = self.model.norm(x)
        return out

    def head(self, hidden: Tensor) -> Tensor:
        """`hidden: [..., hidden]` -> logits `[..., vocab]`."""
        weight: Tensor = self.model.embed_tokens.weight
        return functional.linear(hidden, weight)

    def stores(self, rows: int, capacity: int) -> list[KeyValues]:
        """Make an empty key-value store for each layer."""
        device = self.model.embed_tokens.weight.device
        return [KeyValues(rows, capacity, self.dims, device) for _ in self.model.layers]

    def step(self, ids: Tensor, positions: Tensor, stores: list[KeyValues]) -> Tensor:
        """`ids, positions: [rows, length]` -> hidden states `[rows, length, hidden]`. Mutates the stores.

        A row's positions may be padded on the right: a padded slot is overwritten before anything can see it,
        since a query at position p sees positions 0 to p only.
        """
        cos, sin = self.rotary.at(positions)
        reach = int(positions.max()) + 1
        seen = torch.arange(reach, device=ids.device)
        mask = torch.zeros(1, device=ids.device).masked_fill(seen > positions.unsqueeze(-1), float("-inf"))
        x: Tensor = self.model.embed_tokens(ids)
        for index, block in enumerate(self.model.layers):
            assert isinstance(block, Block)
            x = block.step(x, cos, sin, positions, stores[index], mask)
        out: Tensor = self.model.norm(x)
        return out
