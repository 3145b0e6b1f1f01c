"""The scopes that a call lies in, organisation first, and what they say together.

Limits of all scopes hold, each on its own. Of caps the smallest holds, of allowed models what every scope allows. For
everything else the word that was spoken nearest to the key holds, and those of the defaults come last.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from msgspec import structs

from policies.account import SLICE, Account, OnFailure
from policies.amount import Period, Rate, Spending
from policies.bucket import Kind, Limit
from policies.holder import Measure, Rule
from policies.schema import CallSettings, LimitEntry, ModelPrice, OutputLimit, Settings
from policies.tenant import OutputRule, Price, Priority, Terms

T = TypeVar("T")

AT_THE_DOOR = frozenset(
    {Measure.REQUESTS, Measure.CONCURRENCY}
)  # what is known of a call before its tokens are counted
NANO_DIGITS = 9


@dataclass(frozen=True, slots=True)
class Scope:
    """One scope: the name that its limits carry (`acme`, `acme/search/*`, `acme/search/web`), and what it says."""

    name: str
    settings: Settings


@dataclass(frozen=True, slots=True)
class Chain:
    """The scopes of one caller, widest first, defaults filled in; `nearest` is where a nearest word is looked for."""

    scopes: tuple[Scope, ...]
    nearest: tuple[Settings, ...]
    prices: Mapping[str, ModelPrice]

    def terms(self, organisation: str, model: str) -> Terms:
        """Work out what holds for calls to a model."""
        price = price_of(self.prices, model)
        rules = [rule for scope in self.scopes for rule in rules_of(scope, model, price)]
        unpriced = price is None and any(rule.measure is Measure.COST for rule in rules)
        account = Account(
            organisation,
            entry=tuple(rule for rule in rules if rule.measure in AT_THE_DOOR),
            tokens=tuple(rule for rule in rules if rule.measure not in AT_THE_DOOR),
            on_failure=self._word("on_store_failure") or OnFailure.CLOSED,
            slice=self._word("slice_tokens") or SLICE,
        )
        return Terms(
            account,
            allowed=not unpriced and all(allows(scope.settings, model) for scope in self.scopes),
            max_input=smallest(said(scope.settings, model, "max_input_tokens") for scope in self.scopes),
            output=self._output(model),
            priority=self._word("priority", model) or Priority.NORMAL,
            queue_deadline_s=smallest(said(scope.settings, model, "queue_deadline_s") for scope in self.scopes),
            price=price,
            deadline_s=smallest(said(scope.settings, model, "deadline_s") for scope in self.scopes),
            weight=self._word("weight", model) or 1.0,
        )

    def shares_prefixes(self) -> bool:
        """Whether the whole organisation shares what was computed of equal prompts."""
        return bool(self._word("prefix_cache") == "organisation")

    def _word(self, name: str, model: str | None = None) -> Any:
        words = (said(settings, model, name) if model else getattr(settings, name) for settings in self.nearest)
        return next((word for word in words if word is not None), None)

    def _output(self, model: str) -> OutputRule:
        """The nearest default, the smallest cap, and beyond that cap what stands beside it."""
        nearest = [said(settings, model, "max_output_tokens") for settings in self.nearest]
        default = next((rule.default for rule in nearest if rule is not None and rule.default is not None), None)
        rules: list[OutputLimit | None] = [said(scope.settings, model, "max_output_tokens") for scope in self.scopes]
        capped = [(rule.cap, rule.over) for rule in reversed(rules) if rule is not None and rule.cap is not None]
        cap, over = min(capped, key=lambda pair: pair[0], default=(None, "refuse"))
        return OutputRule(smallest((default, cap)) if default else None, cap, over == "clamp")


def standing_in(tenant: Settings | None, *defaults: Settings | None) -> Settings:
    """Give what a tenant says, and where it says nothing, what the first defaults do that say something."""
    voices = [voice for voice in (tenant, *defaults) if voice is not None]
    words = {
        name: next((word for voice in voices if (word := getattr(voice, name)) is not None), None)
        for name in Settings.__struct_fields__
    }
    return Settings(**words)


def in_default(defaults: Settings | None, *nearer: Settings | None) -> Settings:
    """Give defaults without `per_model` where somebody nearer speaks of models: that replaces it as a whole."""
    if defaults is None or any(settings is not None and settings.per_model is not None for settings in nearer):
        return structs.replace(defaults, per_model=None) if defaults is not None else Settings()
    return defaults


def said(settings: Settings, model: str, name: str) -> Any:
    """Give what a scope says for a model: in particular, else in general."""
    particular: CallSettings | None = matching(settings.per_model or {}, model)
    word = None if particular is None else getattr(particular, name, None)
    return getattr(settings, name) if word is None else word


def allows(settings: Settings, model: str) -> bool:
    """Whether a scope lets a model be called."""
    return settings.models is None or any(fnmatchcase(model, pattern) for pattern in settings.models)


def matching(by_pattern: Mapping[str, T], model: str) -> T | None:
    """Give what stands under a model's name, else under the first pattern that matches it."""
    if model in by_pattern:
        return by_pattern[model]
    return next((value for pattern, value in by_pattern.items() if fnmatchcase(model, pattern)), None)


def price_of(prices: Mapping[str, ModelPrice], model: str) -> Price | None:
    """Give what a model's tokens cost."""
    price = matching(prices, model)
    if price is None:
        return None
    return Price(price.input.nano, (price.cached_input or price.input).nano, price.output.nano)


def rules_of(scope: Scope, model: str, price: Price | None) -> Iterator[Rule]:
    """Give what of a call to a model counts against the limits of a scope."""
    for entry in applicable(scope.settings.limits or (), model):
        yield rule_of(entry, limit_of(entry, scope.name, model), price or Price())


def applicable(entries: Iterable[LimitEntry], model: str) -> list[LimitEntry]:
    """Give the limits that a model's calls count against: of each kind one for all models, and one for some."""
    found: dict[tuple[str, bool], LimitEntry] = {}
    for entry in entries:
        if entry.model is None or fnmatchcase(model, entry.model):
            slot = (counted(entry), entry.model is None)
            if slot not in found or entry.model == model:
                found[slot] = entry
    return list(found.values())


def measures(entry: LimitEntry) -> list[Measure]:
    """Give everything that a limit says it counts; that should be one."""
    return [measure for measure in Measure if getattr(entry, measure.value) is not None]


def counted(entry: LimitEntry) -> str:
    """Name what a limit counts, in what time: `tokens/day`, `concurrency`."""
    measure = measures(entry)[0]
    value: Rate | Spending | int = getattr(entry, measure.value)
    return measure.value if isinstance(value, int) else f"{measure.value}/{value.period.name}"


def limit_of(entry: LimitEntry, scope: str, model: str) -> Limit:
    """Make the limit that a scope has by an entry. Raises `ValueError` where it cannot be counted exactly."""
    key = f"{scope} {counted(entry)}" + ("" if entry.model is None else f" {model}")
    measure = measures(entry)[0]
    value: Rate | Spending | int = getattr(entry, measure.value)
    if isinstance(value, int):
        return Limit.gauge(key, value, shadow=entry.shadow)
    period: Period = value.period
    if period.kind is not Kind.BUCKET:
        return Limit.budget(key, period.kind, value.amount, shadow=entry.shadow)
    digits = NANO_DIGITS if measure is Measure.COST else 0
    capacity = None if entry.burst is None else entry.burst.scaled(digits)
    return Limit.bucket(key, value.amount, period.us, capacity=capacity, shadow=entry.shadow)


def rule_of(entry: LimitEntry, limit: Limit, price: Price) -> Rule:
    """Say what of a call an entry's limit counts."""
    measure = measures(entry)[0]
    cached = 0 if entry.cached == "free" else 1
    match measure:
        case Measure.REQUESTS | Measure.CONCURRENCY:
            return Rule(limit, call=1, measure=measure)
        case Measure.INPUT:
            return Rule(limit, input=1, cached=cached, measure=measure)
        case Measure.OUTPUT:
            return Rule(limit, output=1, measure=measure)
        case Measure.TOKENS:
            return Rule(limit, input=1, cached=cached, output=1, measure=measure)
        case Measure.COST:
            return Rule(limit, input=price.input, cached=price.cached, output=price.output, measure=measure)


def smallest(values: Iterable[T | None]) -> T | None:
    """Give the smallest of what was said."""
    return min((value for value in values if value is not None), default=None)  # type: ignore[type-var]
