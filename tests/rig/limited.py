"""Tenants with limits, made directly: what a policy document would say, without the document."""

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.identity.keyring import ApiKey, Keyring
from policies.account import Account, OnFailure
from policies.bucket import Limit
from policies.holder import Measure, Rule
from policies.tenant import Tenant, Terms

MINUTE_US = 60_000_000


class KnownTenants(Keyring):
    """A keyring over tenants as they are; each key is given beside its tenant."""

    def __init__(self, tenants: Mapping[str, Tenant]) -> None:
        super().__init__([ApiKey(tenant.id, key) for key, tenant in tenants.items()])
        self._tenants = {key.encode(): tenant for key, tenant in tenants.items()}

    def find(self, presented: bytes) -> Tenant | None:
        return self._tenants.get(presented)


@dataclass
class Clock:
    """Virtual time in µs, for a ledger and its embedded store."""

    now: int = 1_790_000_000_000_000

    def __call__(self) -> int:
        return self.now


def requests_a_minute(amount: int, key: str = "acme/requests") -> Rule:
    return Rule(Limit.bucket(key, amount, MINUTE_US), call=1, measure=Measure.REQUESTS)


def tokens_a_minute(amount: int, key: str = "acme/tokens") -> Rule:
    return Rule(Limit.bucket(key, amount, MINUTE_US), input=1, cached=1, output=1)


def output_a_minute(amount: int, key: str = "acme/output") -> Rule:
    return Rule(Limit.bucket(key, amount, MINUTE_US), output=1, measure=Measure.OUTPUT)


def at_a_time(amount: int, key: str = "acme/concurrency") -> Rule:
    return Rule(Limit.gauge(key, amount), call=1, measure=Measure.CONCURRENCY)


def account(
    *rules: Rule, organisation: str = "acme", step: int = 256, on_failure: OnFailure = OnFailure.CLOSED
) -> Account:
    """Sort rules into those of calls and those of tokens."""
    entry = tuple([rule for rule in rules if rule.measure in (Measure.REQUESTS, Measure.CONCURRENCY)])
    return Account(organisation, entry, tuple([rule for rule in rules if rule not in entry]), on_failure, step)


def limited(*rules: Rule, step: int = 256, on_failure: OnFailure = OnFailure.CLOSED) -> Tenant:
    """Make a tenant whose calls all have these limits."""
    terms = Terms(account(*rules, step=step, on_failure=on_failure))
    return Tenant("acme/web", organisation="acme", key="key-1", decide=lambda model: terms)
