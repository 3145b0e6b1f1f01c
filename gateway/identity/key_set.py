"""An issuer's public keys (JWKS, RFC 7517): where they come from, how old they may be, and who may make us ask again.

Whoever needs keys that are held gets them at once. They are fetched anew in the background, ahead of their age, when
somebody uses them: nothing is asked for an idle gateway, and nobody waits for a refresh. One fetch runs at a time and
everybody who must wait waits for that one. A key that is not among them may be new, so the issuer is asked; but
strangers can name keys without end, and so it is asked at most once in `AGAIN_S`. While the issuer is down, or answers
what is no key set, the old keys hold, for a day: without an end, who can cut us off from it could revive a revoked key.

This file and those who import it load httpx, PyJWT and cryptography, 16 MB and 100 ms: only where a policy has issuers.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from math import inf
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import msgspec
from jwt.algorithms import Algorithm, get_default_algorithms
from jwt.exceptions import PyJWTError

FETCH_S = 5.0  # from the first byte out to the last byte in
REFRESH_S = 300.0  # keys older than this are fetched anew when used
AGAIN_S = 10.0  # between two fetches, whatever happens
STALE_S = 86_400.0  # keys older than this are not believed
MAX_DOCUMENT_BYTES = 256 << 10
MAX_KEYS = 64

# What may sign: `alg` -> type and curve of its key (RFC 7518, RFC 8037). Nothing symmetric, and no `none`: whatever a
# token or a policy says, a public key is never taken for a shared secret.
ALGORITHMS: Mapping[str, tuple[str, str | None]] = MappingProxyType(
    {
        **{f"{family}{bits}": ("RSA", None) for family in ("RS", "PS") for bits in (256, 384, 512)},
        "ES256": ("EC", "P-256"),
        "ES384": ("EC", "P-384"),
        "ES512": ("EC", "P-521"),
        "EdDSA": ("OKP", "Ed25519"),
    }
)
PUBLIC = ("kty", "crv", "n", "e", "x", "y")  # the members that make a public key; `d` and the like are left alone

log = logging.getLogger("penstock.identity")

Fetch = Callable[[], Awaitable[bytes]]


class BadKeySet(ValueError):
    """What came is no key set that we can use; the message holds nothing of it."""


class VerifyingKey(msgspec.Struct, frozen=True):
    """One public key. `alg` is None where the issuer does not bind it to one."""

    kind: tuple[str, str | None]
    alg: str | None
    key: Any

    def verifies(self, alg: str) -> bool:
        """Whether it is meant for that algorithm."""
        return ALGORITHMS[alg] == self.kind and self.alg in (None, alg)


class Keys:
    """The keys of one document, never changed; a document that differs makes another object."""

    def __init__(self, document: bytes) -> None:
        """Read a key set; what is for other purposes is left out. Raises `BadKeySet` where nothing remains."""
        self.document = document
        self._by_id: dict[str, list[VerifyingKey]] = {}
        self._all: list[VerifyingKey] = []
        try:
            listed = msgspec.json.decode(document, type=_Document).keys
        except (msgspec.DecodeError, RecursionError) as error:
            raise BadKeySet("not a JSON object with a list of keys") from error
        algorithms = get_default_algorithms()
        for member in listed[:MAX_KEYS]:
            key = _verifying_key(member, algorithms)
            if key is not None:
                self._all.append(key)
                key_id = member.get("kid")
                if isinstance(key_id, str):
                    self._by_id.setdefault(key_id, []).append(key)
        if not self._all:
            raise BadKeySet("none of its keys can verify a signature")

    def find(self, key_id: str | None, alg: str) -> VerifyingKey | None:
        """Give the key of that id for `alg`; without an id, the one key that there is for it."""
        known = self._all if key_id is None else self._by_id.get(key_id, ())
        fit = [key for key in known if key.verifies(alg)]
        return fit[0] if len(fit) == 1 or (fit and key_id is not None) else None


class KeySet:
    """One issuer's keys, kept fresh. Belongs to the event loop."""

    def __init__(
        self, name: str, fetch: Fetch, *, fetch_s: float = FETCH_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name = name
        self.failures = 0
        self._fetch = fetch
        self._fetch_s = fetch_s
        self._clock = clock
        self._keys: Keys | None = None
        self._loaded_at = -inf
        self._again_at = -inf  # no fetch before
        self._refresh_at = -inf  # a fetch when next used
        self._failing = False
        self._flight: asyncio.Task[None] | None = None

    @property
    def age_s(self) -> float:
        """How old the keys are; infinite before there are any."""
        return self._clock() - self._loaded_at

    def look(self) -> Keys | None:
        """Give the keys that may be believed now, if any. Has them fetched anew when it is time, without waiting."""
        now = self._clock()
        if now >= self._refresh_at:
            self._start(now)
        return self._keys if now - self._loaded_at <= STALE_S else None

    @property
    def may_ask(self) -> bool:
        """Whether asking could bring something new: a fetch is under way, or one is allowed."""
        return self._flight is not None or self._clock() >= self._again_at

    async def ask(self) -> None:
        """Wait for the fetch that is under way, or for another where one is allowed. Does not raise if it fails."""
        if self._flight is None and self.may_ask:
            self._start(self._clock())
        if self._flight is not None:
            await asyncio.wait((self._flight,))  # who leaves leaves the others waiting

    def retire(self) -> None:
        """Fetch no more, and end a fetch that is under way; who waits for it goes on with what there is."""
        self._refresh_at = self._again_at = inf
        if self._flight is not None:
            self._flight.cancel()

    async def aclose(self) -> None:
        """Retire, and wait until the fetch has ended."""
        self.retire()
        if self._flight is not None:
            await asyncio.wait((self._flight,))

    def _start(self, now: float) -> None:
        if self._flight is None and now >= self._again_at:
            self._again_at = self._refresh_at = now + AGAIN_S
            self._flight = asyncio.get_running_loop().create_task(self._load(), name=f"key set {self.name}")
            self._flight.add_done_callback(self._landed)

    def _landed(self, flight: asyncio.Task[None]) -> None:
        self._flight = None

    async def _load(self) -> None:
        try:
            async with asyncio.timeout(self._fetch_s):
                document = await self._fetch()
            if self._keys is None or document != self._keys.document:
                self._keys = Keys(document)
        except TimeoutError:
            self._failed(f"no answer within {self._fetch_s:g} s")
        except (OSError, ValueError, httpx.HTTPError, httpx.InvalidURL) as error:
            self._failed(f"{type(error).__name__}: {error}")
        else:
            self._loaded_at = self._clock()
            self._refresh_at = max(self._refresh_at, self._loaded_at + REFRESH_S)
            if self._failing:
                self._failing = False
                log.warning("%s: the key set can be had again", self.name)

    def _failed(self, why: str) -> None:
        self.failures += 1
        if not self._failing:
            self._failing = True
            held = "the old keys hold" if self._keys is not None else "nobody can show its tokens"
            log.warning("%s: the key set cannot be had (%s); %s", self.name, why, held)


def from_file(path: Path) -> Fetch:
    """A key set that lies in a file."""

    async def fetch() -> bytes:
        return await asyncio.to_thread(_read, path)

    return fetch


def from_url(client: httpx.AsyncClient, url: str) -> Fetch:
    """A key set that a server gives. Redirects are not followed, and nothing is decompressed."""

    async def fetch() -> bytes:
        headers = {"accept": "application/jwk-set+json, application/json", "accept-encoding": "identity"}
        async with client.stream("GET", url, headers=headers, follow_redirects=False) as answer:
            if answer.status_code != 200:
                raise BadKeySet(f"answered {answer.status_code}")
            document = b""
            async for piece in answer.aiter_raw():
                document += piece
                if len(document) > MAX_DOCUMENT_BYTES:
                    raise BadKeySet(f"more than {MAX_DOCUMENT_BYTES} bytes")
            return document

    return fetch


class _Document(msgspec.Struct):
    keys: list[dict[str, Any]]


def _verifying_key(member: dict[str, Any], algorithms: dict[str, Algorithm]) -> VerifyingKey | None:
    """Make a key of a member of a key set; None for what signs nothing that we believe, or is too weak."""
    alg, operations = member.get("alg"), member.get("key_ops")
    kind = (member.get("kty"), None if member.get("kty") == "RSA" else member.get("crv"))
    if member.get("use") not in (None, "sig") or (isinstance(operations, list) and "verify" not in operations):
        return None
    name = next((name for name, needs in ALGORITHMS.items() if needs == kind and alg in (None, name)), None)
    if name is None:
        return None
    algorithm = algorithms[name]
    try:
        key = algorithm.from_jwk({part: member[part] for part in PUBLIC if part in member})
    except (PyJWTError, ValueError, TypeError):
        return None
    return None if algorithm.check_key_length(key) else VerifyingKey(ALGORITHMS[name], alg, key)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        document = file.read(MAX_DOCUMENT_BYTES + 1)
    if len(document) > MAX_DOCUMENT_BYTES:
        raise BadKeySet(f"more than {MAX_DOCUMENT_BYTES} bytes")
    return document
