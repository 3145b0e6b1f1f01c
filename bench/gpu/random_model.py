"""A model of given sizes with random weights, made where it runs: speed does not depend on what they are."""

import torch
from torch import Tensor

from engine.device import Device
from engine.models.config import ModelConfig
from engine.models.device_decoder import DeviceDecoder
from engine.models.linear import Linear
from engine.models.norm import Norm
from engine.models.rope import Rope
from engine.models.weights import Layer, Weights

LLAMA_8B = ModelConfig(
    family="llama",
    vocab_size=128_256,
    hidden_size=4096,
    intermediate_size=14_336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    max_positions=16_384,
    norm_eps=1e-5,
    rope=Rope(theta=500_000.0),
    windows=(None,) * 32,
    qkv_bias=False,
    output_bias=False,
    mlp_bias=False,
    tied=False,
    dtype="bfloat16",
)


def small(config: ModelConfig) -> ModelConfig:
    """Give the same shape of model, small enough for the emulator."""
    sizes = {"vocab_size": 320, "hidden_size": 256, "intermediate_size": 320, "num_layers": 2, "windows": (None,) * 2}
    heads = {"num_heads": 4, "num_kv_heads": 1, "head_dim": 64, "max_positions": 256}
    fields = {name: getattr(config, name) for name in config.__slots__}
    return ModelConfig(**{**fields, **sizes, **heads})


def random_decoder(device: Device, config: ModelConfig) -> DeviceDecoder:
    """Make it in bfloat16."""

    def weight(*shape: int) -> Tensor:
        if device.torch_device.type == "cuda":
            made = torch.empty(shape, device=device.torch_device, dtype=torch.bfloat16)
            return made.normal_(std=0.02)
        return device.upload((torch.randn(shape) * 0.02).to(torch.bfloat16))

    def norm() -> Norm:
        return Norm(device.upload(torch.ones(hidden, dtype=torch.bfloat16)), config.norm_eps)

    hidden, inner = config.hidden_size, config.intermediate_size
    queries, both = config.num_heads * config.head_dim, (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    layers = [
        Layer(
            attention_norm=norm(),
            qkv=Linear(weight(both, hidden)),
            qk_norms=None,
            output=Linear(weight(hidden, queries)),
            mlp_norm=norm(),
            gate_up=Linear(weight(2 * inner, hidden)),
            down=Linear(weight(hidden, inner)),
        )
        for _ in range(config.num_layers)
    ]
    weights = Weights(weight(config.vocab_size, hidden), layers, norm(), Linear(weight(config.vocab_size, hidden)))
    return DeviceDecoder(device, config, weights, config.max_positions)
