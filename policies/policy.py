"""One policy, whole: every tenant, key and issuer, and what holds for each. Built from documents, then never changed.

A reload builds another one beside it; whoever asks next gets the new one, and whoever got a tenant of the old one keeps
it to the end of its call.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from policies.tenant import Tenant


@dataclass(frozen=True, slots=True, repr=False)
class StoredKey:
    """What is kept of a key `id.secret`: a keyed hash of the secret. It has no repr, so that no log can show it.

    `expires` is in unix seconds, None for never.
    """

    id: str
    digest: bytes
    tenant: Tenant
    expires: float | None = None


@dataclass(frozen=True, slots=True)
class Issuer:
    """Whose signed tokens (JWT) are believed, and how their claims name a tenant.

    `jwks` is the https URL or the file of its public keys. `organisation` holds for all its tokens, unless
    `organisation_claim` names a claim that says which; `team_claim` and `tenant_claim` name the claims of the others.
    """

    url: str
    audiences: tuple[str, ...]
    jwks: str
    algorithms: tuple[str, ...] = ("RS256", "ES256", "EdDSA")
    organisation: str | None = None
    organisation_claim: str | None = None
    team_claim: str | None = None
    tenant_claim: str = "sub"
    leeway_s: float = 60.0


# organisation, team, tenant, key or subject -> the tenant, by the defaults where it is not named; None if not known
Find = Callable[[str, str | None, str, str | None], Tenant | None]


@dataclass(frozen=True, slots=True)
class Policy:
    """`version` is a short hash of the documents, for logs, headers and metrics.

    `doubts` are lines about what is no mistake and may not be meant.
    """

    version: str
    find: Find
    keys: Mapping[str, StoredKey] = field(default_factory=lambda: MappingProxyType({}))
    issuers: Mapping[str, Issuer] = field(default_factory=lambda: MappingProxyType({}))  # by url, as `iss` says it
    doubts: tuple[str, ...] = ()
