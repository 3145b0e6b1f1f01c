"""The policy document: who there is, and what each may do. Frozen structs, whose sentences are their documentation.

Settings stand on an organisation, a team, a tenant and a key alike. What stands on a wider scope binds all within it;
what a tenant does not say itself, its organisation's `defaults` say, and then those of the document.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct
from msgspec import field as setting

from policies.account import OnFailure
from policies.amount import Amount, Moment, Rate, Spending, TokenPrice
from policies.key import KEY_ID, KeyHash
from policies.reader import UNSEEN
from policies.tenant import Priority

# Names of scopes. No slash, hash or star, of which names of limits are made; claims like `auth0|5f7c` can be named.
NAME = r"^[A-Za-z0-9][A-Za-z0-9._@:|+=~-]{0,127}$"
MODEL = r"^[A-Za-z0-9*][A-Za-z0-9._:/@*-]{0,127}$"

Name = Annotated[str, Meta(pattern=NAME)]
KeyId = Annotated[str, Meta(pattern=KEY_ID, extra=UNSEEN)]
ModelPattern = Annotated[str, Meta(pattern=MODEL)]
Count = Annotated[int, Meta(ge=1, le=1_000_000_000)]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]


class Section(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every section is: frozen, and strict about its keys."""


class ModelPrice(Section, frozen=True):
    """What a model's tokens cost, in US dollars per million."""

    input: Annotated[TokenPrice, Meta(description="Input tokens.")]
    output: Annotated[TokenPrice, Meta(description="Output tokens.")]
    cached_input: (
        Annotated[TokenPrice, Meta(description="Input tokens that a cache knew; default: those of `input`.")] | None
    ) = None


class LimitEntry(Section, frozen=True):
    """One limit: exactly one of `requests`, `input_tokens`, `output_tokens`, `tokens`, `cost`, `concurrency`."""

    requests: (
        Annotated[Rate, Meta(description="Requests, counted as they come in; cached answers count too.")] | None
    ) = None
    input_tokens: Annotated[Rate, Meta(description="Tokens of prompts, by the served model's tokenizer.")] | None = None
    output_tokens: Annotated[Rate, Meta(description="Tokens of answers.")] | None = None
    tokens: Annotated[Rate, Meta(description="Tokens of prompts and answers together.")] | None = None
    cost: Annotated[Spending, Meta(description="US dollars, by `prices`.")] | None = None
    concurrency: Annotated[Count, Meta(description="Requests at the same time.")] | None = None
    burst: (
        Annotated[Amount, Meta(description="How much may be used at once; default: a period's. Not for day, month.")]
        | None
    ) = None
    model: (
        Annotated[
            ModelPattern,
            Meta(
                description="Counts calls to this model alone; with a `*`, each model that matches has its own limit."
            ),
        ]
        | None
    ) = None
    cached: Annotated[
        Literal["count", "free"], Meta(description="Whether input tokens that a cache knew are counted.")
    ] = "count"
    shadow: Annotated[bool, Meta(description="Counts and reports what it would refuse, and refuses nothing.")] = False


class OutputLimit(Section, frozen=True):
    """How many tokens an answer may have."""

    default: Annotated[Count, Meta(description="Where the caller says nothing; the nearest scope's holds.")] | None = (
        None
    )
    cap: Annotated[Count, Meta(description="Whatever the caller says; the smallest of all scopes holds.")] | None = None
    over: Annotated[
        Literal["refuse", "clamp"],
        Meta(description="A request for more than `cap` is answered 400, or as if it had asked for `cap`."),
    ] = "refuse"


class CallSettings(Section, frozen=True):
    """What can also be said for one model alone; it then stands in the place of what the same scope says for all."""

    max_input_tokens: (
        Annotated[
            Count, Meta(description="Tokens of a prompt; more is answered 400. The smallest of all scopes holds.")
        ]
        | None
    ) = None
    max_output_tokens: Annotated[OutputLimit, Meta(description="Tokens of an answer.")] | None = None
    priority: (
        Annotated[Priority, Meta(description="Who goes first where there is not room for all; default: normal.")] | None
    ) = None
    queue_deadline_s: (
        Annotated[Seconds, Meta(description="How long to wait for room before 503. The smallest of all scopes holds.")]
        | None
    ) = None
    deadline_s: (
        Annotated[
            Seconds,
            Meta(description="How long a request may take in all before 504. The smallest of all scopes holds."),
        ]
        | None
    ) = None
    weight: (
        Annotated[
            float,
            Meta(
                ge=0.001,
                le=1000,
                description="Its share beside other tenants where there is not room for all; 2 is twice as much as the "
                "default of 1.",
            ),
        ]
        | None
    ) = None


class Settings(CallSettings, frozen=True):
    """What can be said of every scope. Where no smallest holds, the nearest does: key, tenant, team, organisation."""

    limits: (
        Annotated[
            tuple[LimitEntry, ...],
            Meta(max_length=64, description="What the calls of the scope may use together. Those of all scopes hold."),
        ]
        | None
    ) = None
    models: (
        Annotated[
            tuple[ModelPattern, ...],
            Meta(
                description="Models that may be called, `*` matches anything. Each scope must allow one; default: all."
            ),
        ]
        | None
    ) = None
    per_model: (
        Annotated[
            dict[ModelPattern, CallSettings],
            Meta(description="What is different for a model: its name goes before a pattern, of patterns the first."),
        ]
        | None
    ) = None
    on_store_failure: (
        Annotated[
            OnFailure,
            Meta(description="While the store is down: nobody (503), or each replica its share. Default: closed."),
        ]
        | None
    ) = None
    slice_tokens: (
        Annotated[
            int, Meta(ge=1, le=65_536, description="Output tokens reserved at a time, ahead of need. Default: 256.")
        ]
        | None
    ) = None
    prefix_cache: (
        Annotated[
            Literal["tenant", "organisation"],
            Meta(description="Who shares what was computed of equal prompts. Default: tenant."),
        ]
        | None
    ) = None


class KeyEntry(Settings, frozen=True, kw_only=True):
    """One key `id.secret`; its id is the name under which it stands."""

    hash: Annotated[KeyHash, Meta(description="What is kept of the secret: the line of `penstock keys new`.")]
    expires: Annotated[Moment, Meta(description="From when on it is refused; default: never.")] | None = None


class TenantEntry(Settings, frozen=True):
    """One caller: an application, a customer, a person."""

    team: Annotated[Name, Meta(description="The team that it is in; one of `teams`.")] | None = None
    keys: Annotated[dict[KeyId, KeyEntry], Meta(description="Its keys by their ids.")] = setting(default_factory=dict)


class TeamEntry(Settings, frozen=True):
    """Tenants that share limits."""


class OrganisationEntry(Settings, frozen=True):
    """Everybody who pays one bill. Limits of different organisations never meet."""

    defaults: (
        Annotated[Settings, Meta(description="What its tenants do not say themselves, before the document's defaults.")]
        | None
    ) = None
    teams: Annotated[dict[Name, TeamEntry], Meta(description="Its teams by name.")] = setting(default_factory=dict)
    tenants: Annotated[dict[Name, TenantEntry], Meta(description="Its tenants by name.")] = setting(
        default_factory=dict
    )


class IssuerEntry(Section, frozen=True):
    """Whose signed tokens (JWT) are believed; the name is the `iss` they carry. Tenants need not be named here."""

    audiences: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=256)], ...],
        Meta(min_length=1, description="`aud` must name one of them."),
    ]
    jwks: Annotated[
        str,
        Meta(min_length=1, max_length=2048, description="Its public keys: an https URL, or a file beside this one."),
    ]
    algorithms: Annotated[tuple[Algorithm, ...], Meta(min_length=1, description="Signatures that are accepted.")] = (
        "RS256",
        "ES256",
        "EdDSA",
    )
    organisation: Annotated[Name, Meta(description="Whose tokens all of its tokens are.")] | None = None
    organisation_claim: (
        Annotated[
            str, Meta(min_length=1, max_length=256, description="The claim that names the organisation, instead.")
        ]
        | None
    ) = None
    team_claim: (
        Annotated[str, Meta(min_length=1, max_length=256, description="The claim that names the team.")] | None
    ) = None
    tenant_claim: Annotated[str, Meta(min_length=1, max_length=256, description="The claim that names the tenant.")] = (
        "sub"
    )
    leeway_s: Annotated[float, Meta(ge=0, le=600, description="How far clocks may differ.")] = 60.0


class Document(Section, frozen=True):
    """A policy file. Several are read as one; each name stands in one of them."""

    prices: Annotated[
        dict[ModelPattern, ModelPrice],
        Meta(description="Prices by served model: its name goes before a pattern, of patterns the first."),
    ] = setting(default_factory=dict)
    defaults: (
        Annotated[Settings, Meta(description="What tenants do not say themselves, one never seen before included.")]
        | None
    ) = None
    organisations: Annotated[dict[Name, OrganisationEntry], Meta(description="Organisations by name.")] = setting(
        default_factory=dict
    )
    issuers: Annotated[
        dict[Annotated[str, Meta(pattern=r"^https?://[^\s]{1,2048}$")], IssuerEntry],
        Meta(description="Issuers of signed tokens, by the URL that they name themselves (`iss`)."),
    ] = setting(default_factory=dict)
