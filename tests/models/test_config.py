"""`config.json` is read strictly, in the spelling of transformers 4 and of 5, and says what it cannot run."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from engine.errors import ModelError
from engine.models.config import load_config, parse_config
from engine.models.rope import Rope, frequencies, rotations

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}
QWEN2 = LLAMA | {"architectures": ["Qwen2ForCausalLM"]}
MISTRAL = LLAMA | {"architectures": ["MistralForCausalLM"]}


def test_the_old_and_the_new_spelling_mean_the_same() -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 512}
    old = {"rope_theta": 5e5, "torch_dtype": "bfloat16", "rope_scaling": scaling | {"rope_type": "llama3"}}
    new = {"dtype": "bfloat16", "rope_parameters": scaling | {"rope_type": "llama3", "rope_theta": 5e5}}

    assert parse_config(LLAMA | old) == parse_config(LLAMA | new)
    assert parse_config(LLAMA | old).rope.kind == "llama3"
    assert parse_config(LLAMA | {"rope_scaling": {"type": "linear", "factor": 2.0}}).rope.kind == "linear"


def test_defaults_are_those_of_transformers() -> None:
    for raw, config_class in (
        (LLAMA, transformers.LlamaConfig),
        (MISTRAL, transformers.MistralConfig),
        (QWEN2, transformers.Qwen2Config),
        (LLAMA | {"architectures": ["Qwen3ForCausalLM"]}, transformers.Qwen3Config),
    ):
        ours, theirs = parse_config(raw), config_class(**raw)
        assert ours.norm_eps == theirs.rms_norm_eps
        assert ours.rope.theta == theirs.rope_parameters["rope_theta"]
        assert ours.tied == theirs.tie_word_embeddings
        assert ours.head_dim == (getattr(theirs, "head_dim", None) or 8)
        assert ours.windows[0] == theirs.sliding_window if config_class is transformers.MistralConfig else True


def test_which_layers_slide() -> None:
    window = {"use_sliding_window": True, "sliding_window": 32}
    kinds = ["sliding_attention", "full_attention"] * 2

    assert parse_config(LLAMA).windows == (None,) * 4
    assert parse_config(MISTRAL | {"sliding_window": 32}).windows == (32,) * 4
    assert parse_config(MISTRAL | {"sliding_window": None}).windows == (None,) * 4
    assert parse_config(QWEN2 | {"sliding_window": 32}).windows == (None,) * 4
    assert parse_config(QWEN2 | window | {"max_window_layers": 3}).windows == (None, None, None, 32)
    assert parse_config(QWEN2 | window | {"layer_types": kinds}).windows == (32, None, 32, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, r"architectures: expected one of LlamaForCausalLM, .*GPT2LMHeadModel"),
        ({"architectures": None}, "architectures: expected one of"),
        ({"hidden_size": "64"}, "hidden_size: expected a positive integer, got '64'"),
        ({"hidden_size": True}, "hidden_size: expected a positive integer, got True"),
        ({"vocab_size": 0}, "vocab_size: expected a positive integer, got 0"),
        ({"max_position_embeddings": None}, "max_position_embeddings: expected a positive integer, got None"),
        ({"num_key_value_heads": 3}, r"num_key_value_heads: expected a divisor of num_attention_heads \(8\), got 3"),
        ({"head_dim": 7}, "head_dim: expected an even number, got 7"),
        ({"hidden_act": "gelu"}, "hidden_act: expected one of silu, got 'gelu'"),
        ({"rms_norm_eps": -1e-6}, "rms_norm_eps: expected a positive number"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: expected none"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings: expected true or false, got 1"),
        ({"dtype": "float8"}, "dtype: expected one of float32, bfloat16, float16, got 'float8'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "type: expected one of default, linear, llama3, yarn"),
        ({"rope_scaling": [1]}, "rope_scaling: expected an object"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope_parameters: factor: expected a positive number, got None"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: expected 1, got 0.5"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(change: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        parse_config(LLAMA | change)


def test_layer_types_must_fit() -> None:
    with pytest.raises(ModelError, match=r"layer_types: expected a list of num_hidden_layers \(4\) names"):
        parse_config(QWEN2 | {"layer_types": ["full_attention"]})
    with pytest.raises(ModelError, match="layer_types: expected full_attention or sliding_attention"):
        parse_config(QWEN2 | {"layer_types": ["linear_attention"] * 4})
    with pytest.raises(ModelError, match="only full_attention while no sliding window is in use"):
        parse_config(QWEN2 | {"layer_types": ["sliding_attention"] * 4})


def test_a_file_that_is_missing_or_broken_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json: no such file"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ModelError, match=r"config\.json: expected a JSON object, got list"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json: "):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    assert load_config(tmp_path).num_layers == 4


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 3.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 512,
        },
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256, "truncate": False},
        {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 128, "attention_factor": 1.5},
        {
            "rope_type": "yarn",
            "factor": 8.0,
            "original_max_position_embeddings": 128,
            "mscale": 0.7,
            "mscale_all_dim": 1.1,
        },
        {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 512, "beta_fast": 16, "beta_slow": 2},
    ],
)
def test_scaled_angles_are_those_of_transformers(scaling: dict[str, object]) -> None:
    raw = LLAMA | {"head_dim": 64, "rope_parameters": scaling | {"rope_theta": 20_000.0}}
    theirs = transformers.LlamaConfig(**{key: value for key, value in raw.items() if key != "architectures"})
    expected, magnitude = ROPE_INIT_FUNCTIONS[str(scaling["rope_type"])](theirs, torch.device("cpu"))
    rope = parse_config(raw).rope

    torch.testing.assert_close(frequencies(rope, 64), expected, rtol=1e-6, atol=0)
    assert rope.magnitude == pytest.approx(magnitude)


def test_rotations_turn_by_position_times_frequency() -> None:
    turns = rotations(Rope(theta=100.0, magnitude=2.0), head_dim=4, num_positions=50)

    assert turns.shape == (50, 1, 2)
    torch.testing.assert_close(turns[30, 0].angle(), torch.tensor([30 - 2 * torch.pi * 5, 3.0]), rtol=0, atol=1e-5)
    torch.testing.assert_close(turns.abs(), torch.full((50, 1, 2), 2.0))
