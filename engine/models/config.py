"""A checkpoint's `config.json`, read strictly: what this engine cannot compute exactly it refuses by name."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.errors import ModelError
from engine.models.rope import Rope

FAMILIES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
ROPE_KINDS = ("default", "linear", "llama3", "yarn")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The numbers that fix a decoder. `windows` holds each layer's sliding window in tokens, or None."""

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    norm_eps: float
    rope: Rope
    windows: tuple[int | None, ...]
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    tied: bool
    dtype: str

    @property
    def kv_elements_per_token(self) -> int:
        """How many numbers one token's keys and values are, over all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim

    @property
    def num_parameters(self) -> int:
        """How many weights, norms and biases left out."""
        attention = 2 * (self.num_heads + self.num_kv_heads) * self.head_dim * self.hidden_size
        layer = attention + 3 * self.hidden_size * self.intermediate_size
        return self.num_layers * layer + (1 if self.tied else 2) * self.vocab_size * self.hidden_size


class _Fields:
    """`config.json` with the checks that each reading of it wants."""

    def __init__(self, raw: Mapping[str, object], where: str) -> None:
        self.raw = raw
        self.where = where

    def fail(self, name: str, expected: str, came: object) -> ModelError:
        return ModelError(f"{self.where}: {name}: expected {expected}, got {came!r}")

    def count(self, name: str, default: int | None = None) -> int:
        value = self.raw.get(name)
        if value is None:
            value = default
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.fail(name, "a positive integer", value)
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self.raw.get(name)
        if value is None:
            value = default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
            raise self.fail(name, "a positive number", value)
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.raw.get(name, default)
        if not isinstance(value, bool):
            raise self.fail(name, "true or false", value)
        return value

    def one_of(self, name: str, allowed: tuple[str, ...], default: str) -> str:
        value = self.raw.get(name)
        if value is None:
            value = default
        if value not in allowed:
            raise self.fail(name, "one of " + ", ".join(allowed), value)
        return str(value)

    def inner(self, name: str) -> "_Fields | None":
        value = self.raw.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.fail(name, "an object", value)
        return _Fields(value, f"{self.where}: {name}")


def read_json(path: Path) -> dict[str, object]:
    """Read one JSON object. Raises `ModelError` naming the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def load_config(directory: Path) -> ModelConfig:
    """Read `config.json`, of transformers 4 (`rope_theta`, `torch_dtype`) or 5 (`rope_parameters`, `dtype`)."""
    path = directory / "config.json"
    return parse_config(read_json(path), str(path))


def parse_config(raw: Mapping[str, object], where: str = "config.json") -> ModelConfig:
    """Check every field that changes what is computed. Raises `ModelError` with what was expected and what came."""
    fields = _Fields(raw, where)
    names = raw.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or names[0] not in FAMILIES:
        raise fields.fail("architectures", "one of " + ", ".join(FAMILIES), names)
    family = FAMILIES[names[0]]
    if raw.get("quantization_config") is not None:
        raise fields.fail("quantization_config", "none", raw["quantization_config"])
    fields.one_of("hidden_act", ("silu",), "silu")

    hidden_size = fields.count("hidden_size")
    num_layers = fields.count("num_hidden_layers")
    num_heads = fields.count("num_attention_heads")
    num_kv_heads = fields.count("num_key_value_heads", num_heads)
    head_dim = fields.count("head_dim", 128 if family == "qwen3" else hidden_size // num_heads)
    max_positions = fields.count("max_position_embeddings")
    attention_bias = fields.flag("attention_bias", False) if family in ("llama", "qwen3") else False
    if num_heads % num_kv_heads:
        raise fields.fail("num_key_value_heads", f"a divisor of num_attention_heads ({num_heads})", num_kv_heads)
    if head_dim % 2:
        raise fields.fail("head_dim", "an even number", head_dim)
    return ModelConfig(
        family=family,
        vocab_size=fields.count("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.count("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_positions=max_positions,
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        rope=_rope(fields, max_positions),
        windows=_windows(fields, family, num_layers),
        qkv_bias=attention_bias or family == "qwen2",
        output_bias=attention_bias,
        mlp_bias=fields.flag("mlp_bias", False) if family == "llama" else False,
        tied=fields.flag("tie_word_embeddings", False),
        dtype=fields.one_of("dtype", DTYPES, fields.one_of("torch_dtype", DTYPES, "float32")),
    )


def _rope(fields: _Fields, max_positions: int) -> Rope:
    inner = fields.inner("rope_parameters") or fields.inner("rope_scaling") or _Fields({}, fields.where)
    theta = inner.number("rope_theta", fields.number("rope_theta", 10000.0))
    kind = inner.one_of("rope_type", ROPE_KINDS, inner.one_of("type", ROPE_KINDS, "default"))
    for holder in (fields, inner):
        if holder.number("partial_rotary_factor", 1.0) != 1.0:
            raise holder.fail("partial_rotary_factor", "1", holder.raw["partial_rotary_factor"])
    if kind == "default":
        return Rope(theta=theta)
    if kind == "linear":
        return Rope(kind, theta, factor=inner.number("factor"))
    trained = fields.count("original_max_position_embeddings", max_positions)
    trained = inner.count("original_max_position_embeddings", trained)
    if kind == "llama3":
        low, high = inner.number("low_freq_factor"), inner.number("high_freq_factor")
        if high <= low:
            raise inner.fail("high_freq_factor", f"more than low_freq_factor ({low})", high)
        factor = inner.number("factor")
        return Rope(kind, theta, factor=factor, trained_positions=trained, low_freq_factor=low, high_freq_factor=high)
    factor = inner.number("factor", max_positions / trained)
    return Rope(
        kind,
        theta,
        factor=factor,
        trained_positions=trained,
        beta_fast=inner.number("beta_fast", 32.0),
        beta_slow=inner.number("beta_slow", 1.0),
        magnitude=inner.number("attention_factor", _yarn_magnitude(inner, factor)),
        truncate=inner.flag("truncate", True),
    )


def _yarn_magnitude(inner: _Fields, factor: float) -> float:
    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if inner.raw.get("mscale") and inner.raw.get("mscale_all_dim"):
        return scale(inner.number("mscale")) / scale(inner.number("mscale_all_dim"))
    return scale(1.0)


def _windows(fields: _Fields, family: str, num_layers: int) -> tuple[int | None, ...]:
    if family == "llama":
        return (None,) * num_layers
    if family == "mistral":
        # transformers' default when the field is absent; null means none
        window = None if fields.raw.get("sliding_window", 4096) is None else fields.count("sliding_window", 4096)
        return (window,) * num_layers
    if not fields.flag("use_sliding_window", False) or fields.raw.get("sliding_window", 4096) is None:
        window = None
    else:
        window = fields.count("sliding_window", 4096)
    kinds = fields.raw.get("layer_types")
    if kinds is None:
        first = fields.raw.get("max_window_layers", 28)
        if isinstance(first, bool) or not isinstance(first, int) or first < 0:
            raise fields.fail("max_window_layers", "an integer of at least 0", first)
        return tuple(window if layer >= first else None for layer in range(num_layers))
    if not isinstance(kinds, list) or len(kinds) != num_layers:
        raise fields.fail("layer_types", f"a list of num_hidden_layers ({num_layers}) names", kinds)
    if set(kinds) - {"full_attention", "sliding_attention"}:
        raise fields.fail("layer_types", "full_attention or sliding_attention", kinds)
    if window is None and "sliding_attention" in kinds:
        raise fields.fail("layer_types", "only full_attention while no sliding window is in use", kinds)
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
