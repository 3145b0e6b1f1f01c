"""Ask for the facts of a sentence as JSON. The values of an evaluation were never trained on.

The request names the keys, sometimes not all of them; the answer has just these, in the same order.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from engine.demo import values
from engine.demo.exchange import Exchange, assistant, user, ways
from engine.demo.split import Split

KIND = "extraction"

Record = dict[str, str | int]


@dataclass(frozen=True, slots=True)
class Scene:
    """A sort of sentence: its keys, how to make their values, and how to tell them."""

    name: str
    make: Callable[[Random, Split], Record]
    tell: tuple[str, ...]


def _person(rng: Random, split: Split) -> Record:
    return {
        "name": values.name(rng, split),
        "age": values.number(rng, split, "age", 10, 99),
        "city": values.town(rng, split),
    }


def _order(rng: Random, split: Split) -> Record:
    return {
        "customer": values.name(rng, split),
        "quantity": values.number(rng, split, "quantity", 2, 60),
        "item": values.thing(rng, split),
        "price": values.number(rng, split, "price", 3, 300),
    }


def _meeting(rng: Random, split: Split) -> Record:
    return {
        "host": values.name(rng, split),
        "guest": values.name(rng, split),
        "city": values.town(rng, split),
        "time": values.clock(rng, split),
    }


def _book(rng: Random, split: Split) -> Record:
    return {
        "title": f"The {values.word(rng, split).capitalize()}",
        "author": values.name(rng, split),
        "year": values.number(rng, split, "year", 1850, 2025),
        "pages": values.number(rng, split, "pages", 40, 900),
    }


def _trip(rng: Random, split: Split) -> Record:
    return {
        "traveller": values.name(rng, split),
        "from": values.town(rng, split),
        "to": values.town(rng, split),
        "days": values.number(rng, split, "days", 2, 40),
    }


SCENES = (
    Scene(
        "person",
        _person,
        ways(
            """{name} is {age} years old and lives in {city}. | {name}, aged {age}, lives in {city}.
            My friend {name} from {city} is {age}. | {name} lives in {city} and is {age} years old.
            In {city} lives {name}, who is {age} years old. | At the age of {age}, {name} moved to {city}.
            {name} ({age}) comes from {city}. | {name} is {age} and lives in {city}.
            The {age} year old {name} is from {city}. | {name}, who is {age}, comes from {city}.""",
            "{name} from {city} has just turned {age}.",
            "{name} is {age} and comes from {city}. | My neighbour {name}, aged {age}, is from {city}.",
        ),
    ),
    Scene(
        "order",
        _order,
        ways(
            """{customer} bought {quantity} {item} for {price} dollars.
            {customer} ordered {quantity} {item} and paid {price} dollars.
            For {price} dollars {customer} got {quantity} {item}.
            {quantity} {item} were sold to {customer} for {price} dollars.
            {customer} paid {price} dollars for {quantity} {item}.
            {customer} purchased {quantity} {item} for {price} dollars.
            {customer} got {quantity} {item} and paid {price} dollars.""",
            "{customer} purchased {quantity} {item} at {price} dollars.",
            """{customer} bought {quantity} {item} and paid {price} dollars.
            {quantity} {item} were ordered by {customer} for {price} dollars.""",
        ),
    ),
    Scene(
        "meeting",
        _meeting,
        ways(
            """{host} meets {guest} in {city} at {time}. | At {time} {host} will meet {guest} in {city}.
            {host} invited {guest} to {city} at {time}. | In {city}, {host} is waiting for {guest} at {time}.
            {host} will see {guest} at {time} in {city}. | {host} and {guest} meet in {city} at {time}.
            {host} has an appointment with {guest} at {time} in {city}.""",
            "{host} has a meeting with {guest} in {city} at {time}.",
            "{host} will meet {guest} in {city} at {time}. | At {time} {host} meets {guest} in {city}.",
        ),
    ),
    Scene(
        "book",
        _book,
        ways(
            """{title} was written by {author} in {year} and has {pages} pages.
            In {year} {author} wrote {title}, a book of {pages} pages.
            {author} published {title} in {year}; it has {pages} pages.
            {title} by {author} came out in {year} and has {pages} pages.
            {title}, {pages} pages long, was written by {author} in {year}.
            {author} is the author of {title} ({year}, {pages} pages).
            {title} is a book by {author} from {year} with {pages} pages.""",
            "{author} is the author of {title}, which appeared in {year} with {pages} pages.",
            """{author} wrote {title} in {year}; it has {pages} pages.
            {title} by {author} was published in {year} and has {pages} pages.""",
        ),
    ),
    Scene(
        "trip",
        _trip,
        ways(
            """{traveller} travels from {from} to {to} for {days} days.
            {traveller} went from {from} to {to} and stayed {days} days.
            For {days} days {traveller} goes from {from} to {to}.
            {traveller} flew from {from} to {to} for {days} days.
            {traveller} left {from} and spent {days} days in {to}.
            {traveller} takes a trip from {from} to {to} of {days} days.
            {traveller} travelled for {days} days from {from} to {to}.""",
            "{traveller} takes a trip of {days} days from {from} to {to}.",
            """{traveller} goes from {from} to {to} for {days} days.
            {traveller} travelled from {from} to {to} and stayed {days} days.""",
        ),
    ),
)

ASK = ways(
    """Extract {keys} as JSON: {text} | Extract the {keys} from this text as JSON: {text}
    Give me {keys} as JSON: {text} | {text} Return {keys} as JSON. | {text} Extract {keys} as JSON.
    Return a JSON object with {keys}: {text} | Turn this into JSON with the keys {keys}: {text}
    JSON with {keys}: {text} | {text} Give me a JSON object with {keys}.
    Read this and answer in JSON with {keys}: {text} | {text} Write {keys} as JSON.
    Answer with JSON: {keys}. {text} | {text} I need {keys} as JSON. | What are {keys}? Answer in JSON. {text}
    {text} Please write JSON with {keys}. | Write JSON with the keys {keys}: {text}
    Find {keys} and return a JSON object: {text} | {text} JSON please: {keys}.
    Please give me {keys} as JSON: {text} | Extract {keys} as a JSON object: {text}
    Answer with a JSON object of {keys}: {text}""",
    "From this text, extract {keys} as a JSON object: {text} | {text} Answer with a JSON object: {keys}.",
    """Please extract {keys} as JSON: {text} | {text} Please return a JSON object with {keys}.
    Write a JSON object with the keys {keys}: {text}""",
)


_SORTS = {
    "customer": "name",
    "host": "name",
    "guest": "name",
    "author": "name",
    "traveller": "name",
    "city": "town",
    "from": "town",
    "to": "town",
    "item": "thing",
    "title": "word",
}


def _label(key: str, value: str) -> str:
    """The label under which the value was drawn."""
    return f"{_SORTS.get(key, key)}:{value.removeprefix('The ').lower()}"


def _listed(keys: list[str]) -> str:
    return keys[0] if len(keys) == 1 else ", ".join(keys[:-1]) + " and " + keys[-1]


def exchange(rng: Random, split: Split) -> Exchange:
    """Ask for some or all of a sentence's facts."""
    scene = rng.choice(SCENES)
    record = scene.make(rng, split)
    tell, ask = rng.choice(scene.tell), rng.choice(ASK)
    keys = list(record)
    if rng.random() < 0.5:
        kept = rng.sample(keys, rng.randint(1, len(keys)))
        keys = [key for key in keys if key in kept]
    question = ask.format(keys=_listed(keys), text=tell.format(**record))
    labels = tuple(_label(key, str(value)) for key, value in record.items())
    answer = json.dumps({key: record[key] for key in keys}, ensure_ascii=False)
    return Exchange(KIND, (user(question), assistant(answer)), f"{scene.name}: {ask} / {tell}", labels)
