"""What the shipped directories promise: any reader gets the same text and the same logits, and the answers are good."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.demo import corpus
from engine.demo.chat import END, render
from engine.demo.evaluate import agreement, measure
from engine.demo.export import DRAFT_DIR, MODEL_DIR, export, load
from engine.demo.network import Dimensions, Network
from engine.demo.vocabulary import VOCAB_SIZE, Marker

FOLDERS = (MODEL_DIR, DRAFT_DIR)
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "get_time", "description": "<&'\"é", "parameters": {}}}
]
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
    [
        {"role": "user", "content": "What time is it in Oakhaven?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "get_time", "arguments": {"city": "Oakhaven"}}},
                {"id": "2", "type": "function", "function": {"name": "get_time", "arguments": '{"city": "Élan"}'}},
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": '{"time": "14:05"}'},
        {"role": "assistant", "content": "It is 14:05 in Oakhaven."},
        {"role": "user", "content": [{"type": "text", "text": "Thanks"}]},
    ],
]


@pytest.fixture(scope="module")
def hub_tokenizer() -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(MODEL_DIR)


@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_the_template_prints_what_transformers_prints(hub_tokenizer: Any, messages: Any, tools: Any) -> None:
    for opened in (False, True):
        theirs = hub_tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=opened, tokenize=False)

        assert render(messages, tools or (), open_turn=opened) == theirs


def test_the_tokenizer_cuts_as_transformers_cuts(hub_tokenizer: Any) -> None:
    _, tokenizer = load(MODEL_DIR)
    for text in ("47 + 38 = 85.", "Ünïcode 日本 🙂\r\n\ttab", corpus.held_out()[4].prompt()):
        ids = tokenizer.encode(text).ids

        assert hub_tokenizer.encode(text) == ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_model_and_draft_share_one_small_tokenizer() -> None:
    ours, drafts = (json.loads((folder / "tokenizer.json").read_text()) for folder in FOLDERS)

    assert ours == drafts
    assert len(ours["model"]["vocab"]) <= VOCAB_SIZE


def test_only_what_the_assistant_says_is_learned() -> None:
    _, tokenizer = load(MODEL_DIR)
    ids = tokenizer.encode(render([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}])).ids
    marks = Marker(tokenizer).learned(ids)

    assert (
        tokenizer.decode([i for i, m in zip(ids, marks, strict=True) if m], skip_special_tokens=False) == f"Hello!{END}"
    )


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_transformers_computes_the_same_logits(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    network, tokenizer = load(folder)
    for example in corpus.held_out()[:10]:
        ids = torch.tensor(tokenizer.encode(example.prompt() + example.expected).ids)
        with torch.no_grad():
            wanted = theirs(ids[None]).logits[0]
            line = network.head(network(ids, torch.arange(len(ids)), [(1, len(ids))]))
            stores = network.stores(1, len(ids))
            steps = [
                network.step(part[None], torch.arange(len(ids))[part_at][None], stores)
                for part_at in (slice(0, 7), slice(7, 8), slice(8, None))
                for part in (ids[part_at],)
            ]
            stepped = network.head(torch.cat(steps, dim=1))[0]

        # Logits reach 31 here, so what fp32 can hold is a share of the largest one: 3e-4 in all.
        rounding = 1e-5 * float(wanted.abs().max())
        torch.testing.assert_close(line, wanted, atol=rounding, rtol=0)
        torch.testing.assert_close(stepped, wanted, atol=rounding, rtol=0)


def test_what_is_exported_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    _, tokenizer = load(MODEL_DIR)
    network = Network(Dimensions(num_layers=2, hidden_size=64, num_heads=2, head_dim=32, intermediate_size=96))
    export(network, tokenizer, tmp_path)
    back, _ = load(tmp_path)

    for (name, wanted), (_, got) in zip(network.state_dict().items(), back.state_dict().items(), strict=True):
        assert torch.equal(wanted.bfloat16().float(), got), name


def test_what_is_shipped_is_small() -> None:
    size_bytes = sum(file.stat().st_size for folder in FOLDERS for file in folder.iterdir())

    assert size_bytes <= 12e6
    network, _ = load(MODEL_DIR)
    assert network.dims.num_layers >= 8
    assert network.dims.max_positions == 4096
    assert load(DRAFT_DIR)[0].dims.num_layers == 1


def test_the_model_answers_as_well_as_its_card_says() -> None:
    """Floors three or four answers a kind under the card's figures: another processor may round a near tie away."""
    report, result = measure(MODEL_DIR, None, corpus.held_out())

    assert report.exact >= 0.85, result.wrong
    assert min(report.by_kind.values()) >= 0.68, report.by_kind
    assert report.perplexity < 1.1


def test_the_draft_guesses_what_the_model_says() -> None:
    examples = corpus.held_out()[:100]
    network, tokenizer = load(MODEL_DIR)
    draft, _ = load(DRAFT_DIR)
    answers = [tokenizer.encode(example.expected).ids for example in examples]

    assert agreement(network, tokenizer, examples, answers) > 0.95
    assert agreement(draft, tokenizer, examples, answers) > 0.4
