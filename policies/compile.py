"""From the texts of policy files to the policy: read, merged, checked as a whole, and compiled to what calls ask for.

Whatever is wrong is found here: every limit is made once, so that one that cannot be counted is told with its line, and
every limit on costs has prices. Terms are then worked out when they are first asked for, tenant by tenant and model by
model; tenants that no file names are made when they first come, and kept as long as there is room for them.
"""

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from pathlib import PurePath
from types import MappingProxyType
from urllib.parse import quote

from msgspec import structs

from policies.chain import Chain, Scope, in_default, standing_in
from policies.consistency import doubts, flaws
from policies.document import MAX_PROBLEMS, DocumentError, Flaw, Mark, Path, Problem, locate, parse
from policies.policy import Issuer, Policy, StoredKey
from policies.reader import read
from policies.schema import Document, IssuerEntry, KeyEntry, Settings
from policies.tenant import Tenant, Terms

STRANGERS = 16_384  # tenants that no file names, and that are remembered
MAX_CLAIM_CHARS = 256
MAX_LABEL_CHARS = 128
PLAIN = "._@:|+=~-"  # what names may hold beside letters and digits


@dataclass(frozen=True, slots=True)
class Source:
    """One file: its name for messages, its text, and the folder that its paths start from."""

    file: str
    text: str = field(repr=False)
    base: str = ""


def compile_policy(
    sources: Sequence[Source],
    *,
    served: Collection[str] = (),
    pepper: str | None = "",
    is_file: Callable[[str], bool] | None = None,
) -> Policy:
    """Make one policy of all files. `served` are the models there are, `pepper` the mark of the keys' one (None: any).

    `is_file` tells whether a file is there (None: any is). Raises `DocumentError` with everything that is wrong.
    """
    whole, owners = _merge(_read(sources))
    issuers = {url: _issuer(url, entry, owners["issuers", url].base) for url, entry in whole.issuers.items()}
    wrong = _placed(itertools.chain(flaws(whole, served, pepper), _lost(issuers, is_file)), owners)
    if wrong:
        raise DocumentError(wrong)
    version = _version(sources)
    directory = Directory(whole, version)
    return Policy(
        version=version,
        find=lru_cache(STRANGERS)(directory.find),
        keys=MappingProxyType({key.id: key for key in directory.stored()}),
        issuers=MappingProxyType(issuers),
        doubts=tuple(str(doubt) for doubt in _placed(doubts(whole, served), owners)),
    )


class Directory:
    """Everybody that a document knows, and the tenants it makes of those that it does not."""

    def __init__(self, document: Document, version: str) -> None:
        self._document = document
        self._version = version

    def find(self, organisation: str, team: str | None, tenant: str, key: str | None) -> Tenant | None:
        """Give a tenant by its names; None where the organisation is not known, or a name is none.

        Whom a file names is in the team that the file says. `key` is only told on: a token's subject has no limits.
        """
        known = self._document.organisations.get(organisation)
        if known is None or not 0 < len(tenant) <= MAX_CLAIM_CHARS or (team and len(team) > MAX_CLAIM_CHARS):
            return None
        if tenant in known.tenants:
            team = known.tenants[tenant].team
        return self._tenant(organisation, team or None, tenant, key, None)

    def stored(self) -> Iterator[StoredKey]:
        """Give every key with the tenant that it speaks for."""
        for organisation, known in self._document.organisations.items():
            for name, tenant in known.tenants.items():
                for key_id, entry in tenant.keys.items():
                    holder = self._tenant(organisation, tenant.team, name, key_id, entry)
                    expires = None if entry.expires is None else entry.expires.unix_s
                    yield StoredKey(key_id, entry.hash.digest, holder, expires)

    def _tenant(
        self, organisation: str, team: str | None, name: str, key: str | None, entry: KeyEntry | None
    ) -> Tenant:
        document = self._document
        known = document.organisations[organisation]
        tenant = known.tenants.get(name)
        group = None if team is None else known.teams.get(team)
        path = "/".join(label(part) for part in (organisation, team, name) if part is not None)
        scopes = [Scope(organisation, known)]
        if group is not None:
            scopes.append(Scope(f"{organisation}/{team}/*", group))
        scopes.append(Scope(path, standing_in(tenant, known.defaults, document.defaults)))
        if entry is not None:
            scopes.append(Scope(f"{path}#{key}", entry))
        far = (in_default(known.defaults, tenant), known, in_default(document.defaults, tenant, known.defaults))
        near: list[Settings | None] = [entry, tenant, group]
        chain = Chain(tuple(scopes), (*[settings for settings in near if settings is not None], *far), document.prices)

        def decide(model: str) -> Terms:
            return chain.terms(organisation, model)

        return Tenant(
            path,
            salt_of(organisation if chain.shares_prefixes() else path),
            organisation,
            team,
            key,
            decide,
            self._version,
        )


def label(name: str) -> str:
    """Write any name so that it is plain, not long, and nobody else's: limits, logs and headers carry it."""
    plain = quote(name, safe=PLAIN, errors="surrogatepass")
    if len(plain) <= MAX_LABEL_CHARS:
        return plain
    return f"{plain[:MAX_LABEL_CHARS]}!{blake2b(plain.encode(), digest_size=12).hexdigest()}"  # no `!` is ever plain


def salt_of(name: str) -> bytes:
    """Give what keeps computed prompts apart. It follows from the name, so that they outlive a restart."""
    return blake2b(name.encode(), digest_size=16, person=b"penstock-salt").digest()


def _read(sources: Sequence[Source]) -> list[tuple[Source, Document]]:
    """Read every file before anything is said, so that all that is wrong is said at once. Raises `DocumentError`."""
    documents: list[tuple[Source, Document]] = []
    problems: list[Problem] = []
    for source in sources:
        try:
            document = read(source.text, source.file, Document)
        except DocumentError as error:
            problems += error.problems
            continue
        if document == Document():
            # Cut off at its beginning, most likely; taken at its word, it would shut everybody out.
            message = "says nothing; remove the file if that is meant"
            problems.append(Problem(source.file, Mark(1, 1), (), message))
        documents.append((source, document))
    if problems:
        raise DocumentError(problems)
    return documents


def _merge(documents: Sequence[tuple[Source, Document]]) -> tuple[Document, dict[Path, Source]]:
    """Put files together, and tell which file each name stands in. Raises `DocumentError` for a name in two."""
    owners: dict[Path, Source] = {}
    problems: list[Problem] = []
    whole = Document()
    for source, document in documents:
        taken: list[Flaw] = []
        for section in Document.__struct_fields__:
            content = getattr(document, section)
            names: list[Path] = [(section, name) for name in content] if isinstance(content, dict) else [(section,)]
            if content is None:
                continue
            for path in names:
                if path in owners:
                    first = _located(owners[path], [Flaw(path, "")])[0]
                    taken.append(Flaw(path, f"stands in {first.file}:{first.mark.line} already; each name in one file"))
                owners.setdefault(path, source)
            merged = getattr(whole, section) | content if isinstance(content, dict) else content
            whole = structs.replace(whole, **{section: merged})
        problems += _located(source, taken)
    if problems:
        raise DocumentError(problems)
    return whole, owners


def _placed(found: Iterable[Flaw], owners: dict[Path, Source]) -> list[Problem]:
    """Look up where the first flaws stand, each once."""
    by_source: dict[Source, list[Flaw]] = {}
    for flaw in itertools.islice(dict.fromkeys(found), MAX_PROBLEMS):
        source = owners[flaw.path[:2]] if flaw.path[:2] in owners else owners[flaw.path[:1]]
        by_source.setdefault(source, []).append(flaw)
    return [problem for source, here in by_source.items() for problem in _located(source, here)]


def _located(source: Source, found: Sequence[Flaw]) -> list[Problem]:
    """Look up where flaws stand, by reading the file once more: the tree is not kept for the good case."""
    if not found:
        return []
    root = parse(source.text, source.file)
    return [Problem(source.file, locate(root, flaw.path), flaw.path, flaw.message) for flaw in found]


def _issuer(url: str, entry: IssuerEntry, base: str) -> Issuer:
    jwks = entry.jwks if "://" in entry.jwks else str(PurePath(base) / entry.jwks)
    return Issuer(
        url,
        entry.audiences,
        jwks,
        entry.algorithms,
        entry.organisation,
        entry.organisation_claim,
        entry.team_claim,
        entry.tenant_claim,
        entry.leeway_s,
    )


def _lost(issuers: Mapping[str, Issuer], is_file: Callable[[str], bool] | None) -> Iterator[Flaw]:
    for url, issuer in issuers.items():
        if is_file is not None and "://" not in issuer.jwks and not is_file(issuer.jwks):
            yield Flaw(("issuers", url, "jwks"), f"got {issuer.jwks!r}, expected a file that exists")


def _version(sources: Sequence[Source]) -> str:
    """Name a policy by its texts, in whichever order and under whichever names."""
    digests = sorted(blake2b(source.text.encode(), digest_size=16).digest() for source in sources)
    return blake2b(b"".join(digests), digest_size=6).hexdigest()
