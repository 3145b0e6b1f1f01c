"""What the runner chooses by itself: the type of `auto`, and one thread for a step with little to divide."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from engine.cpu_runner import choose_dtype
from engine.models.config import load_config
from engine.threads import SMALL_STEP, set_threads, threads_for


@pytest.fixture
def two_threads() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_a_small_step_runs_on_one_thread_and_gives_the_others_back() -> None:
    with threads_for(SMALL_STEP):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    with threads_for(SMALL_STEP + 1):
        assert torch.get_num_threads() == 2
    with pytest.raises(ValueError, match="broken"), threads_for(1):
        raise ValueError("broken")
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_the_number_of_threads_can_be_set() -> None:
    assert set_threads(1) == 1
    assert set_threads(None) >= 1


def test_auto_is_bfloat16_only_for_a_large_bfloat16_checkpoint(
    build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = dataclasses.replace(load_config(build("llama").directory), dtype="bfloat16")
    large = dataclasses.replace(small, vocab_size=2_000_000)
    for native in (True, False):
        monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda native=native: native)
        monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)

        assert choose_dtype(small) == "float32"
        assert choose_dtype(large) == ("bfloat16" if native else "float32")
        assert choose_dtype(dataclasses.replace(large, dtype="float32")) == "float32"


def test_the_number_of_parameters_is_that_of_the_weights(build: Callable[..., Any]) -> None:
    reference = build("qwen3", tie_word_embeddings=False)
    expected = sum(weight.numel() for weight in reference.model.parameters() if weight.dim() == 2)

    assert load_config(reference.directory).num_parameters == expected
