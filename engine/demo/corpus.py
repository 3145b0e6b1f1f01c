"""Mix the generators into conversations to train on, and into single requests to be measured by.

Everything here follows from a seed: document `i` of a seed is always the same text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from random import Random

from engine.demo import arithmetic, extraction, facts, rewriting, smalltalk, toolcalls
from engine.demo.chat import STOP, render
from engine.demo.exchange import Exchange, Message, Tool, user
from engine.demo.split import Split

KINDS = (facts.KIND, arithmetic.KIND, rewriting.KIND, extraction.KIND, toolcalls.KIND)

_SIMPLE: dict[str, tuple[float, Callable[[Random, Split], Exchange]]] = {
    facts.KIND: (0.26, facts.exchange),
    arithmetic.KIND: (0.25, arithmetic.exchange),
    rewriting.KIND: (0.29, rewriting.exchange),
    extraction.KIND: (0.16, extraction.exchange),
    smalltalk.KIND: (0.04, smalltalk.exchange),
}
_SHARE_PLAIN, _SHARE_SUMS, _SHARE_TOOLS, _SHARE_LONG = 0.03, 0.06, 0.16, 0.004
_ADDRESSES = (
    "Please tell me: ",
    "Quick question: ",
    "Hi! ",
    "Hello, ",
    "Hey, ",
    "Question: ",
    "Tell me, ",
    "Ok, ",
    "And now: ",
    "Now ",
)


@dataclass(frozen=True, slots=True)
class Example:
    """One request of an evaluation and the one answer that counts as right."""

    kind: str
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...]
    expected: str

    def prompt(self) -> str:
        """The text after which the answer is to be generated."""
        return render(self.messages, self.tools, open_turn=True)


def _varied(rng: Random, exchange: Exchange) -> Exchange:
    """Type the request as people do: in lower case, without its full stop, with a word before it."""
    first, *rest = exchange.messages
    text = str(first["content"])
    plain = exchange.kind in (facts.KIND, arithmetic.KIND, smalltalk.KIND)
    if rng.random() < 0.12:
        text = text.lower() if plain and "symbol" not in text else text[0].lower() + text[1:]
    if plain and text[-1:] in ".?!" and rng.random() < 0.15:
        text = text[:-1]
    elif plain and rng.random() < 0.04:
        text = text.rstrip(".?!") + rng.choice(("??", "!", ".", " ?", "?"))
    if rng.random() < 0.1:
        text = rng.choice(_ADDRESSES) + text
    elif plain and rng.random() < 0.04:
        text += rng.choice((" Thanks!", " Please.", " Thank you."))
    return Exchange(exchange.kind, (user(text), *rest), exchange.phrasing, exchange.values, exchange.tools)


def _simple(rng: Random, split: Split) -> Exchange:
    weights, makers = zip(*_SIMPLE.values(), strict=True)
    maker: Callable[[Random, Split], Exchange] = rng.choices(makers, weights)[0]
    return maker(rng, split)


def _num_turns(rng: Random) -> int:
    if rng.random() < _SHARE_LONG:
        return rng.randint(15, 50)
    return rng.choice((1, 1, 1, 2, 2, 3, 4, 5))


def conversation(rng: Random, split: Split = Split.TRAIN) -> tuple[list[Exchange], str]:
    """Several exchanges that make one conversation, and the system prompt (empty: none)."""
    system = rng.choice(smalltalk.SYSTEM_PROMPTS) if rng.random() < 0.4 else ""
    exchanges: list[Exchange] = []
    if rng.random() < _SHARE_TOOLS:
        box = toolcalls.toolbox(rng)
        for _ in range(rng.choice((1, 2, 3, 4))):
            if rng.random() < 0.15:
                exchanges.append(_simple(rng, split))
            else:
                exchanges.append(toolcalls.exchange(rng, split, box, answered=rng.random() < 0.4))
                if len(exchanges[-1].messages) == 2:
                    break
        tools = box.tools
        exchanges = [Exchange(e.kind, e.messages, e.phrasing, e.values, tools) for e in exchanges]
    else:
        exchanges = [_simple(rng, split) for _ in range(_num_turns(rng))]
        if rng.random() < 0.02:
            system, asked = smalltalk.persona(rng, split)
            exchanges.insert(rng.randrange(len(exchanges)), asked)
        if rng.random() < 0.03:
            told, asked = smalltalk.introduction(rng, split)
            exchanges = [told, *exchanges, asked] if rng.random() < 0.7 else [told, asked, *exchanges]
    return [_varied(rng, exchange) for exchange in exchanges], system


def as_text(exchanges: list[Exchange], system: str) -> str:
    """The whole conversation, laid out by the chat template."""
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    for exchange in exchanges:
        messages.extend(exchange.messages)
    return render(messages, exchanges[0].tools)


def document(seed: int, index: int) -> str:
    """Training text number `index`: a conversation, or now and then a few plain sentences."""
    rng = Random(f"{seed}/{index}")
    chance = rng.random()
    if chance < _SHARE_SUMS:
        return " ".join(arithmetic.statement(rng, Split.TRAIN) for _ in range(rng.randint(4, 24))) + STOP
    if chance < _SHARE_SUMS + _SHARE_PLAIN:
        return " ".join(facts.sentence(rng) for _ in range(rng.randint(1, 8))) + STOP
    return as_text(*conversation(rng))


def _example(exchange: Exchange) -> Example:
    answer = exchange.messages[-1]
    expected = str(answer["content"])
    if "tool_calls" in answer:
        expected = render([answer]).removeprefix("<|im_start|>assistant\n").removesuffix("<|im_end|>\n")
    return Example(exchange.kind, exchange.messages[:-1], exchange.tools, expected)


def exchanges_of(split: Split, per_kind: int, seed: int = 20) -> list[Exchange]:
    """`per_kind` different requests of each kind, kinds interleaved; what `held_out` and `validation` are made of."""
    rng = Random(f"{split.value}/{seed}")
    asked: set[str] = set()
    rows: list[Exchange] = []
    for _ in range(per_kind):
        for kind in KINDS:
            while True:
                if kind == toolcalls.KIND:
                    exchange = toolcalls.exchange(rng, split, toolcalls.toolbox(rng), answered=rng.random() < 0.25)
                else:
                    exchange = _SIMPLE[kind][1](rng, split)
                if (key := render(exchange.messages[:-1], exchange.tools)) not in asked:
                    asked.add(key)
                    rows.append(exchange)
                    break
    return rows


@cache
def held_out(per_kind: int = 140) -> tuple[Example, ...]:
    """The evaluation set: facts in phrasings, and all else with values, that no training text has. Always the same."""
    return tuple(_example(exchange) for exchange in exchanges_of(Split.HELD_OUT, per_kind))


@cache
def validation(per_kind: int = 40) -> tuple[Example, ...]:
    """Requests to watch a training run by, apart from both the training text and the evaluation set."""
    return tuple(_example(exchange) for exchange in exchanges_of(Split.VALIDATION, per_kind))
