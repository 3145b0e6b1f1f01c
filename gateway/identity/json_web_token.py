"""Signed tokens (JWT, RFC 7519) of the policy's issuers: what makes one good, and whom it speaks for.

In this order: size, shape, an issuer of ours, an algorithm of that issuer's list, a key that the issuer has for it, the
signature, and only then what is claimed (RFC 8725 says why). Keys and signatures are PyJWT's and cryptography's
business. The token is taken apart here: PyJWT looks at each character of it in Python, before any signature, which
doubles the price of a good token and lets strangers make the loop work; and its clock cannot be given.

A good token is remembered by its hash until it expires, its issuer's keys change or another policy comes into force.
Callers show the same token a thousand times, and the memo's 1.5 µs stand against 20 (RS256) to 65 (EdDSA).
"""

import binascii
import re
import time
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from secrets import token_bytes
from typing import Any

import httpx
import msgspec
from jwt.algorithms import get_default_algorithms

from gateway.http.httpx_transport import ClientTransport
from gateway.http.pool import PoolLimits
from gateway.identity.key_set import ALGORITHMS, Keys, KeySet, from_file, from_url
from gateway.identity.refusal import Reason, cannot_tell, refused
from policies.policy import Issuer, Policy
from policies.tenant import Tenant

MAX_TOKEN_BYTES = 8192
MAX_REMEMBERED = 8192
MAX_NAME_CHARS = 256
MAX_INSTANT = 1e12  # unix seconds, in the year 33658: what is later was meant as milliseconds
CONNECTIONS = 2  # to one issuer
PARTS = re.compile(rb"((eyJ[A-Za-z0-9_-]*)\.([A-Za-z0-9_-]+))\.([A-Za-z0-9_-]+)")


class Header(msgspec.Struct):
    """What we read of a token's header. `crit` names extensions that must be understood; we understand none."""

    alg: str
    kid: str | None = None
    crit: Any = None


class Token(msgspec.Struct):
    """A token taken apart; nothing of it is believed yet."""

    header: Header
    claims: dict[str, Any]
    signed: bytes
    signature: bytes


class Remembered(msgspec.Struct):
    """A token that was good, for as long as its issuer's keys are the same ones. `until` is in unix seconds."""

    tenant: Tenant
    until: float
    key_set: KeySet
    keys: Keys


class JsonWebTokens:
    """Verifies tokens. Keeps the key sets of the issuers of the policy that was last asked about."""

    def __init__(
        self,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
        remember: int = MAX_REMEMBERED,
    ) -> None:
        transport = transport or ClientTransport(PoolLimits(connections=CONNECTIONS))
        self._client = httpx.AsyncClient(transport=transport)
        self._wall_clock = wall_clock
        self._clock = clock
        self._algorithms = get_default_algorithms()
        self._policy: Policy | None = None
        self._key_sets: dict[str, KeySet] = {}
        self._hash = blake2b(key=token_bytes(32), digest_size=32)
        self._remember = remember
        self._remembered: dict[bytes, Remembered] = {}

    def serve(self, policy: Policy) -> None:
        """Take this policy's issuers for the known ones: begin to fetch the keys of new ones, forget the others."""
        if policy is self._policy:
            return
        self._policy = policy
        self._remembered.clear()
        wanted = {issuer.jwks for issuer in policy.issuers.values()}
        for source in self._key_sets.keys() - wanted:
            self._key_sets.pop(source).retire()
        for source in wanted - self._key_sets.keys():
            self._key_sets[source] = KeySet(source, self._fetch(source), clock=self._clock)
            self._key_sets[source].look()

    def at_once(self, policy: Policy, presented: bytes, *, asked: bool = False) -> Tenant | None:
        """Give the tenant of a token. None where its issuer must first be asked for keys, unless it just was.

        Raises `Unauthenticated`, and `Overloaded` where the issuer was asked in vain.
        """
        self.serve(policy)
        digest = self._digest(presented)
        known = self._remembered.get(digest)
        if known is not None:
            if self._wall_clock() < known.until and known.key_set.look() is known.keys:
                return known.tenant
            del self._remembered[digest]
        token, issuer = self._recognise(policy, presented)
        key_set = self._key_sets[issuer.jwks]
        keys = key_set.look()
        if keys is None:
            if asked:
                raise cannot_tell()
            return None
        key = keys.find(token.header.kid, token.header.alg)
        if key is None:
            if asked or not key_set.may_ask:
                raise refused(Reason.KEY_ID)
            return None
        if not self._algorithms[token.header.alg].verify(token.signed, key.key, token.signature):
            raise refused(Reason.SIGNATURE)
        until = check_claims(token.claims, issuer, self._wall_clock())
        tenant = whose(token.claims, issuer, policy)
        if self._remember:
            if len(self._remembered) >= self._remember:
                del self._remembered[next(iter(self._remembered))]  # the oldest; only good tokens get here
            self._remembered[digest] = Remembered(tenant, until, key_set, keys)
        return tenant

    async def after_asking(self, policy: Callable[[], Policy], presented: bytes) -> Tenant:
        """Ask the token's issuer for its keys, then give the tenant, of the policy that is in force by then.

        Raises `Unauthenticated`, or `Overloaded` where the keys cannot be had.
        """
        known = policy()
        self.serve(known)
        _, issuer = self._recognise(known, presented)
        await self._key_sets[issuer.jwks].ask()
        tenant = self.at_once(policy(), presented, asked=True)
        assert tenant is not None, "who has asked is answered"
        return tenant

    def failures(self) -> float:
        """Count the fetches that failed, for metrics."""
        return sum(key_set.failures for key_set in self._key_sets.values())

    def age_s(self) -> float:
        """Give the age of the oldest key set, for metrics; infinite where one has not come yet."""
        return max((key_set.age_s for key_set in self._key_sets.values()), default=0.0)

    async def aclose(self) -> None:
        """End what is being fetched."""
        for key_set in self._key_sets.values():
            await key_set.aclose()
        await self._client.aclose()

    def _recognise(self, policy: Policy, presented: bytes) -> tuple[Token, Issuer]:
        token = take_apart(presented)
        name = token.claims.get("iss")
        issuer = policy.issuers.get(name) if isinstance(name, str) else None
        if issuer is None:
            raise refused(Reason.ISSUER)
        if token.header.alg not in issuer.algorithms or token.header.alg not in ALGORITHMS:
            raise refused(Reason.ALGORITHM)
        return token, issuer

    def _digest(self, presented: bytes) -> bytes:
        state = self._hash.copy()
        state.update(presented)
        return state.digest()

    def _fetch(self, source: str) -> Callable[[], Any]:
        return from_url(self._client, source) if "://" in source else from_file(Path(source))


def take_apart(presented: bytes) -> Token:
    """Read a token's parts. Raises `Unauthenticated` for what is none."""
    parts = None if len(presented) > MAX_TOKEN_BYTES else PARTS.fullmatch(presented)
    if parts is None:
        raise refused(Reason.MALFORMED)
    try:
        header = _header(_bytes(parts[2]))
        claims = _claims(_bytes(parts[3]))
        signature = _bytes(parts[4])
    except (binascii.Error, msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise refused(Reason.MALFORMED) from None
    if header.crit is not None:
        raise refused(Reason.MALFORMED)
    return Token(header, claims, parts[1], signature)


def check_claims(claims: dict[str, Any], issuer: Issuer, now: float) -> float:
    """Check whom a token is for and when it holds; give the unix second at which it ends. Raises `Unauthenticated`."""
    audience = claims.get("aud")
    named = audience if isinstance(audience, list) else (audience,)
    if not any(isinstance(each, str) and each in issuer.audiences for each in named):
        raise refused(Reason.AUDIENCE)
    expires = _instant(claims, "exp")
    if expires is None:
        raise refused(Reason.CLAIMS)
    if now >= expires + issuer.leeway_s:
        raise refused(Reason.EXPIRED)
    for claim in ("nbf", "iat"):
        begins = _instant(claims, claim)
        if begins is not None and now < begins - issuer.leeway_s:
            raise refused(Reason.NOT_YET)
    return expires + issuer.leeway_s


def whose(claims: dict[str, Any], issuer: Issuer, policy: Policy) -> Tenant:
    """Give the tenant that a good token names. Raises `Unauthenticated`."""
    organisation = issuer.organisation
    if issuer.organisation_claim is not None:
        organisation = _name(claims, issuer.organisation_claim)
    team = None if issuer.team_claim is None else _name(claims, issuer.team_claim)
    subject = _name(claims, "sub") if "sub" in claims else None
    if organisation is None:
        raise refused(Reason.CLAIMS)
    tenant = policy.find(organisation, team, _name(claims, issuer.tenant_claim), subject)
    if tenant is None:
        raise refused(Reason.TENANT)
    return tenant


def _name(claims: dict[str, Any], claim: str) -> str:
    value = claims.get(claim)
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME_CHARS or not value.isprintable():
        raise refused(Reason.CLAIMS)
    return value


def _instant(claims: dict[str, Any], claim: str) -> float | None:
    value = claims.get(claim)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < MAX_INSTANT:
        raise refused(Reason.CLAIMS)
    return float(value)


def _bytes(part: bytes) -> bytes:
    return binascii.a2b_base64(part.translate(_STANDARD) + b"=" * (-len(part) % 4), strict_mode=True)


_STANDARD = bytes.maketrans(b"-_", b"+/")
_header = msgspec.json.Decoder(Header).decode
_claims = msgspec.json.Decoder(dict[str, Any]).decode
