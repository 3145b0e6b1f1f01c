"""What the limits said of one call: gathered by Throttle and Meter, told in headers, metrics and the access log."""

from dataclasses import dataclass

from cache.reservation import Reservation
from gateway.call import Call, TextPrompt
from policies.account import Account
from policies.bucket import Limit
from policies.holder import Rule


@dataclass(slots=True)
class Quota:
    """One call's reservations. `entry` is None where no limit counts calls, `tokens` where none counts tokens.

    `refused` is the rule that answered 429; `overshoot` are output tokens that nobody had granted.
    """

    account: Account
    entry: Reservation | None = None  # throttle
    tokens: Reservation | None = None  # meter
    refused: Rule | None = None  # whichever of the two it was
    reserved: int | None = None  # meter: tokens promised in the end, input and output together
    overshoot: int = 0  # meter

    @property
    def shadowed(self) -> tuple[Limit, ...]:
        """The shadow limits that would have refused it, or cut it short."""
        found = () if self.entry is None else self.entry.shadowed
        return found if self.tokens is None else found + self.tokens.shadowed

    @property
    def degraded(self) -> bool:
        """Whether any of it was promised by this process alone, because the store was down."""
        return (self.entry is not None and self.entry.degraded) or (self.tokens is not None and self.tokens.degraded)


def rule_of(account: Account, key: str) -> Rule | None:
    """Give the rule whose limit has this key; None for what is no limit but stands in one's place."""
    return next((rule for rule in (*account.entry, *account.tokens) if rule.limit.key == key), None)


def level_of(key: str) -> str:
    """Tell from a limit's name which kind of scope it stands on: the names are those of `policies.compile`."""
    scope = key.partition(" ")[0]
    if "#" in scope:
        return "key"
    if scope.endswith("/*"):
        return "team"
    return "tenant" if "/" in scope else "organisation"


def num_choices(call: Call) -> int:
    """Tell how many answers a call asks to be generated, over all its prompts."""
    request = call.request
    each = request.n if request.best_of is None else max(request.n, request.best_of)
    return each * len(request.prompt.prompts) if isinstance(request.prompt, TextPrompt) else each
