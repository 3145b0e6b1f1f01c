"""Rotary positions: from a checkpoint's scaling rule to one complex number a position and a pair of dimensions.

A head of D dimensions is D/2 points in the plane; position p turns the i-th of them by p·ω_i. The scaling rules
stretch the slow ω (long wavelengths) so that a model reads further than it was trained: `linear` all alike
(https://arxiv.org/abs/2306.15595), `llama3` and `yarn` (https://arxiv.org/abs/2309.00071) only those whose wavelength
exceeds the trained context, with a ramp between. `dynamic` is refused: its angles depend on the final length, so keys
that were cached earlier would be wrong.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rope:
    """What `config.json` says about rotary positions. `kind` is default, linear, llama3 or yarn."""

    kind: str = "default"
    theta: float = 10000.0
    factor: float = 1.0
    trained_positions: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    magnitude: float = 1.0
    truncate: bool = True


def frequencies(rope: Rope, head_dim: int) -> Tensor:
    """Give ω, `[head_dim / 2]` float32, in radians a position."""
    pace = 1.0 / (rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim))
    if rope.kind == "linear":
        return pace / rope.factor
    if rope.kind == "llama3":
        return _llama3(rope, pace)
    if rope.kind == "yarn":
        return _yarn(rope, pace, head_dim)
    assert rope.kind == "default", rope.kind
    return pace


def rotations(rope: Rope, head_dim: int, num_positions: int) -> Tensor:
    """Give the turn of every position, `[num_positions, 1, head_dim / 2]` complex64, ready to broadcast over heads."""
    angles = torch.outer(torch.arange(num_positions, dtype=torch.float32), frequencies(rope, head_dim))
    return torch.polar(torch.full_like(angles, rope.magnitude), angles).unsqueeze(1)


def _llama3(rope: Rope, pace: Tensor) -> Tensor:
    turns = rope.trained_positions * pace / (2 * math.pi)  # full turns within the trained context
    smooth = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    smooth = smooth.clamp(0, 1)
    return pace / rope.factor * (1 - smooth) + pace * smooth


def _yarn(rope: Rope, pace: Tensor, head_dim: int) -> Tensor:
    def dimension(num_turns: float) -> float:
        return head_dim * math.log(rope.trained_positions / (num_turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)).clamp(0, 1)
    return pace / rope.factor * ramp + pace * (1 - ramp)
