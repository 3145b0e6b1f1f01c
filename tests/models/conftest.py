"""Small random models of every family, saved as Hugging Face directories, with transformers as the reference."""

import contextlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from engine.cpu_runner import CpuRunner, load_cpu_runner

VOCAB = 256
NUM_HEADS = 8
HEAD_DIM = 8
WINDOW = 20
MIN_GAP = 1e-3
FAMILIES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, {}),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM, {"sliding_window": WINDOW}),
    "qwen2": (
        transformers.Qwen2Config,
        transformers.Qwen2ForCausalLM,
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM, {}),
}


@dataclass
class Reference:
    """One random model: where it is saved, and what transformers says about it."""

    directory: Path
    model: Any
    answers: dict[tuple[tuple[int, ...], int], list[int]] = field(default_factory=dict)

    def logits(self, token_ids: list[int]) -> torch.Tensor:
        """`[len(token_ids), vocab]`."""
        with torch.inference_mode():
            return self.model(torch.tensor([token_ids])).logits[0]

    def greedy(self, prompt: tuple[int, ...], num_tokens: int) -> list[int] | None:
        """Decode greedily; None when the two likeliest tokens were closer than rounding may tell apart."""
        with torch.inference_mode():
            result = self.model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=num_tokens,
                min_new_tokens=num_tokens,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        top = torch.cat(result.logits).topk(2).values
        if bool((top[:, 0] - top[:, 1] < MIN_GAP).any()):
            return None
        return result.sequences[0, len(prompt) :].tolist()

    def prompts(self, lengths: list[int], num_tokens: int) -> tuple[list[tuple[int, ...]], list[list[int]]]:
        """Give a prompt of each length, with an answer that is decided by clear margins, and these answers."""
        prompts, answers = [], []
        seed = 0
        for length in lengths:
            while True:
                seed += 1
                drawn = torch.randint(0, VOCAB, (length,), generator=torch.Generator().manual_seed(seed))
                prompt = tuple(drawn.tolist())
                answer = self.greedy(prompt, num_tokens)
                if answer is not None:
                    break
            prompts.append(prompt)
            answers.append(answer)
        return prompts, answers

    def runner(self, kv_bytes: int = 8 << 20) -> CpuRunner:
        """Load it into the engine, in float32."""
        return load_cpu_runner(self.directory, dtype="float32", kv_bytes=kv_bytes)


def make_model(directory: Path, family: str, *, seed: int = 0, max_shard_size: str = "5GB", **fields: Any) -> Reference:
    """Build, randomise and save a model. Norms and biases are made uneven, so that none of them can be forgotten."""
    config_class, model_class, own = FAMILIES[family]
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": NUM_HEADS, "head_dim": HEAD_DIM}
    sizes |= {"num_key_value_heads": 2, **own, **fields}
    if family == "qwen2":
        del sizes["head_dim"]  # which follows from the others there
    config = config_class(
        vocab_size=VOCAB,
        num_hidden_layers=3,
        max_position_embeddings=256,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        **sizes,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(config).eval()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "bias" in name or "norm" in name:
                    weight.add_(torch.randn_like(weight) * 0.2)
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar
        model.save_pretrained(directory, max_shard_size=max_shard_size)
    return Reference(directory, model)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Products this small are slower on two threads, and much slower when another process has one of the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Reference]:
    """Make a model once a session for each set of arguments."""
    made: dict[str, Reference] = {}

    def build(family: str, **fields: Any) -> Reference:
        key = f"{family}-{sorted(fields.items())}"
        if key not in made:
            made[key] = make_model(tmp_path_factory.mktemp(family), family, **fields)
        return made[key]

    return build
