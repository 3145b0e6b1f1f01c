"""POST /v1/explain: what would become of a request, without running it.

The body is the request itself, a chat or a completion, told apart by `messages` and `prompt`; the key is the caller's
own. It goes through the very stages that decide on a call, in their order, over a ledger that rehearses: what they say
is what they would say, to the token and to the header. Nothing reaches an upstream, nothing is charged, and no limit
knows afterwards that anybody has asked. Where a limit on calls refuses, the rest is told as if it had not.

The headers are those of the moment when the call would have been admitted. An answer that had to ask for its next slice
before its first byte, and an upstream's own error, are not foreseen.

Prompts are counted, so explaining is work, and it must not be free: each tenant may have so many requests explained a
minute, in each gateway process. That limit is its own. It is none of the policy's, because taking a request from those
would change the very numbers that are asked for.
"""

from collections.abc import Mapping, Sequence

import msgspec

from cache.embedded import EmbeddedStore
from cache.errors import StoreError
from cache.ledger import Ledger
from cache.reservation import LimitExceeded, Standing
from gateway.call import Call, Event, Model, Reply, Single, Stage, compose
from gateway.dry_run.explanation import Asked, Explanation, Verdict, caller_of, gather, plain, refuse, was_tried
from gateway.edge import JSON, STREAM_HEADERS
from gateway.endpoints import body_of, respond_json
from gateway.errors import BadRequest, GatewayError
from gateway.identifier import new_id
from gateway.identity.identity import Identity
from gateway.protocols.dialect import Dialect
from gateway.protocols.strict_json import parse_object
from gateway.quotas.error import refusal
from gateway.quotas.quota import Quota
from gateway.routes import Visit
from gateway.scope import Scope
from gateway.stages.admit import Admit
from gateway.stages.throttle import Throttle
from gateway.upstreams.base import Foresees
from policies.account import Account
from policies.bucket import Limit
from policies.holder import Measure, Rule
from policies.tenant import Tenant

MINUTE_US = 60_000_000
AT_A_TIME = 4

_json = msgspec.json.Encoder().encode


class Explain:
    """The endpoint. `stages` are those that decide on a call once its tenant is known, over a ledger that rehearses.

    `surfaces` are the paths whose requests can be explained and the field that tells their bodies, with the dialect.
    """

    def __init__(
        self,
        surfaces: Mapping[str, tuple[str, Dialect]],
        stages: Sequence[Stage],
        models: Mapping[str, Model],
        identity: Identity,
        ledger: Ledger,
        admit: Admit,
        *,
        deadline_s: float,
        per_minute: int,
    ) -> None:
        self._surfaces = surfaces
        self._stages = stages
        self._models = models
        self._identity = identity
        self._ledger = ledger
        self._admit = admit
        self._deadline_s = deadline_s
        self._turns = Turns(per_minute)

    async def __call__(self, visit: Visit) -> None:
        """Answer. Raises `GatewayError` for what is no request at all, or nobody's."""
        tenant = await self._identity.tenant(visit.request.headers)
        body = body_of(visit)
        async with Scope() as scope:
            await self._turns.take(tenant, scope)
            explanation = await self._explain(visit, tenant, body)
        respond_json(visit, 200, _json(explanation))

    async def _explain(self, visit: Visit, tenant: Tenant, body: bytes) -> Explanation:
        path, dialect = self._surface(body)
        explanation = Explanation(Verdict(True), caller_of(tenant), tenant.policy, Asked(path))
        try:
            asked = dialect.decode(body)
        except BadRequest as error:
            refuse(explanation, error)
            return explanation
        deadline = visit.received + self._deadline_s
        call = Call(visit.id, path, visit.received, body, visit.request.headers, asked, deadline, Scope())
        call.tenant = tenant
        admission = Admission(self._admit)
        try:
            async with call.scope:
                reply = await compose(self._stages, admission)(call)
        except GatewayError as error:
            refuse(explanation, error)
            if call.quota is not None and call.quota.refused is not None:
                explanation.verdict.limit = call.quota.refused.limit.key
                if not hasattr(call, "tokens"):
                    await self._go_on(call)
        else:
            explanation.verdict = Verdict(True, reply.status, admission.waits, self._admit.patience_s(call))
            explanation.headers = plain(STREAM_HEADERS if asked.stream else (JSON,), reply.headers)
        gather(explanation, call, self._models, await self._standing(call))
        return explanation

    def _surface(self, body: bytes) -> tuple[str, Dialect]:
        """Tell what a body is a request for. Raises `BadRequest`."""
        fields = parse_object(body)
        for path, (field, dialect) in self._surfaces.items():
            if field in fields:
                return path, dialect
        expected = " or ".join(f"'{field}'" for field, _ in self._surfaces.values())
        raise BadRequest(f"Nothing to explain: expected a request with {expected}.", code="missing_required_parameter")

    async def _go_on(self, call: Call) -> None:
        """Find out what a call whose entry is refused would have met behind it."""
        behind = [isinstance(stage, Throttle) for stage in self._stages].index(True) + 1
        call.scope = Scope()
        try:
            async with call.scope:
                await compose(self._stages[behind:], Admission(self._admit))(call)
        except GatewayError:
            return  # it has its verdict

    async def _standing(self, call: Call) -> tuple[Standing, ...]:
        """Tell how the limits stand that nobody tried."""
        if call.quota is None:
            return ()
        account, quota = call.quota.account, call.quota
        if (not account.entry or was_tried(quota.entry)) and (not account.tokens or was_tried(quota.tokens)):
            return ()
        try:
            return await self._ledger.look(account)
        except StoreError:
            return ()


class Admission:
    """The last handler: what stands at the end of the way in. `waits` says that there is no room now."""

    def __init__(self, admit: Admit) -> None:
        self._admit = admit
        self.waits = False

    async def __call__(self, call: Call) -> Reply:
        self.waits = self._admit.must_wait(call)
        first = next((upstream for upstream in call.route if upstream.fits(call)), call.route[0])
        if isinstance(first, Foresees):
            first.foresee(call)
        return Reply(200, {}, Single(Event()))


class Turns:
    """Whose turn it is to have something explained: so many a minute and a few at a time for each tenant."""

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._ledger = Ledger(EmbeddedStore())

    async def take(self, tenant: Tenant, scope: Scope) -> None:
        """Enter a turn. Raises `RateLimited`."""
        rate = Limit.bucket(f"{tenant.id} explain/min", self._per_minute, MINUTE_US)
        running = Limit.gauge(f"{tenant.id} explain/concurrency", AT_A_TIME)
        rules = Rule(rate, call=1, measure=Measure.REQUESTS), Rule(running, call=1, measure=Measure.CONCURRENCY)
        account = Account(tenant.organisation, rules)
        try:
            await scope.enter(self._ledger.allow(account, new_id()))
        except LimitExceeded as exceeded:
            raise refusal(exceeded, Quota(account)) from exceeded
