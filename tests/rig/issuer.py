"""An issuer of signed tokens: real keys, a key set that a server on loopback gives, and every way to fail at it."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from policies.policy import Find, Issuer, Policy, StoredKey
from policies.tenant import Tenant

URL = "https://issuer.example/realms/main"
NOW = 1_800_000_000.0
CURVES: Mapping[str, ec.EllipticCurve] = MappingProxyType(
    {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
)
Private = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


@dataclass(frozen=True)
class SigningKey:
    """A pair of keys and what its tokens call it."""

    kid: str
    alg: str
    private: Private

    def sign(self, claims: Mapping[str, Any], **header: Any) -> bytes:
        fields = {"kid": self.kid, **header}
        kept = {name: value for name, value in fields.items() if value is not None}
        return jwt.PyJWS().encode(json.dumps(claims).encode(), self.private, self.alg, headers=kept).encode()

    def jwk(self, **members: Any) -> dict[str, Any]:
        public = self.private.public_key()
        made: dict[str, Any]
        if isinstance(public, rsa.RSAPublicKey):
            made = RSAAlgorithm.to_jwk(public, as_dict=True)
        elif isinstance(public, ec.EllipticCurvePublicKey):
            made = ECAlgorithm.to_jwk(public, as_dict=True)
        else:
            made = OKPAlgorithm.to_jwk(public, as_dict=True)
        return {name: value for name, value in (made | {"kid": self.kid} | members).items() if value is not None}

    def pem(self) -> bytes:
        return self.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@cache
def signing_key(kid: str, alg: str = "EdDSA", bits: int = 2048) -> SigningKey:
    """The key of that name; made once, RSA's take a while."""
    if alg in CURVES:
        return SigningKey(kid, alg, ec.generate_private_key(CURVES[alg]))
    if alg == "EdDSA":
        return SigningKey(kid, alg, ed25519.Ed25519PrivateKey.generate())
    return SigningKey(kid, alg, rsa.generate_private_key(65537, bits))


def key_set(*keys: SigningKey | dict[str, Any]) -> bytes:
    """A JWKS document."""
    return json.dumps({"keys": [key.jwk() if isinstance(key, SigningKey) else key for key in keys]}).encode()


def claims(**fields: Any) -> dict[str, Any]:
    """Good claims, as of `NOW`, with these differences; None leaves one out."""
    good = {"iss": URL, "aud": "penstock", "sub": "web", "exp": NOW + 600, "iat": NOW - 10, "nbf": NOW - 10}
    return {name: value for name, value in (good | fields).items() if value is not None}


def by_hand(header: dict[str, Any] | bytes, payload: dict[str, Any] | bytes, signature: bytes = b"x" * 64) -> bytes:
    """A token that no library would make."""
    parts = [
        part if isinstance(part, bytes) else json.dumps(part, separators=(",", ":")).encode()
        for part in (header, payload)
    ]
    return b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in (*parts, signature))


def find_any(organisation: str, team: str | None, tenant: str, key: str | None) -> Tenant | None:
    """A policy that knows everybody of `acme`."""
    if organisation != "acme":
        return None
    name = "/".join(part for part in (organisation, team, tenant) if part)
    return Tenant(name, organisation=organisation, team=team, key=key)


def policy_of(
    *issuers: Issuer, keys: Mapping[str, StoredKey] = MappingProxyType({}), find: Find = find_any, version: str = "1"
) -> Policy:
    return Policy(version, find, keys, {issuer.url: issuer for issuer in issuers})


def issuer_at(jwks: str, **settings: Any) -> Issuer:
    return Issuer(**{"url": URL, "audiences": ("penstock",), "jwks": jwks, "organisation": "acme"} | settings)


@dataclass
class KeySetServer:
    """Gives `document` to everybody who asks, and counts them. `hold` keeps an answer back until it is set."""

    document: bytes = b""
    status: int = 200
    headers: tuple[str, ...] = ()
    hold: asyncio.Event | None = None
    asked: int = 0
    port: int = 0
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/jwks"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            self.asked += 1
            self.arrived.set()
            if self.hold is not None:
                await self.hold.wait()
            lines = [f"HTTP/1.1 {self.status} X", f"content-length: {len(self.document)}", "connection: close"]
            writer.write("\r\n".join([*lines, *self.headers, "", ""]).encode() + self.document)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            return
        finally:
            writer.close()


@asynccontextmanager
async def serving_keys(*keys: SigningKey) -> AsyncIterator[KeySetServer]:
    """Run a server with the key set of these keys for the length of a block."""
    tasks: set[asyncio.Task[None]] = set()
    answering = KeySetServer(key_set(*keys))

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await answering.serve(reader, writer)
        finally:
            tasks.discard(task)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    answering.port = server.sockets[0].getsockname()[1]
    try:
        yield answering
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
