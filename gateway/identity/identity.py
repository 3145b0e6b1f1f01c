"""Whose request is it? One order, and nothing else that a caller writes is believed (no `x-user`, no `user` field):

1. `Authorization`, where there is one: it must say `Bearer`, and decides alone, whatever else is shown. What comes with
   it is a signed token if it has the shape of one and the policy has issuers, and else a key.
2. `x-api-key`: a key.
3. Nothing: 401.

A key is one of the simple `keys:` of penstock.yaml, or `id.secret` of the policy. Where neither keys nor a policy are
configured, everybody is the same tenant, and the configuration sees to it that only this machine can call. A policy
that has lost its last key is no such thing: then nobody comes in.
"""

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from gateway.identity.bearer_key import holder_of
from gateway.identity.keyring import Keyring
from gateway.identity.refusal import Reason, refused
from policies.policy import Policy
from policies.tenant import Tenant

if TYPE_CHECKING:
    from gateway.identity.json_web_token import JsonWebTokens

ANYBODY = Tenant("anybody")


class Identity:
    """Finds the tenant that a request's headers speak for. `policy` gives the one in force; a call asks it once.

    `pepper` is what the policy's keys are hashed with. What verifies tokens is loaded when it is first needed.
    """

    def __init__(
        self,
        keys: Keyring | None = None,
        policy: Callable[[], Policy] | None = None,
        *,
        pepper: str | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._keys = keys if keys is not None and len(keys) else None
        self._policy = policy
        self._pepper = pepper
        self._wall_clock = wall_clock
        self._open = self._keys is None and policy is None
        self._tokens: JsonWebTokens | None = None

    def at_once(self, headers: dict[bytes, bytes]) -> Tenant | None:
        """Give the tenant; None where a token's issuer must first be asked, see `tenant`. Raises `Unauthenticated`."""
        if self._open:
            return ANYBODY
        policy = None if self._policy is None else self._policy()
        authorization = headers.get(b"authorization")
        if authorization is None:
            key = headers.get(b"x-api-key")
        else:
            key = bearer(authorization)
            if key is not None and policy is not None and policy.issuers and is_token(key):
                return None if self._tokens is None else self._tokens.at_once(policy, key)
        if not key:
            raise refused(Reason.NOTHING_SHOWN)
        return self._holder(policy, key)

    async def tenant(self, headers: dict[bytes, bytes]) -> Tenant:
        """Give the tenant, waiting for an issuer's keys where need be. Raises `Unauthenticated`, `Overloaded`."""
        tenant = self.at_once(headers)
        if tenant is None:
            token = bearer(headers[b"authorization"])
            assert token is not None, "only a token's issuer is asked"
            assert self._policy is not None, "only a policy has issuers"
            tenant = await (await self._token_verifier()).after_asking(self._policy, token)
        return tenant

    async def prepare(self) -> None:
        """Load what verifies tokens and begin to fetch keys, where the policy has issuers, so that no caller waits."""
        policy = None if self._policy is None else self._policy()
        if policy is not None and policy.issuers:
            (await self._token_verifier()).serve(policy)

    def failed_fetches(self) -> float:
        """Count the fetches of key sets that failed, for metrics."""
        return 0.0 if self._tokens is None else self._tokens.failures()

    def key_set_age_s(self) -> float:
        """Give the age of the oldest key set, for metrics."""
        return 0.0 if self._tokens is None else self._tokens.age_s()

    async def aclose(self) -> None:
        """End what is being fetched."""
        if self._tokens is not None:
            await self._tokens.aclose()

    def _holder(self, policy: Policy | None, key: bytes) -> Tenant:
        if self._keys is not None:
            tenant = self._keys.find(key)
            if tenant is not None:
                return tenant
        if policy is None:
            raise refused(Reason.KEY)
        return holder_of(policy.keys, key, self._pepper, self._wall_clock())

    async def _token_verifier(self) -> "JsonWebTokens":
        if self._tokens is None:
            await asyncio.to_thread(import_verifier)  # 100 ms, not to be spent on the loop
            from gateway.identity.json_web_token import JsonWebTokens

            if self._tokens is None:  # nobody else came first
                self._tokens = JsonWebTokens(wall_clock=self._wall_clock)
        return self._tokens


def bearer(authorization: bytes) -> bytes | None:
    """Give what comes with the scheme Bearer; None for any other."""
    scheme, _, credential = authorization.partition(b" ")
    return credential.strip() if scheme.lower() == b"bearer" else None


def is_token(credential: bytes) -> bool:
    """Whether this has the shape of a signed token: three parts, the first a JSON object. A key has one dot."""
    return credential.startswith(b"eyJ") and credential.count(b".") == 2


def import_verifier() -> None:
    """Import what verifies tokens, and with it httpx, PyJWT and cryptography."""
    import gateway.identity.json_web_token  # noqa: F401
