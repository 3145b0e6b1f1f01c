"""Train the demo model, then its draft, and export both.

    python -m engine.demo.train --work DIR [--steps N] [--draft-steps N] [--threads N] [--device cpu|cuda]

Everything goes by steps, not by the clock: a run that is stopped at any moment and started again with the same
`--work` goes on from its last checkpoint and reads on where it stood. Matrices inside the blocks are trained by
Muon (https://kellerjordan.github.io/posts/muon/), all else by Adam; the rate warms up, holds, and falls to
nothing over the last part (https://arxiv.org/abs/2405.18392). The draft learns the model's own distribution, not
the text: what counts for it is to guess what the model will say.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from engine.demo import corpus, vocabulary
from engine.demo.batches import NOT_LEARNED, Batch, Documents, lay_out
from engine.demo.evaluate import score
from engine.demo.export import DRAFT_DIR, MODEL_DIR, export
from engine.demo.network import Dimensions, Network
from engine.demo.vocabulary import Marker

DIMENSIONS = Dimensions()
DRAFT_DIMENSIONS = Dimensions(num_layers=1)
_NUM_TOKENIZER_DOCUMENTS = 20_000


@dataclass(frozen=True, slots=True)
class Plan:
    """One run: what to call its checkpoint, how long, how fast."""

    name: str
    steps: int
    num_tokens: int
    """Tokens of text in a step."""
    seed: int
    muon_rate: float = 0.01
    adam_rate: float = 1.5e-3
    warm_steps: int = 60
    falling_share: float = 0.5
    max_length: int = 1024
    save_every: int = 200
    watch_every: int = 400
    """Steps between looks at validation, which cost time; a multiple of `save_every`; 0 for never."""

    def rate(self, step: int) -> float:
        """The share of the full rate at a step."""
        fall = max(1, round(self.steps * self.falling_share))
        return min(1.0, (step + 1) / self.warm_steps, (self.steps - step) / fall)


class Optimisers:
    """Muon for the blocks' matrices, Adam for the embedding and the norms."""

    def __init__(self, network: Network, plan: Plan) -> None:
        matrices = [p for name, p in network.named_parameters() if p.dim() == 2 and "embed" not in name]
        others = [p for name, p in network.named_parameters() if p.dim() != 2 or "embed" in name]
        self.plan = plan
        self.muon: torch.optim.Optimizer = torch.optim.Muon(
            matrices, lr=plan.muon_rate, weight_decay=0.01, momentum=0.95
        )
        self.adam = torch.optim.Adam(others, lr=plan.adam_rate, betas=(0.9, 0.95))
        self.rates: tuple[tuple[torch.optim.Optimizer, float], ...] = (
            (self.muon, plan.muon_rate),
            (self.adam, plan.adam_rate),
        )

    def step(self, step: int) -> None:
        share = self.plan.rate(step)
        for optimiser, full in self.rates:
            for group in optimiser.param_groups:
                group["lr"] = full * share
            optimiser.step()
            optimiser.zero_grad()


def tokenizer_of(work: Path) -> Tokenizer:
    """The run's tokenizer, learned once."""
    path = work / "tokenizer.json"
    if not path.exists():
        vocabulary.learn(corpus.document(0, index) for index in range(_NUM_TOKENIZER_DOCUMENTS)).save(str(path))
    return Tokenizer.from_file(str(path))


Loss: TypeAlias = Callable[[Network, Batch], Tensor]


def text_loss(network: Network, batch: Batch) -> Tensor:
    """Cross entropy, summed over the tokens to learn."""
    hidden = network(batch.ids, batch.positions, batch.groups)
    return functional.cross_entropy(network.head(hidden[batch.rows]).float(), batch.targets, reduction="sum")


def imitation_loss(model: Network, draft: Network, batch: Batch) -> Tensor:
    """How far the draft's distribution is from the model's, half in cross entropy against the model's first choice."""
    with torch.no_grad():
        wanted = model.head(model(batch.ids, batch.positions, batch.groups)[batch.rows]).float()
    hidden = draft(batch.ids, batch.positions, batch.groups)
    got = draft.head(hidden[batch.rows]).float()
    learned = batch.targets != NOT_LEARNED
    got, wanted = got[learned], wanted[learned]
    apart = functional.kl_div(got.log_softmax(-1), wanted.log_softmax(-1), log_target=True, reduction="sum")
    return 0.5 * apart + 0.5 * functional.cross_entropy(got, wanted.argmax(-1), reduction="sum")


class Workers:
    """The calling thread and others, each taking a part of a step's documents through the network on one torch thread.

    They meet once a step instead of once an operation, which is a third faster on two idle cores and keeps
    its speed when the cores are shared with others.
    """

    def __init__(self, network: Network, loss: Loss, marker: Marker, count: int) -> None:
        self.network, self.loss, self.marker, self.count = network, loss, marker, count
        self.parameters = list(network.parameters())
        self.others = ThreadPoolExecutor(count - 1) if count > 1 else None

    def _part(self, documents: list[list[int]]) -> tuple[float, int, Sequence[Tensor]]:
        device = self.parameters[0].device
        batch = lay_out(documents, self.marker).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            loss = self.loss(self.network, batch)
        return loss.item(), int((batch.targets != NOT_LEARNED).sum()), torch.autograd.grad(loss, self.parameters)

    def gradients(self, documents: list[list[int]]) -> float:
        """Leave the gradient of the mean loss in the parameters; returns that loss."""
        shares = [documents[start :: self.count] for start in range(self.count)]
        begun = self.others.map(self._part, shares[1:]) if self.others else iter(())
        parts = [self._part(shares[0]), *begun]
        learned = sum(count for _, count, _ in parts)
        for place, parameter in enumerate(self.parameters):
            parameter.grad = sum((grads[place] for _, _, grads in parts[1:]), parts[0][2][place]) / learned
        return sum(loss for loss, _, _ in parts) / learned


class Progress:
    """A line on the terminal (or now and then in a log): step, loss, speed, time left."""

    def __init__(self, plan: Plan, first_step: int) -> None:
        self.plan, self.first_step = plan, first_step
        self.loss = 0.0
        self.num_tokens = 0
        self.started = time.monotonic()

    def show(self, step: int, loss: float, num_tokens: int) -> None:
        self.loss = loss if step == self.first_step else 0.97 * self.loss + 0.03 * loss
        self.num_tokens += num_tokens
        spent = time.monotonic() - self.started
        left = spent / (step + 1 - self.first_step) * (self.plan.steps - step - 1)
        filled = round(24 * (step + 1) / self.plan.steps)
        live = sys.stderr.isatty()
        if live or (step + 1) % 25 == 0:
            bar = f"[{'#' * filled}{'.' * (24 - filled)}]"
            speed = self.num_tokens / spent
            print(
                f"{self.plan.name} {bar} {step + 1}/{self.plan.steps}  loss {self.loss:.4f}  "
                f"{speed:,.0f} tokens/s  {left / 60:.1f} min left",
                end="\r" if live else "\n",
                file=sys.stderr,
                flush=True,
            )


def _save(path: Path, state: dict[str, object]) -> None:
    """All or nothing, so that a run killed while saving can still go on."""
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)


def run(
    plan: Plan, network: Network, tokenizer: Tokenizer, work: Path, loss: Loss, threads: int, stop_at: int | None
) -> None:
    """Train the network in place, from the last checkpoint on if there is one."""
    device = network.model.embed_tokens.weight.device
    optimisers = Optimisers(network, plan)
    documents = Documents(tokenizer, plan.seed, plan.max_length)
    path, first, seconds, num_tokens = work / f"{plan.name}.pt", 0, 0.0, 0
    if path.exists():
        state = torch.load(path, map_location=device, weights_only=True)
        network.load_state_dict(state["network"])
        optimisers.muon.load_state_dict(state["muon"])
        optimisers.adam.load_state_dict(state["adam"])
        documents.place, first, seconds, num_tokens = (
            state["place"],
            state["step"],
            state["seconds"],
            state["num_tokens"],
        )
        print(f"{plan.name}: going on from step {first}", file=sys.stderr)
    workers = Workers(network, loss, documents.marker, threads)
    progress = Progress(plan, first)
    began = time.process_time()
    for step in range(first, plan.steps):
        taken = documents.take(plan.num_tokens)
        mean = workers.gradients(taken)
        optimisers.step(step)
        held = sum(map(len, taken))
        num_tokens += held
        progress.show(step, mean, held)
        if (step + 1) % plan.save_every == 0 or step + 1 == plan.steps:
            spent = seconds + time.process_time() - began
            _save(
                path,
                {
                    "network": network.state_dict(),
                    "muon": optimisers.muon.state_dict(),
                    "adam": optimisers.adam.state_dict(),
                    "place": documents.place,
                    "step": step + 1,
                    "seconds": spent,
                    "num_tokens": num_tokens,
                },
            )
            if plan.watch_every and (step + 1) % plan.watch_every == 0:
                shares = score(network, tokenizer, corpus.validation(20)).by_kind
                print(
                    f"\n{plan.name} step {step + 1}, {num_tokens:,} tokens, {spent:,.0f} CPU seconds, validation: "
                    + "  ".join(f"{kind} {share:.0%}" for kind, share in shares.items()),
                    file=sys.stderr,
                )
        if stop_at is not None and step + 1 >= stop_at:
            break


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo model and its draft, and export both.")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path(tempfile.gettempdir()) / "penstock-demo",
        help="where checkpoints go (default: %(default)s)",
    )
    parser.add_argument("--steps", type=int, default=5900, help="steps of the model (default: %(default)s)")
    parser.add_argument("--draft-steps", type=int, default=850, help="steps of the draft (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=3584, help="tokens of text in a step (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="worker threads on a CPU (default: %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--falling",
        type=float,
        default=0.5,
        help="share of the steps over which the rate falls (default: %(default)s)",
    )
    parser.add_argument("--stop-at", type=int, help="leave after this step, with a checkpoint and no export")
    parser.add_argument("--out", type=Path, help="export under this folder instead of into the package")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    tokenizer = tokenizer_of(options.work)
    device = torch.device(options.device)
    threads = options.threads if device.type == "cpu" else 1
    model = Network(DIMENSIONS).to(device)
    plan = Plan("model", options.steps, options.tokens, options.seed, falling_share=options.falling)
    run(plan, model, tokenizer, options.work, text_loss, threads, options.stop_at)
    if options.stop_at is not None and options.stop_at < options.steps:
        return
    export(model, tokenizer, options.out / "model" if options.out else MODEL_DIR)
    draft = Network(DRAFT_DIMENSIONS).to(device)
    draft.model.embed_tokens.load_state_dict(model.model.embed_tokens.state_dict())
    draft_plan = Plan("draft", options.draft_steps, options.tokens, options.seed + 1, adam_rate=2e-3, watch_every=0)
    run(draft_plan, draft, tokenizer, options.work, partial(imitation_loss, model), threads, None)
    export(draft, tokenizer, options.out / "draft" if options.out else DRAFT_DIR)


if __name__ == "__main__":
    main()
