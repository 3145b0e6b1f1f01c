"""The simple `keys:` of penstock.yaml: any secrets, each tenant an organisation of its own, without limits.

Keys are not kept: a keyed hash of each is, under a random key of this process, and a presented key is looked up by its
hash. Who does not know the process's key can steer neither the hash nor the time that the look-up takes; the final
comparison is constant-time all the same, so that this need not be argued about.
"""

import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b

from policies.tenant import Tenant

MAX_KEY_BYTES = 512


@dataclass(frozen=True, slots=True, repr=False)
class ApiKey:
    """One key as the operator gave it, and on whose behalf it speaks. It has no repr, so that no log can show it."""

    tenant: str
    secret: str


def tenant_named(name: str) -> Tenant:
    """Make a tenant. Its salt follows from its name, so that what was remembered for it outlives a restart."""
    salt = blake2b(name.encode(), digest_size=16, person=b"penstock-salt").digest()
    return Tenant(name, salt, organisation=name)


class Keyring:
    """Finds the tenant of a presented key. Holds hashes, no keys."""

    def __init__(self, keys: Iterable[ApiKey]) -> None:
        self._peppered = blake2b(key=secrets.token_bytes(32), digest_size=32)
        tenants: dict[str, Tenant] = {}
        self._by_digest: dict[bytes, tuple[bytes, Tenant]] = {}
        for key in keys:
            if not key.secret or len(key.secret.encode()) > MAX_KEY_BYTES:
                raise ValueError(f"a key of {key.tenant} is empty or longer than {MAX_KEY_BYTES} bytes")
            tenant = tenants.setdefault(key.tenant, tenant_named(key.tenant))
            digest = self._digest(key.secret.encode())
            _, holder = self._by_digest.setdefault(digest, (digest, tenant))
            if holder is not tenant:
                raise ValueError(f"{holder.id} and {tenant.id} have the same key")

    def __len__(self) -> int:
        return len(self._by_digest)

    def find(self, presented: bytes) -> Tenant | None:
        """Give the tenant whose key this is; about 1 µs."""
        if len(presented) > MAX_KEY_BYTES:
            return None
        digest = self._digest(presented)
        known, tenant = self._by_digest.get(digest, (b"", None))
        return tenant if hmac.compare_digest(known, digest) else None

    def _digest(self, key: bytes) -> bytes:
        state = self._peppered.copy()  # the pepper's own block is hashed once
        state.update(key)
        return state.digest()
