"""Ask for sums, differences and comparisons of numbers up to 99. A pair of numbers belongs to one split."""

from __future__ import annotations

from random import Random

from engine.demo.exchange import Exchange, assistant, user, ways
from engine.demo.split import Split, draw

KIND = "arithmetic"

_ADD = ways(
    """What is {a} + {b}? | {a} + {b} | {a} + {b} = ? | What is {a} plus {b}? | How much is {a} plus {b}?
    Add {a} and {b}. | Compute {a} + {b}. | What is the sum of {a} and {b}? | Calculate {a} + {b}. | {a} plus {b}?
    What's {a} + {b}? | Add {b} to {a}. | What do you get when you add {a} and {b}? | {a}+{b} | {a}+{b}=?""",
    "Find the sum of {a} and {b}. | How much is {a} + {b}?",
    "Please add {a} and {b}. | What does {a} plus {b} make? | Work out {a} + {b}.",
)
_SUBTRACT = ways(
    """What is {a} - {b}? | {a} - {b} | {a} - {b} = ? | What is {a} minus {b}? | How much is {a} minus {b}?
    Compute {a} - {b}. | Subtract {b} from {a}. | Calculate {a} - {b}. | {a} minus {b}? | What's {a} - {b}?
    Take {b} away from {a}. | What is the difference between {a} and {b}? | What is left when you take {b} from {a}?
    {a}-{b} | {a}-{b}=?""",
    "Find the difference of {a} and {b}. | How much is {a} - {b}?",
    "Please subtract {b} from {a}. | What does {a} minus {b} make? | Work out {a} - {b}.",
)
_LARGER = ways(
    """Which is larger, {a} or {b}? | Which number is larger: {a} or {b}? | Is {a} or {b} larger? | Larger: {a} or {b}?
    What is the larger of {a} and {b}? | Which is bigger, {a} or {b}? | Tell me the larger number: {a} or {b}.
    Which of {a} and {b} is larger?""",
    "Which one is the larger, {a} or {b}?",
    "Of {a} and {b}, which is larger? | Which number is bigger, {a} or {b}?",
)


def _pair(rng: Random) -> str:
    top = rng.choice((10, 10, 20, 20, 50, 100))
    return f"{rng.randrange(top)}+{rng.randrange(top)}"


def _sorted_pair(rng: Random) -> str:
    b, a = sorted(map(int, _pair(rng).split("+")))
    return f"{a}-{b}"


def _unequal_pair(rng: Random) -> str:
    return "<".join(map(str, rng.sample(range(100), 2)))


def _sum(rng: Random, split: Split) -> tuple[int, int, str]:
    a, b = map(int, draw(rng, split, "sum", _pair).split("+"))
    return a, b, f"{a} + {b} = {a + b}."


def _difference(rng: Random, split: Split) -> tuple[int, int, str]:
    a, b = map(int, draw(rng, split, "difference", _sorted_pair).split("-"))
    return a, b, f"{a} - {b} = {a - b}."


def _larger(rng: Random, split: Split) -> tuple[int, int, str]:
    a, b = map(int, draw(rng, split, "larger", _unequal_pair).split("<"))
    return a, b, f"{max(a, b)} is larger than {min(a, b)}."


_TASKS = (("sum", "+", _ADD, _sum), ("difference", "-", _SUBTRACT, _difference), ("larger", "<", _LARGER, _larger))


def exchange(rng: Random, split: Split) -> Exchange:
    """Ask for one small calculation."""
    sort, sign, ask, make = rng.choices(_TASKS, (5, 5, 2))[0]
    a, b, answer = make(rng, split)
    template = rng.choice(ask)
    question = template.format(a=a, b=b)
    return Exchange(KIND, (user(question), assistant(answer)), f"{sort}: {template}", (f"{sort}:{a}{sign}{b}",))


def statement(rng: Random, split: Split) -> str:
    """A sum or a difference without a question: plain text for the corpus."""
    return rng.choice((_sum, _difference))(rng, split)[2]
