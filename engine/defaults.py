"""What a model's makers recommend for sampling, where a request says nothing (`generation_config.json`)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from engine.errors import ModelError
from engine.text.tokenizer import read_json


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """Values for `SamplingParams` fields of the same names. A field that the file does not name is off.

    `do_sample` is not looked at: a request that wants greedy decoding says temperature 0.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    @classmethod
    def from_dir(cls, path: Path) -> "GenerationDefaults":
        """Read a model directory. Raises `ModelError` with the key and the value that came."""
        given = read_json(path / "generation_config.json")
        values = {field.name: _number(given, field.name, field.default) for field in fields(cls)}
        return cls(
            temperature=values["temperature"],
            top_k=max(int(values["top_k"]), 0),  # −1 is off too
            top_p=values["top_p"],
            min_p=values["min_p"],
            repetition_penalty=values["repetition_penalty"],
        )


def _number(given: Mapping[str, object], key: str, default: object) -> float:
    value = given.get(key)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ModelError(f"generation_config.json: {key}: expected a number, got {value!r}")
    return value
