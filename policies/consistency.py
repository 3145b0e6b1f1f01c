"""What types cannot say of a policy document: names that lead nowhere, limits that cannot be, costs without a price."""

from collections.abc import Collection, Iterator, Sequence
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

from policies.chain import NANO_DIGITS, allows, applicable, counted, limit_of, measures, price_of, standing_in
from policies.document import Flaw, Path
from policies.holder import Measure
from policies.reader import choice
from policies.schema import CallSettings, Document, IssuerEntry, LimitEntry, OrganisationEntry, Settings

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def flaws(document: Document, served: Collection[str], pepper: str | None) -> Iterator[Flaw]:
    """Find everything that is wrong; `pepper` is the mark of the gateway's (None: any), `served` the models it has."""
    for path, settings in _everybody(document):
        yield from _settings(path, settings)
    holders: dict[str, str] = {}
    for name, organisation in document.organisations.items():
        yield from _organisation(("organisations", name), organisation, pepper, holders)
        yield from _unpriced(name, organisation, document, served)
    for url, issuer in document.issuers.items():
        yield from _issuer(("issuers", url), issuer, document)


def doubts(document: Document, served: Collection[str]) -> Iterator[Flaw]:
    """Find names of models that nothing is served under; the files may be meant for other gateways too."""
    for path, settings in _everybody(document) if served else ():
        named: list[tuple[Path, str]] = [((*path, "models", i), model) for i, model in enumerate(settings.models or ())]
        named += [((*path, "per_model", model), model) for model in settings.per_model or ()]
        limits = enumerate(settings.limits or ())
        named += [((*path, "limits", i, "model"), entry.model) for i, entry in limits if entry.model is not None]
        for place, pattern in named:
            if not any(fnmatchcase(model, pattern) for model in served):
                yield Flaw(place, f"got {pattern!r}, and no model of that name is served{choice(pattern, served)}")


def _everybody(document: Document) -> Iterator[tuple[Path, Settings]]:
    """Give every scope, and all defaults."""
    if document.defaults is not None:
        yield ("defaults",), document.defaults
    for name, organisation in document.organisations.items():
        path: Path = ("organisations", name)
        yield path, organisation
        if organisation.defaults is not None:
            yield (*path, "defaults"), organisation.defaults
        for team, settings in organisation.teams.items():
            yield (*path, "teams", team), settings
        for label, tenant in organisation.tenants.items():
            yield (*path, "tenants", label), tenant
            for key_id, key in tenant.keys.items():
                yield (*path, "tenants", label, "keys", key_id), key


def _organisation(
    path: Path, organisation: OrganisationEntry, pepper: str | None, holders: dict[str, str]
) -> Iterator[Flaw]:
    for name, tenant in organisation.tenants.items():
        here = (*path, "tenants", name)
        if tenant.team is not None and tenant.team not in organisation.teams:
            known = choice(tenant.team, organisation.teams)
            yield Flaw((*here, "team"), f"got {tenant.team!r}, no team of that name{known}")
        for key_id, key in tenant.keys.items():
            at = (*here, "keys", key_id)
            if key_id in holders:
                yield Flaw(at, f"the key {key_id!r} is one of {holders[key_id]} already; ids are unique over all files")
            holders.setdefault(key_id, f"{path[1]}/{name}")
            if pepper is not None and key.hash.pepper != pepper:
                yield Flaw((*at, "hash"), _peppered(key.hash.pepper, pepper))


def _peppered(made: str, ours: str) -> str:
    if not made:
        return "made without a pepper, and `key_pepper` of penstock.yaml names one; make the key anew"
    return f"made with the pepper {made}; " + (f"that of `key_pepper` is {ours}" if ours else "`key_pepper` names none")


def _settings(path: Path, settings: Settings) -> Iterator[Flaw]:
    yield from _output(path, settings)
    for model, particular in (settings.per_model or {}).items():
        yield from _output((*path, "per_model", model), particular)
    seen: dict[tuple[str, str | None], int] = {}
    for index, entry in enumerate(settings.limits or ()):
        at = (*path, "limits", index)
        found = measures(entry)
        if len(found) != 1:
            got = " and ".join(measure.value for measure in found) or "none"
            yield Flaw(at, f"got {got}, expected exactly one of {', '.join(measure.value for measure in Measure)}")
            continue
        slot = (counted(entry), entry.model)
        if slot in seen:
            of = f" for {entry.model!r}" if entry.model else ""
            yield Flaw(at, f"a second limit on {slot[0]}{of}; limits[{seen[slot]}] is one already")
        seen.setdefault(slot, index)
        yield from _limit(at, entry, found[0])


def _limit(path: Path, entry: LimitEntry, measure: Measure) -> Iterator[Flaw]:
    if entry.cached == "free" and measure not in (Measure.INPUT, Measure.TOKENS):
        yield Flaw(
            (*path, "cached"), f"got 'free' beside {measure.value}; it has a meaning for input_tokens and tokens"
        )
    value = getattr(entry, measure.value)
    if entry.burst is not None and (isinstance(value, int) or not value.period.us):
        what = "concurrency" if isinstance(value, int) else f"a {value.period.name}"
        yield Flaw((*path, "burst"), f"got {entry.burst.text!r}, but {what} has no burst; only rates in s, min, h have")
        return
    where = measure.value
    try:
        if entry.burst is not None:
            where = "burst"
            entry.burst.scaled(NANO_DIGITS if measure is Measure.COST else 0)
            where = measure.value
        limit_of(entry, "this", "model")
    except ValueError as error:
        yield Flaw((*path, where), str(error))


def _output(path: Path, settings: CallSettings) -> Iterator[Flaw]:
    rule = settings.max_output_tokens
    if rule is not None and rule.default and rule.cap and rule.default > rule.cap:
        message = f"got {rule.default}, expected at most the cap beside it, {rule.cap}"
        yield Flaw((*path, "max_output_tokens", "default"), message)


def _unpriced(
    name: str, organisation: OrganisationEntry, document: Document, served: Collection[str]
) -> Iterator[Flaw]:
    """Find limits on costs that count calls to a model without a price: they would count nothing."""
    unpriced = [model for model in served if price_of(document.prices, model) is None]
    if not unpriced:
        return
    own: Path = ("organisations", name)
    voices: list[tuple[Path, Settings | None]] = [((*own, "defaults"), organisation.defaults)]
    voices.append((("defaults",), document.defaults))
    scopes: list[tuple[Path, tuple[Settings, ...]]] = [(own, (organisation,))]
    scopes += [((*own, "teams", team), (organisation, each)) for team, each in organisation.teams.items()]
    at, filled = _filled(voices)
    scopes.append((at, (organisation, filled)))
    for label, tenant in organisation.tenants.items():
        here = (*own, "tenants", label)
        group = organisation.teams.get(tenant.team or "")
        at, filled = _filled([(here, tenant), *voices])
        chain: tuple[Settings, ...] = (organisation, filled) if group is None else (organisation, group, filled)
        scopes.append((at, chain))
        scopes += [((*here, "keys", key_id), (*chain, key)) for key_id, key in tenant.keys.items()]
    for path, chain in scopes:
        for model in unpriced:
            if all(allows(settings, model) for settings in chain):
                yield from _without_price(path, chain[-1], model)


def _filled(voices: Sequence[tuple[Path, Settings | None]]) -> tuple[Path, Settings]:
    """Give what holds for a tenant, and where the limits among it stand."""
    limited = [path for path, settings in voices if settings is not None and settings.limits is not None]
    return limited[0] if limited else (), standing_in(*[settings for _, settings in voices])


def _without_price(path: Path, settings: Settings, model: str) -> Iterator[Flaw]:
    entries = settings.limits or ()
    sound = [entry for entry in entries if len(measures(entry)) == 1]
    for entry in applicable(sound, model):
        if entry.cost is not None:
            at = (*path, "limits", entries.index(entry), "cost")
            yield Flaw(at, f"counts calls to {model!r}, which has no price; name it in `prices`, or not in `models`")


def _issuer(path: Path, issuer: IssuerEntry, document: Document) -> Iterator[Flaw]:
    if (issuer.organisation is None) == (issuer.organisation_claim is None):
        got = "neither" if issuer.organisation is None else "both"
        yield Flaw(path, f"expected either `organisation` or `organisation_claim`, got {got}")
    if issuer.organisation is not None and issuer.organisation not in document.organisations:
        known = choice(issuer.organisation, document.organisations)
        yield Flaw((*path, "organisation"), f"got {issuer.organisation!r}, no organisation of that name{known}")
    if "://" in issuer.jwks and "@" in issuer.jwks:
        yield Flaw((*path, "jwks"), "holds a user or password; a URL of public keys needs none")
    elif "://" in issuer.jwks and not _fetchable(issuer.jwks):
        expected = "expected https://, http:// on loopback, or a file"
        yield Flaw((*path, "jwks"), f"got {issuer.jwks!r}, {expected}")


def _fetchable(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    plain = parts.scheme == "http" and parts.hostname in LOOPBACK
    return bool(parts.hostname) and (plain or parts.scheme == "https")
