"""Keys `id.secret`: found by the id, which is no secret, and proven by a hash of the secret.

Nobody can tell an id that exists from one that does not: for one that is unknown a hash is computed and compared all
the same, so words and time are those of a wrong secret. What was verified is not remembered: the hash costs 1 µs, and a
memo would need another one to hold no secrets, and would have to hear of each reload.
"""

import hmac
from collections.abc import Mapping

from gateway.identity.refusal import Reason, refused
from policies import key
from policies.policy import StoredKey
from policies.tenant import Tenant

NOBODYS = StoredKey("", bytes(key.DIGEST_BYTES), Tenant(""), expires=0.0)  # no secret is known that hashes to zeros


def holder_of(keys: Mapping[str, StoredKey], presented: bytes, pepper: str | None, now: float) -> Tenant:
    """Give the tenant whose key this is; `now` is in unix seconds. Raises `Unauthenticated`."""
    parts = key.split(presented)
    if parts is None:
        raise refused(Reason.KEY)
    key_id, secret = parts
    stored = keys.get(key_id, NOBODYS)
    if not hmac.compare_digest(key.digest(key_id, secret, pepper), stored.digest):
        raise refused(Reason.KEY)
    if stored.expires is not None and now >= stored.expires:
        raise refused(Reason.KEY_EXPIRED)
    return stored.tenant
