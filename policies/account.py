"""Whom a call is charged to, and what the policy says about it: made once for each key and model, then only read."""

from dataclasses import dataclass, replace
from enum import StrEnum

from policies.holder import Rule

SLICE = 256  # output tokens reserved at a time


class OnFailure(StrEnum):
    """What holds while the store cannot be reached: nobody comes in, or each replica holds its share of every limit."""

    CLOSED = "closed"
    LOCAL = "local"


@dataclass(frozen=True, slots=True)
class Account:
    """The limits of one key's calls to one model, over all scopes. Every scope lies in `organisation`.

    `entry` counts calls (rates and gauges) and is taken before anything is known of them; `tokens` counts tokens and
    what they cost. Output is reserved `slice` tokens at a time.
    """

    organisation: str
    entry: tuple[Rule, ...] = ()
    tokens: tuple[Rule, ...] = ()
    on_failure: OnFailure = OnFailure.CLOSED
    slice: int = SLICE


def shares(rules: tuple[Rule, ...], replicas: int) -> tuple[Rule, ...]:
    """Give the rules that one of so many replicas holds on its own."""
    return tuple([replace(rule, limit=rule.limit.share(replicas)) for rule in rules])
