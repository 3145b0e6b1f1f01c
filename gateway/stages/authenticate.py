"""Authenticate: whose call is it?"""

from gateway.call import Call, Handler, Reply
from gateway.errors import Unauthenticated
from gateway.identity.keyring import Keyring
from policies.tenant import Tenant

ANYBODY = Tenant("anybody")
CHALLENGE = {"www-authenticate": "Bearer"}


class Authenticate:
    """Refuses with 401 who shows none of our keys, in words that do not tell a missing key from a wrong one.

    The key is a bearer token (OpenAI's clients) or `x-api-key` (Anthropic's). Without any key configured everybody is
    the same tenant; the configuration sees to it that such a gateway listens on loopback only. Acquires nothing.
    """

    def __init__(self, keys: Keyring) -> None:
        self._keys = keys

    async def __call__(self, call: Call, inner: Handler) -> Reply:
        call.tenant = self.tenant(call.headers)
        return await inner(call)

    def tenant(self, headers: dict[bytes, bytes]) -> Tenant:
        """Give the tenant that these headers speak for. Raises `Unauthenticated`."""
        if not len(self._keys):
            return ANYBODY
        presented = presented_key(headers)
        tenant = None if presented is None else self._keys.find(presented)
        if tenant is None:
            raise Unauthenticated("Incorrect API key provided.", code="invalid_api_key", headers=CHALLENGE)
        return tenant


def presented_key(headers: dict[bytes, bytes]) -> bytes | None:
    """Give the key that a request shows, if it shows one."""
    authorization = headers.get(b"authorization")
    if authorization is None:
        return headers.get(b"x-api-key")
    scheme, _, key = authorization.partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else None
