"""`python -m engine bench`: tokens per second beside transformers, in one run, on the same model, type and threads.

Requests are seeded: prompts of 16 to 512 random tokens, greedy answers of 16 to 256. Each round runs every arm once, in
turn, so that whatever else the machine does meets all arms alike; medians over the rounds are printed, and the ratio to
the peer's best arm. Models: the demo one (or one of its shape with random weights) and a random one of 100 million
parameters, or any directory.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from safetensors.torch import save_file

from engine.config import EngineConfig
from engine.cpu_runner import DTYPES, CpuRunner, choose_dtype, load_cpu_runner
from engine.errors import EngineError
from engine.load import model_directory
from engine.loop import Engine
from engine.models.config import load_config
from engine.output import GenerateRequest, Output
from engine.params import SamplingParams
from engine.peer import Peer, Request, Run
from engine.threads import set_threads

DEMO_SHAPE = {
    "vocab_size": 2048,
    "hidden_size": 192,
    "intermediate_size": 448,
    "num_hidden_layers": 8,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
}
LARGE_SHAPE = {
    "vocab_size": 32000,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
}
PROMPT_TOKENS = (16, 512)
ANSWER_TOKENS = (16, 256)
NUM_SINGLE = 3
"""How many requests the one-stream arms answer, one behind the other."""


class Arm(NamedTuple):
    """One way to serve the requests."""

    name: str
    run: Callable[[Sequence[Request]], Run]


def main(argv: Sequence[str]) -> int:
    """Measure and print. The status: 0 done, 1 a model is wrong or the peer is missing."""
    options = _parser().parse_args(argv)
    threads = set_threads(options.threads)
    print(f"torch {torch.__version__}, {threads} threads, {options.rounds} rounds, seed {options.seed}", flush=True)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            for name, directory in _models(options.model, Path(scratch), options.seed):
                _measure(name, directory, options)
    except EngineError as error:
        print(f"engine: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m engine bench", description="Measure tokens per second beside transformers."
    )
    parser.add_argument(
        "--model",
        action="append",
        metavar="DIR",
        help="a Hugging Face directory, demo or 100m (random); may be repeated; default: demo and 100m",
    )
    parser.add_argument("--dtype", default="auto", choices=["auto", *DTYPES], help="of both sides")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads of both sides; default: the cores")
    parser.add_argument("--requests", type=int, default=16, metavar="N", help="how many at once (16)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="how often each arm runs (3)")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--no-peer", action="store_true", help="the engine alone")
    return parser


def _models(names: Sequence[str] | None, scratch: Path, seed: int) -> list[tuple[str, Path]]:
    models = []
    for name in names or ("demo", "100m"):
        directory = model_directory(name)
        if name == "100m":
            models.append(("random, 100M parameters", write_random_model(scratch / name, LARGE_SHAPE, seed)))
        elif name == "demo" and not (directory / "config.json").exists():
            models.append(("random, the demo's shape", write_random_model(scratch / name, DEMO_SHAPE, seed)))
        else:
            models.append((name, directory))
    return models


def write_random_model(directory: Path, shape: dict[str, int], seed: int) -> Path:
    """Write a Llama with random bfloat16 weights as a Hugging Face directory, without a tokenizer; tied head."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "head_dim": 64,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        **shape,
    }
    generator = torch.Generator().manual_seed(seed)
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    query, kv = shape["num_attention_heads"] * 64, shape["num_key_value_heads"] * 64
    tensors = {"model.norm.weight": torch.ones(hidden)}

    def draw(name: str, outputs: int, inputs: int, scale: float = 1.0) -> None:
        tensors[name] = torch.randn(outputs, inputs, generator=generator) * scale * inputs**-0.5

    draw("model.embed_tokens.weight", shape["vocab_size"], hidden)
    for layer in range(shape["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{norm}.weight"] = torch.ones(hidden)
        draw(f"{prefix}self_attn.q_proj.weight", query, hidden)
        draw(f"{prefix}self_attn.k_proj.weight", kv, hidden)
        draw(f"{prefix}self_attn.v_proj.weight", kv, hidden)
        draw(f"{prefix}self_attn.o_proj.weight", hidden, query)
        draw(f"{prefix}mlp.gate_proj.weight", inner, hidden)
        draw(f"{prefix}mlp.up_proj.weight", inner, hidden)
        draw(f"{prefix}mlp.down_proj.weight", hidden, inner)
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    bfloat16 = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    save_file(bfloat16, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def workload(num_requests: int, vocab_size: int, seed: int) -> list[Request]:
    """Draw requests: lengths uniform within their bounds, tokens uniform over the vocabulary."""
    generator = torch.Generator().manual_seed(seed)

    def between(bounds: tuple[int, int]) -> int:
        return int(torch.randint(bounds[0], bounds[1] + 1, (1,), generator=generator))

    requests = []
    for _ in range(num_requests):
        num_prompt, num_tokens = between(PROMPT_TOKENS), between(ANSWER_TOKENS)
        prompt = torch.randint(0, vocab_size, (num_prompt,), generator=generator)
        requests.append(Request(tuple(prompt.tolist()), num_tokens))
    return requests


class Ours:
    """The engine's arms, over one runner, whole steps with everything but text (the random models have none)."""

    def __init__(self, runner: CpuRunner) -> None:
        self._runner = runner
        self.share_outside = 0.0

    def one_by_one(self, requests: Sequence[Request]) -> Run:
        """One request at a time."""
        runs = [self.together([request]) for request in requests]
        return Run(sum(run.seconds for run in runs), [answer for run in runs for answer in run.answers])

    def together(self, requests: Sequence[Request]) -> Run:
        """All requests at once."""
        answers: list[list[int]] = [[] for _ in requests]

        def deliver(outputs: list[Output]) -> None:
            for output in outputs:
                if output.error is not None:
                    raise EngineError(output.error)
                answers[int(output.request_id)] += output.token_ids

        engine = Engine(self._runner, EngineConfig(prefix_cache=False), None, deliver)
        started = time.perf_counter()
        for number, request in enumerate(requests):
            params = SamplingParams(max_tokens=request.num_tokens, temperature=0.0)
            engine.submit(GenerateRequest(str(number), request.prompt_ids, params))
        while engine.has_work:
            engine.step()
        seconds = time.perf_counter() - started
        self.share_outside = engine.stats.step_share_outside_model
        return Run(seconds, [tuple(answer) for answer in answers])


def _measure(name: str, directory: Path, options: argparse.Namespace) -> None:
    config = load_config(directory)
    dtype = choose_dtype(config) if options.dtype == "auto" else options.dtype
    requests = workload(options.requests, config.vocab_size, options.seed)
    many = workload(32, config.vocab_size, options.seed + 1)
    per_token = config.kv_elements_per_token * DTYPES[dtype].itemsize
    room = sum(len(request.prompt_ids) + request.num_tokens + 32 for request in many + requests)
    ours = Ours(load_cpu_runner(directory, dtype=dtype, kv_bytes=room * per_token))
    peer = None if options.no_peer else Peer(directory, DTYPES[dtype])
    single = [Arm("penstock", ours.one_by_one)]
    batch = [Arm("penstock", ours.together)]
    if peer is not None:
        package = f"transformers {peer.version}"
        single.append(Arm(f"{package} generate", peer.one_by_one))
        batch += [
            Arm(f"{package} generate, one batch", peer.together),
            Arm(f"{package} generate, halves sorted by length", peer.in_halves),
            Arm(f"{package} continuous batching", peer.continuously),
        ]
    print(f"\n{name}: {dtype}", flush=True)
    _table("one stream", single, requests[:NUM_SINGLE], options.rounds)
    _table(f"{options.requests} requests", batch, requests, options.rounds)
    shares = []
    for _ in range(options.rounds):
        ours.together(many)
        shares.append(ours.share_outside)
    print(f"  the engine's own share of a step at 32 sequences  {median(shares):.1%}", flush=True)


def _table(title: str, arms: Sequence[Arm], requests: Sequence[Request], rounds: int) -> None:
    """Run the arms in turn and print medians of tokens/s; a first, uncounted turn warms them up."""
    num_tokens = sum(request.num_tokens for request in requests)
    runs = {arm.name: [arm.run(requests)] for arm in arms}
    for _ in range(rounds):
        for arm in arms:
            runs[arm.name].append(arm.run(requests))
    speeds = {name: median(num_tokens / run.seconds for run in done[1:]) for name, done in runs.items()}
    own, *others = arms
    print(f"  {title}: {sum(len(request.prompt_ids) for request in requests)} prompt tokens, {num_tokens} generated")
    for arm in arms:
        answers, first = runs[arm.name][-1].answers, runs[own.name][-1].answers
        equal = sum(answer == reference for answer, reference in zip(answers, first, strict=True))
        same = "" if arm is own else f"   {equal} of {len(first)} answers equal to ours"
        print(f"    {arm.name:<52} {speeds[arm.name]:9.1f} tokens/s{same}")
    if others:
        best = max(speeds[arm.name] for arm in others)
        print(f"    {'ratio to its best arm':<52} {speeds[own.name] / best:9.2f} ×")
    sys.stdout.flush()
