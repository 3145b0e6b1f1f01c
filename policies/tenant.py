"""Whom a call speaks for, and what the policy says about that: resolved once for each key and model, then only read.

A tenant belongs to the policy that it was resolved from. A call keeps the tenant that it was authenticated as, so a
reload in the middle of a call changes nothing for it: no call sees a mixture of two policies.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from policies.account import Account


class Priority(StrEnum):
    """Who goes first where there is not room for all."""

    __hash__ = str.__hash__  # an enum's own is written in Python

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


STANDING: Mapping[Priority, int] = MappingProxyType({Priority.HIGH: 1, Priority.NORMAL: 0, Priority.LOW: -1})


@dataclass(frozen=True, slots=True)
class Price:
    """What tokens of a model cost, in billionths of a US dollar each. `cached` are input tokens that a cache knew."""

    input: int = 0
    cached: int = 0
    output: int = 0


@dataclass(frozen=True, slots=True)
class OutputRule:
    """How many tokens a choice may bring. `default` holds where the caller says nothing, `cap` whatever it says.

    A request for more than `cap` is answered 400, or, with `clamp`, as if it had asked for `cap`.
    """

    default: int | None = None
    cap: int | None = None
    clamp: bool = False


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for one tenant's calls to one model. `price` is None where no price is known.

    `deadline_s` is how long a call may take, None where only the gateway bounds it; `weight` is the tenant's share of
    what there is not room for, beside the others' of its priority.
    """

    account: Account
    allowed: bool = True
    max_input: int | None = None
    output: OutputRule = OutputRule()
    priority: Priority = Priority.NORMAL
    queue_deadline_s: float | None = None
    price: Price | None = None
    deadline_s: float | None = None
    weight: float = 1.0


def unlimited(model: str) -> Terms:
    """Give the terms of who is bound by no policy."""
    return UNLIMITED


UNLIMITED = Terms(Account("anybody"))


@dataclass(frozen=True, slots=True)
class Tenant:
    """One caller, with the scopes it lies in, widest first: organisation, team, tenant, key.

    `id` names it in logs and metrics (`acme/search/web`). `salt` separates what is remembered for it from everybody
    else's. `key` is the id of the key or the subject of the token that was shown, for logs and limits of its own.
    `policy` is the version of the policy that it is of.
    """

    id: str
    salt: bytes = b""
    organisation: str = "anybody"
    team: str | None = None
    key: str | None = None
    decide: Callable[[str], Terms] = unlimited
    policy: str | None = None
    _terms: dict[str, Terms] = field(default_factory=dict, repr=False, compare=False)

    def terms(self, model: str) -> Terms:
        """Give what holds for calls to a served model. Pass names that are served, not what callers wrote."""
        terms = self._terms.get(model)
        if terms is None:
            terms = self._terms[model] = self.decide(model)
        return terms
