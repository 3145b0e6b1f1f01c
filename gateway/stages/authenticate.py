"""Authenticate: whose call is it?"""

from collections.abc import Awaitable

from gateway.call import Call, Handler, Reply
from gateway.identity.identity import Identity


class Authenticate:
    """Refuses with 401 who shows no key or token of ours, in words that do not tell a missing one from a wrong one.

    `gateway/identity/identity.py` has the order in which they are looked for. Answers 503 while the keys of a token's
    issuer cannot be had; only such a call ever waits here. Acquires nothing.
    """

    def __init__(self, identity: Identity) -> None:
        self._identity = identity

    def __call__(self, call: Call, inner: Handler) -> Awaitable[Reply]:
        tenant = self._identity.at_once(call.headers)
        if tenant is None:
            return self._after_asking(call, inner)
        call.tenant = tenant
        return inner(call)

    async def _after_asking(self, call: Call, inner: Handler) -> Reply:
        call.tenant = await self._identity.tenant(call.headers)
        return await inner(call)
