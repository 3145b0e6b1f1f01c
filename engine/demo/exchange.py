"""What a generator of text hands over: one request, its one right answer, and what they were made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeAlias

from engine.demo.split import Split

Json: TypeAlias = "Sequence[Json] | Mapping[str, Json] | str | int | float | bool | None"
Message: TypeAlias = "dict[str, Json]"
Tool: TypeAlias = "dict[str, Json]"


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request and its answer; a conversation is several of them in a row."""

    kind: str
    messages: tuple[Message, ...]
    """The turns, the last of them the assistant's answer."""
    phrasing: str
    """The template that the request was made from."""
    values: tuple[str, ...] = ()
    """Labels (`sort:value`) of everything that must not cross from one split into another."""
    tools: tuple[Tool, ...] = ()


@dataclass(frozen=True, slots=True)
class Phrasings:
    """Ways to ask for one thing, apart for each split. `{}` fields are filled by name."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    held_out: tuple[str, ...]

    def pick(self, rng: Random, split: Split) -> str:
        return rng.choice(self.of(split))

    def of(self, split: Split) -> tuple[str, ...]:
        match split:
            case Split.TRAIN:
                return self.train
            case Split.VALIDATION:
                return self.validation
            case Split.HELD_OUT:
                return self.held_out


def phrasings(train: str, validation: str, held_out: str) -> Phrasings:
    """Each argument: one phrasing a line, or several in a line separated by `|`."""
    return Phrasings(ways(train), ways(validation), ways(held_out))


def ways(*texts: str) -> tuple[str, ...]:
    """Ways to ask that every split shares, where only the values must not have been trained on. Written alike."""
    parts = (part.strip() for text in texts for line in text.splitlines() for part in line.split("|"))
    return tuple(filter(None, parts))


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}
