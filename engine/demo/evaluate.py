"""Measure the demo model: exact match by kind, perplexity, and how often the draft guesses right.

    python -m engine.demo.evaluate [--model DIR] [--draft DIR] [--json FILE] [--wrong]

Decoding is greedy, and an answer counts only when it is the expected text, character for character.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch.nn import functional

from engine.demo.batches import NOT_LEARNED, lay_out
from engine.demo.chat import END
from engine.demo.corpus import Example, held_out
from engine.demo.export import DRAFT_DIR, MODEL_DIR, load
from engine.demo.generate import greedy
from engine.demo.network import Network
from engine.demo.vocabulary import Marker, id_of


@dataclass(frozen=True, slots=True)
class Score:
    """Exact match, in all and by kind; each wrong answer with what was expected."""

    exact: float
    by_kind: dict[str, float]
    counts: dict[str, int]
    wrong: list[tuple[Example, str]]
    answers: list[list[int]]


def score(network: Network, tokenizer: Tokenizer, examples: Sequence[Example]) -> Score:
    """Answer every request greedily and compare with what was expected."""
    answers = greedy(network, tokenizer, [example.prompt() for example in examples])
    texts = [tokenizer.decode(answer, skip_special_tokens=False) for answer in answers]
    right: dict[str, list[bool]] = {}
    for example, text in zip(examples, texts, strict=True):
        right.setdefault(example.kind, []).append(text == example.expected)
    wrong = [(example, text) for example, text in zip(examples, texts, strict=True) if text != example.expected]
    by_kind = {kind: sum(marks) / len(marks) for kind, marks in right.items()}
    return Score(
        1 - len(wrong) / len(examples), by_kind, {kind: len(marks) for kind, marks in right.items()}, wrong, answers
    )


@torch.no_grad()
def perplexity(network: Network, tokenizer: Tokenizer, examples: Sequence[Example]) -> float:
    """Of the expected answers, their end included, given the requests."""
    documents = [tokenizer.encode(example.prompt() + example.expected + END).ids for example in examples]
    loss, count, marker = 0.0, 0, Marker(tokenizer)
    for start in range(0, len(documents), 64):
        batch = lay_out(documents[start : start + 64], marker, last_turn_only=True)
        logits = network.head(network(batch.ids, batch.positions, batch.groups)[batch.rows])
        loss += functional.cross_entropy(logits, batch.targets, reduction="sum").item()
        count += int((batch.targets != NOT_LEARNED).sum())
    return math.exp(loss / count)


@torch.no_grad()
def agreement(
    draft: Network, tokenizer: Tokenizer, examples: Sequence[Example], answers: Sequence[Sequence[int]]
) -> float:
    """The share of the model's own greedy tokens, the end included, that the draft's first choice would have been."""
    end = id_of(tokenizer, END)
    documents = [
        [*tokenizer.encode(example.prompt()).ids, *answer, end]
        for example, answer in zip(examples, answers, strict=True)
    ]
    right, count, marker = 0, 0, Marker(tokenizer)
    for start in range(0, len(documents), 64):
        batch = lay_out(documents[start : start + 64], marker, last_turn_only=True)
        guesses = draft.head(draft(batch.ids, batch.positions, batch.groups)[batch.rows]).argmax(-1)
        right += int((guesses == batch.targets).sum())
        count += int((batch.targets != NOT_LEARNED).sum())
    return right / count


@dataclass(frozen=True, slots=True)
class Report:
    """What `MODEL.md` records."""

    examples: int
    exact: float
    by_kind: dict[str, float]
    counts: dict[str, int]
    perplexity: float
    draft_agreement: float | None


def measure(model_dir: Path, draft_dir: Path | None, examples: Sequence[Example]) -> tuple[Report, Score]:
    """Everything at once, in fp32 on the CPU."""
    network, tokenizer = load(model_dir)
    result = score(network, tokenizer, examples)
    agreed = agreement(load(draft_dir)[0], tokenizer, examples, result.answers) if draft_dir else None
    return Report(
        len(examples), result.exact, result.by_kind, result.counts, perplexity(network, tokenizer, examples), agreed
    ), result


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the demo model on its held-out set.")
    parser.add_argument("--model", type=Path, default=MODEL_DIR)
    parser.add_argument("--draft", type=Path, default=DRAFT_DIR)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--wrong", action="store_true", help="print every wrong answer")
    options = parser.parse_args()
    report, result = measure(options.model, options.draft if options.draft.exists() else None, held_out())
    for example, text in result.wrong if options.wrong else []:
        print(
            f"{example.kind}: {example.messages[-1]['content']!r}\n  expected {example.expected!r}\n  answered {text!r}"
        )
    print("| kind | requests | exact match |\n|---|---|---|")
    for kind, share in report.by_kind.items():
        print(f"| {kind} | {report.counts[kind]} | {share:.1%} |")
    print(f"| all | {report.examples} | {report.exact:.1%} |")
    print(f"\nperplexity of the expected answers: {report.perplexity:.4f}")
    if report.draft_agreement is not None:
        print(f"the draft's first choice is the model's: {report.draft_agreement:.1%} of tokens")
    if options.json:
        options.json.write_text(json.dumps(asdict(report), indent=2) + "\n")


if __name__ == "__main__":
    main()
