"""Ask for a small change to a row of words. The words of an evaluation were never trained on here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from engine.demo import values
from engine.demo.exchange import Exchange, assistant, user, ways
from engine.demo.split import Split

KIND = "rewriting"


@dataclass(frozen=True, slots=True)
class Task:
    """`rewrite` gets the words, and one more word when the phrasing mentions `{new}`."""

    name: str
    ask: tuple[str, ...]
    rewrite: Callable[[list[str], str, str], str]
    shortest: int = 2
    longest: int = 4


def _replaced(words: list[str], old: str, new: str) -> str:
    return " ".join(new if word == old else word for word in words)


TASKS = (
    Task(
        "reverse",
        ways(
            """Reverse the order of these words: {text} | Reverse the words: {text}
            Write these words backwards: {text} | Put these words in reverse order: {text}
            Turn the word order around: {text} | Reverse the word order: {text}
            {text} - write the words in reverse order | Say these words in reverse: {text}""",
            "Give me these words in reverse order: {text}",
            "Please reverse these words: {text} | Reverse the order of the words: {text}",
        ),
        lambda words, old, new: " ".join(reversed(words)),
    ),
    Task(
        "replace",
        ways(
            """Replace {old} with {new}: {text} | Replace the word {old} by {new}: {text}
            Change {old} to {new}: {text} | Put {new} instead of {old}: {text}
            In this text, replace {old} with {new}: {text} | Swap {old} for {new}: {text}
            Use {new} in place of {old}: {text} | {text} - replace {old} with {new}""",
            "Exchange {old} for {new}: {text}",
            "Replace {old} by {new} in this text: {text} | Please change the word {old} to {new}: {text}",
        ),
        _replaced,
        3,
        5,
    ),
    Task(
        "remove",
        ways(
            """Remove {old}: {text} | Remove the word {old}: {text} | Delete {old} from this text: {text}
            Leave out {old}: {text} | Take out the word {old}: {text} | Drop {old} from these words: {text}
            Write this without {old}: {text} | {text} - remove {old}""",
            "Omit {old}: {text} | Cut the word {old}: {text}",
            "Please remove the word {old}: {text} | Delete the word {old}: {text}",
        ),
        lambda words, old, new: " ".join(word for word in words if word != old),
        3,
        5,
    ),
    Task(
        "first",
        ways(
            """What is the first word? {text} | Give me the first word: {text} | First word of: {text}
            Name the first word: {text} | Which word comes first? {text} | Write only the first word: {text}
            Tell me the first word of this: {text}""",
            "Which is the first word? {text}",
            "Please give me the first word of this: {text} | Write the first word: {text}",
        ),
        lambda words, old, new: words[0],
        3,
        5,
    ),
    Task(
        "last",
        ways(
            """What is the last word? {text} | Give me the last word: {text} | Last word of: {text}
            Name the last word: {text} | Which word comes last? {text} | Write only the last word: {text}
            Tell me the last word of this: {text}""",
            "Which is the last word? {text}",
            "Please give me the last word of this: {text} | Write the last word: {text}",
        ),
        lambda words, old, new: words[-1],
        3,
        5,
    ),
    Task(
        "commas",
        ways(
            """Separate these words with commas: {text} | Put commas between these words: {text}
            Make a comma separated list: {text} | Write these words with commas: {text} | List with commas: {text}
            Join these words with commas: {text} | {text} - separate the words with commas""",
            "Use commas between the words: {text}",
            "Please put commas between the words: {text} | Separate the words by commas: {text}",
        ),
        lambda words, old, new: ", ".join(words),
    ),
    Task(
        "hyphens",
        ways(
            """Join these words with hyphens: {text} | Put hyphens between these words: {text}
            Connect these words with hyphens: {text} | Write these words with hyphens: {text} | Hyphenate: {text}
            Separate these words with hyphens: {text} | {text} - join the words with hyphens""",
            "Use hyphens between the words: {text}",
            "Please put hyphens between the words: {text} | Join the words by hyphens: {text}",
        ),
        lambda words, old, new: "-".join(words),
        2,
        4,
    ),
    Task(
        "repeat",
        ways(
            """Repeat this: {text} | Repeat after me: {text} | Say: {text} | Copy these words: {text}
            Write exactly this: {text} | Say this again: {text} | Repeat these words: {text} | Please say: {text}""",
            "Echo this: {text} | Copy this text: {text}",
            "Please repeat these words: {text} | Please copy this: {text}",
        ),
        lambda words, old, new: " ".join(words),
        1,
        5,
    ),
    Task(
        "twice",
        ways(
            """Write this twice: {text} | Say this two times: {text} | Repeat this twice: {text} | Say it twice: {text}
            Write these words two times: {text} | Two times, please: {text} | {text} - write this twice""",
            "Give me this two times: {text}",
            "Please write this twice: {text} | Say these words twice: {text}",
        ),
        lambda words, old, new: " ".join(words + words),
        1,
        3,
    ),
    Task(
        "append",
        ways(
            """Add {new} at the end: {text} | Append {new}: {text} | Put {new} at the end: {text}
            Add the word {new} to the end: {text} | Write {new} after these words: {text}
            End this with {new}: {text} | {text} - add {new} at the end""",
            "Attach {new} at the end: {text}",
            "Please add the word {new} at the end: {text} | Put the word {new} at the end of this: {text}",
        ),
        lambda words, old, new: " ".join([*words, new]),
        2,
        4,
    ),
    Task(
        "prepend",
        ways(
            """Add {new} at the beginning: {text} | Prepend {new}: {text} | Put {new} at the start: {text}
            Add the word {new} to the beginning: {text} | Write {new} before these words: {text}
            Start this with {new}: {text} | {text} - add {new} at the beginning""",
            "Put {new} in front: {text}",
            "Please add the word {new} at the beginning: {text} | Put the word {new} at the start of this: {text}",
        ),
        lambda words, old, new: " ".join([new, *words]),
        2,
        4,
    ),
)


def exchange(rng: Random, split: Split) -> Exchange:
    """Ask for one rewriting."""
    task = rng.choice(TASKS)
    *words, new = values.words(rng, split, rng.randint(task.shortest, task.longest) + 1)
    old = rng.choice(words)
    template = rng.choice(task.ask)
    question = template.format(text=" ".join(words), old=old, new=new)
    labels = tuple(f"word:{word}" for word in (*words, new))
    return Exchange(
        KIND, (user(question), assistant(task.rewrite(words, old, new))), f"{task.name}: {template}", labels
    )
