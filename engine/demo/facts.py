"""Ask for facts of the little world. The facts are always the trained ones; the phrasings are not.

A relation pairs a table with ways to ask for its values. `{k}` is what is asked about, `{v}` the answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from engine.demo import world
from engine.demo.exchange import Exchange, Phrasings, assistant, phrasings, user
from engine.demo.split import Split

KIND = "facts"


@dataclass(frozen=True, slots=True)
class Relation:
    name: str
    table: Mapping[str, str]
    ask: Phrasings
    answer: str


def _unique(table: Mapping[str, str]) -> dict[str, str]:
    """The table read backwards, without the values that several keys share."""
    values = list(table.values())
    return {value: key for key, value in table.items() if values.count(value) == 1}


def _followers(names: tuple[str, ...], step: int) -> dict[str, str]:
    return {name: names[(place + step) % len(names)] for place, name in enumerate(names)}


RELATIONS = (
    Relation(
        "capital",
        world.CAPITALS,
        phrasings(
            """What is the capital of {k}? | What's the capital of {k}? | Name the capital of {k}.
            Which city is the capital of {k}? | The capital of {k} is what? | Tell me the capital of {k}.
            {k}: what is its capital? | What is {k}'s capital city? | Do you know the capital of {k}?
            Capital of {k}? | What capital does {k} have? | Give me the capital city of {k}.
            I need the capital of {k}.""",
            "What city is {k}'s capital? | Please name the capital city of {k}.",
            """Can you tell me what the capital of {k} is? | Which city serves as the capital of {k}?
            What is the name of {k}'s capital?""",
        ),
        "The capital of {k} is {v}.",
    ),
    Relation(
        "capital_of",
        _unique(world.CAPITALS),
        phrasings(
            """{k} is the capital of which country? | Which country has {k} as its capital?
            What country is {k} the capital of? | {k} is the capital of what? | Of which country is {k} the capital?
            Which country's capital is {k}? | Name the country whose capital is {k}.
            Tell me which country has the capital {k}.""",
            "For which country is {k} the capital?",
            "Which nation has {k} as its capital? | {k} is the capital city of which country?",
        ),
        "{k} is the capital of {v}.",
    ),
    Relation(
        "continent",
        world.CONTINENTS,
        phrasings(
            """On which continent is {k}? | What continent is {k} in? | Which continent is {k} on?
            {k} is on which continent? | Where in the world is {k}? | Tell me the continent of {k}.
            Name the continent where {k} is. | Continent of {k}? | What continent does {k} belong to?
            In which continent does {k} lie?""",
            "Which continent is home to {k}?",
            "On what continent can I find {k}? | {k} belongs to which continent?",
        ),
        "{k} is in {v}.",
    ),
    Relation(
        "language",
        world.LANGUAGES,
        phrasings(
            """What language is spoken in {k}? | Which language do people speak in {k}? | What do they speak in {k}?
            What is the language of {k}? | Name the language of {k}. | In {k}, which language is spoken?
            Language of {k}? | Tell me what language people in {k} speak. | What is the main language in {k}?""",
            "Which language is used in {k}?",
            "What language do people in {k} speak? | Which language is spoken in {k}?",
        ),
        "People in {k} speak {v}.",
    ),
    Relation(
        "currency",
        world.CURRENCIES,
        phrasings(
            """What is the currency of {k}? | What currency is used in {k}? | Which money do people use in {k}?
            Currency of {k}? | How do people pay in {k}? | Name the currency of {k}. | What money is used in {k}?
            Tell me the currency of {k}. | What's {k}'s currency? | With which currency do you pay in {k}?""",
            "Which currency does {k} have?",
            "What currency do they use in {k}? | Which currency is used in {k}?",
        ),
        "The currency of {k} is the {v}.",
    ),
    Relation(
        "symbol",
        world.SYMBOLS,
        phrasings(
            """What is the chemical symbol of {k}? | What is the symbol for {k}? | Which symbol does {k} have?
            Symbol of {k}? | Name the chemical symbol for {k}. | How is {k} written in chemistry?
            Tell me the symbol of {k}. | What's the chemical symbol for {k}?
            In the periodic table, what is {k}'s symbol? | {k} has which chemical symbol?""",
            "Which chemical symbol stands for {k}?",
            "What symbol does {k} have in chemistry? | Which symbol is used for {k} in the periodic table?",
        ),
        "The chemical symbol of {k} is {v}.",
    ),
    Relation(
        "element",
        _unique(world.SYMBOLS),
        phrasings(
            """Which element has the symbol {k}? | What element is {k}? | The symbol {k} stands for which element?
            What does the chemical symbol {k} mean? | Name the element with the symbol {k}.
            {k} is the symbol of which element? | Tell me which element is written {k}.
            Which chemical element is {k}?""",
            "What element does the symbol {k} stand for?",
            "Which element is written as {k}? | What is the element with the symbol {k}?",
        ),
        "{k} is the chemical symbol of {v}.",
    ),
    Relation(
        "young",
        world.YOUNG,
        phrasings(
            """What is a baby {k} called? | What do you call a young {k}? | What is the name for a young {k}?
            Name for a baby {k}? | A young {k} is called what? | What do we call a baby {k}?
            Tell me the word for a young {k}. | What's a young {k} called? | How is a baby {k} called?
            Which word means a young {k}?""",
            "What is the word for a baby {k}?",
            "What do people call a young {k}? | What is a young {k} called?",
        ),
        "A young {k} is called a {v}.",
    ),
    Relation(
        "sound",
        world.SOUNDS,
        phrasings(
            """What sound does a {k} make? | Which sound does a {k} make? | What does a {k} do when it makes a sound?
            What noise does a {k} make? | Tell me the sound of a {k}. | Sound of a {k}? | How does a {k} sound?
            What does the {k} say? | Name the sound that a {k} makes. | Which noise comes from a {k}?""",
            "What kind of sound does a {k} make?",
            "What is the sound a {k} makes? | Which noise does a {k} make?",
        ),
        "A {k} {v}.",
    ),
    Relation(
        "legs",
        world.LEGS,
        phrasings(
            """How many legs does a {k} have? | How many legs has a {k}? | Number of legs of a {k}?
            Count the legs of a {k}. | A {k} has how many legs? | Tell me how many legs a {k} has.
            On how many legs does a {k} walk? | What number of legs does a {k} have?
            Do you know how many legs a {k} has?""",
            "How many legs are on a {k}?",
            "Can you tell me how many legs a {k} has? | What is the number of legs of a {k}?",
        ),
        "A {k} has {v} legs.",
    ),
    Relation(
        "opposite",
        world.OPPOSITES,
        phrasings(
            """What is the opposite of {k}? | What's the opposite of {k}? | Name the opposite of {k}.
            Opposite of {k}? | Which word is the opposite of {k}? | Tell me the opposite of {k}.
            {k}: what is the opposite? | Give me the opposite of {k}. | What word means the opposite of {k}?
            The opposite of {k} is what?""",
            "Which word has the opposite meaning of {k}?",
            "What would be the opposite of {k}? | Can you name the opposite of {k}?",
        ),
        "The opposite of {k} is {v}.",
    ),
    Relation(
        "past",
        world.PAST,
        phrasings(
            """What is the past tense of {k}? | What's the past tense of {k}? | Give me the past tense of {k}.
            Past tense of {k}? | Name the past tense of the verb {k}. | How do you say {k} in the past?
            Put {k} into the past tense. | Tell me the past tense of {k}. | What is {k} in the past tense?
            Which form does {k} take in the past?""",
            "How is the past tense of {k} formed?",
            "What is the past tense of the verb {k}? | Can you give me the past tense of {k}?",
        ),
        "The past tense of {k} is {v}.",
    ),
    Relation(
        "plural",
        world.PLURALS,
        phrasings(
            """What is the plural of {k}? | What's the plural of {k}? | Give me the plural of {k}. | Plural of {k}?
            Name the plural of the word {k}. | How do you write {k} in the plural? | Put {k} into the plural.
            Tell me the plural of {k}. | What is the plural form of {k}? | One {k}, two what?""",
            "Which word is the plural of {k}?",
            "What is the plural of the word {k}? | Can you give me the plural of {k}?",
        ),
        "The plural of {k} is {v}.",
    ),
    Relation(
        "colour",
        world.COLOURS,
        phrasings(
            """What colour is {k}? | What color is {k}? | Which colour does {k} have? | Colour of {k}?
            What is the colour of {k}? | Tell me the colour of {k}. | Name the colour of {k}. | Which colour is {k}?
            What's the colour of {k}? | Do you know what colour {k} is?""",
            "{k} has what colour?",
            "Can you tell me the colour of {k}? | What colour does {k} have?",
        ),
        "The colour of {k} is {v}.",
    ),
    Relation(
        "planet",
        dict(zip(world.ORDINALS, world.PLANETS, strict=False)),
        phrasings(
            """Which is the {k} planet from the sun? | What is the {k} planet? | Name the {k} planet from the sun.
            Which planet is the {k} from the sun? | What's the {k} planet of the solar system?
            {k} planet from the sun? | Tell me the {k} planet. | Which planet comes {k}?""",
            "Counting from the sun, which is the {k} planet?",
            "What is the {k} planet from the sun? | Which planet is {k} from the sun?",
        ),
        "The {k} planet from the sun is {v}.",
    ),
    Relation(
        "month",
        dict(zip(world.ORDINALS, world.MONTHS, strict=True)),
        phrasings(
            """Which is the {k} month of the year? | What is the {k} month? | Name the {k} month of the year.
            Which month is the {k} of the year? | What's the {k} month of the year? | {k} month of the year?
            Tell me the {k} month. | Which month comes {k} in the year?""",
            "In a year, which month is the {k}?",
            "What is the {k} month of the year? | Which month is {k} in the year?",
        ),
        "The {k} month of the year is {v}.",
    ),
    Relation(
        "next_day",
        _followers(world.DAYS, 1),
        phrasings(
            """What day comes after {k}? | Which day follows {k}? | What is the day after {k}?
            After {k} comes which day? | Name the day after {k}. | Day after {k}? | Tell me the day after {k}.
            If today is {k}, what day is tomorrow? | Today is {k}. What day is it tomorrow?""",
            "What day is next after {k}?",
            "Which day comes after {k}? | Which day of the week follows {k}?",
        ),
        "The day after {k} is {v}.",
    ),
    Relation(
        "previous_day",
        _followers(world.DAYS, -1),
        phrasings(
            """What day comes before {k}? | Which day precedes {k}? | What is the day before {k}?
            Before {k} comes which day? | Name the day before {k}. | Day before {k}? | Tell me the day before {k}.
            If today is {k}, what day was yesterday? | Today is {k}. What day was it yesterday?""",
            "What day is just before {k}?",
            "Which day comes before {k}? | Which day of the week is before {k}?",
        ),
        "The day before {k} is {v}.",
    ),
    Relation(
        "next_month",
        _followers(world.MONTHS, 1),
        phrasings(
            """What month comes after {k}? | Which month follows {k}? | What is the month after {k}?
            After {k} comes which month? | Name the month after {k}. | Month after {k}?
            Tell me the month after {k}. | What is the next month after {k}?""",
            "What month is next after {k}?",
            "Which month comes after {k}? | Which month of the year follows {k}?",
        ),
        "The month after {k} is {v}.",
    ),
    Relation(
        "author",
        world.AUTHORS,
        phrasings(
            """Who wrote {k}? | Who is the author of {k}? | Which author wrote {k}? | Author of {k}?
            {k} was written by whom? | Name the author of {k}. | Tell me who wrote {k}. | By whom is {k}?
            Who was the writer of {k}? | Do you know who wrote {k}?""",
            "Which writer wrote {k}?",
            "Can you tell me who wrote {k}? | Who was {k} written by?",
        ),
        "{v} wrote {k}.",
    ),
    Relation(
        "count",
        world.COUNTS,
        phrasings(
            """How many {k}? | Tell me how many {k}. | How many {k}, please? | Do you know how many {k}?
            Quick: how many {k}? | I want to know how many {k}.""",
            "Could you say how many {k}?",
            "Can you tell me how many {k}? | Please say how many {k}.",
        ),
        "{v}.",
    ),
    Relation(
        "times",
        {f"{a} times {b}": f"{a} x {b} = {a * b}" for a in range(2, 11) for b in range(2, 11)},
        phrasings(
            """What is {k}? | {k}? | How much is {k}? | Compute {k}. | What's {k}? | Tell me {k}. | {k} is what?
            Calculate {k}. | Multiply: {k}. | {k} =""",
            "Work out {k}.",
            "What does {k} make? | Please compute {k}.",
        ),
        "{v}.",
    ),
)

FACTS = tuple((relation, key) for relation in RELATIONS for key in relation.table)


_ARTICLE = re.compile(r"\b([Aa]) (?=[aeio])")


def _polished(text: str) -> str:
    """Begin with a capital and say *an owl*."""
    text = _ARTICLE.sub(r"\1n ", text)
    return text[:1].upper() + text[1:]


def ask(relation: Relation, key: str, template: str) -> Exchange:
    """Make the exchange for one fact in one phrasing."""
    value = relation.table[key]
    question = _polished(template.format(k=key))
    answer = _polished(relation.answer.format(k=key, v=value))
    return Exchange(KIND, (user(question), assistant(answer)), f"{relation.name}: {template}")


def exchange(rng: Random, split: Split) -> Exchange:
    """Ask for a fact, every fact equally likely."""
    relation, key = rng.choice(FACTS)
    return ask(relation, key, relation.ask.pick(rng, split))


def sentence(rng: Random) -> str:
    """State a fact without a question: plain text for the corpus."""
    relation, key = rng.choice(FACTS)
    return _polished(relation.answer.format(k=key, v=relation.table[key]))
