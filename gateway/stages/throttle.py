"""Throttle: may this caller ask now?"""

from collections.abc import Awaitable

from cache.errors import StoreError
from cache.ledger import Ledger
from cache.reservation import LimitExceeded
from gateway.call import Call, Handler, Reply
from gateway.errors import GatewayError
from gateway.identifier import new_id
from gateway.quotas.error import refusal, unavailable
from gateway.quotas.headers import LimitHeaders
from gateway.quotas.quota import Quota


class Throttle:
    """Refuses with 429 a call that a limit on requests or on concurrency has no place for; see `quota_error.refusal`.

    Refuses with 503 where the store of the limits cannot be reached and the account says `closed`. Enters the call's
    place on its scope, so that concurrency is counted until the answer is over. Whatever the answer is, an error too,
    it bears the headers that say how the caller's limits stand: those of its tokens as well, which `Meter` reserves.

    An account without limits costs nothing here.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._headers = LimitHeaders()

    def __call__(self, call: Call, inner: Handler) -> Awaitable[Reply]:
        account = call.terms.account
        if not account.entry and not account.tokens:
            return inner(call)
        return self._limited(call, inner, Quota(account))

    async def _limited(self, call: Call, inner: Handler, quota: Quota) -> Reply:
        call.quota = quota
        try:
            if quota.account.entry:
                await self._enter(call, quota)
            reply = await inner(call)
        except GatewayError as error:
            error.headers = self._headers.of(call, quota, error.headers)
            raise
        reply.headers = self._headers.of(call, quota, reply.headers)
        return reply

    async def _enter(self, call: Call, quota: Quota) -> None:
        # The caller's own name for its request would not do: two calls of one name would be taken for one, and charged
        # as one.
        quota.entry = self._ledger.allow(quota.account, new_id())
        try:
            await call.scope.enter(quota.entry)
        except LimitExceeded as exceeded:
            raise refusal(exceeded, quota) from exceeded
        except StoreError as error:
            raise unavailable(error) from error
