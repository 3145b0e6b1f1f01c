"""Record: what became of every request."""

import asyncio
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol

from gateway.call import Call, Handler, Reply, Usage
from gateway.errors import Cancelled, GatewayError, InternalError
from gateway.generation import usage_of
from gateway.http.message import HttpRequest
from gateway.quotas.quota import Quota, level_of, num_choices, rule_of
from gateway.telemetry.record import Ending, LimitHit, QuotaRecord, RequestRecord
from policies.tenant import Price

CLIENT_CLOSED = 499  # nginx's number for a caller who left before the answer began

Sink = Callable[[RequestRecord], None]


class InFlight(Protocol):
    """Where the number of requests under way is kept."""

    in_flight: int


class Record:
    """Refuses nothing; outermost, so that it sees every answer, refused ones too.

    Its exit half stands first on the call's scope and so runs last, when everything else has been given back: there the
    record goes to the sinks (metrics, access log). Sinks must not block and must not raise.
    """

    def __init__(
        self, in_flight: InFlight, sinks: Sequence[Sink], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._in_flight = in_flight
        self._sinks = tuple(sinks)
        self._clock = clock

    async def __call__(self, call: Call, inner: Handler) -> Reply:
        exit_half = Recording(self, call)
        call.scope.push(exit_half)
        self._in_flight.in_flight += 1
        reply = await inner(call)
        exit_half.status = reply.status
        return reply

    def ended(self, call: Call, status: int, error: BaseException | None) -> None:
        """Report a call."""
        self._in_flight.in_flight -= 1
        request, attempts = call.request, call.attempts
        if call.told:
            error = None if isinstance(error, asyncio.CancelledError) else error  # who has it all may leave
        elif error is not None and not request.stream:
            status = 0  # a whole answer that failed while it was gathered was never sent
        status, ending, label = judge(status, error, asked=bool(attempts))
        first_event_s = None
        for attempt in attempts:
            if not attempt.lost:
                first_event_s = None if attempt.first_event is None else attempt.first_event - call.received
        usage, duration_s = usage_of(call), self._clock() - call.received
        record = RequestRecord(
            call.id,
            time.time() - duration_s,
            call.path,
            status,
            ending,
            label,
            request.operation,
            request.model,
            stream=request.stream,
            duration_s=duration_s,
            first_event_s=first_event_s,
            usage=usage,
            asked_output=request.max_tokens,
            choices=num_choices(call),
            attempts=attempts,
            bytes_in=len(call.body),
            bytes_out=call.sent_bytes,
        )
        # How far it came says what is known.
        if hasattr(call, "tenant"):
            tenant = call.tenant
            record.tenant, record.organisation = tenant.id, tenant.organisation
            record.team, record.key = tenant.team, tenant.key
        if hasattr(call, "model"):
            record.model, record.engine = call.model.name, call.model.needs_ids
        if hasattr(call, "terms") and call.terms.price is not None:
            record.cost = cost_of(call.terms.price, usage)
        if hasattr(call, "tokens"):
            record.input_tokens, record.max_output = call.tokens.input, call.tokens.output
        if call.quota is not None:
            record.quota = quota_record(call, call.quota)
        for sink in self._sinks:
            sink(record)

    def answered(
        self,
        request: HttpRequest,
        request_id: str,
        received: float,
        status: int,
        sent_bytes: int,
        error: GatewayError | None = None,
    ) -> None:
        """Report an exchange that never became a call: an unknown route, a broken body, a list of models."""
        duration_s = self._clock() - received
        record = RequestRecord(
            id=request_id,
            time=time.time() - duration_s,
            path=request.path,
            status=status,
            ending=Ending.OK if error is None else Ending.REFUSED,
            error=None if error is None else error.label,
            duration_s=duration_s,
            bytes_in=len(request.body),
            bytes_out=sent_bytes,
        )
        for sink in self._sinks:
            sink(record)


class Recording:
    """The exit half of one call. `status` is the reply's, once there is one."""

    __slots__ = ("_call", "_record", "status")

    def __init__(self, record: Record, call: Call) -> None:
        self._record = record
        self._call = call
        self.status = 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._record.ended(self._call, self.status, error)


def judge(status: int, error: BaseException | None, *, asked: bool) -> tuple[int, Ending, str | None]:
    """Tell a call's status, how it ended for its caller, and the error's label. `status` is 0 before a reply."""
    if error is None:
        return status, Ending.OK, None
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return status or CLIENT_CLOSED, Ending.LEFT, "client_closed"
    if isinstance(error, Cancelled):
        return status or CLIENT_CLOSED, Ending.LEFT, error.label
    known = error if isinstance(error, GatewayError) else InternalError("")
    return status or known.status, Ending.FAILED if asked else Ending.REFUSED, known.label


def cost_of(price: Price, usage: Usage) -> int:
    """Tell what tokens cost, in billionths of a US dollar."""
    fresh = usage.prompt - usage.cached
    return fresh * price.input + usage.cached * price.cached + usage.completion * price.output


def quota_record(call: Call, quota: Quota) -> QuotaRecord:
    """Tell what the limits said of a call that has ended."""
    ended = call.generation.limit if hasattr(call, "generation") else None
    tokens, account = quota.tokens, quota.account

    def hit(key: str) -> LimitHit:
        rule = rule_of(account, key)
        return LimitHit(key, key, key) if rule is None else LimitHit(key, rule.measure.value, level_of(key))

    return QuotaRecord(
        refused=None if quota.refused is None else hit(quota.refused.limit.key),
        ended=None if ended is None else hit(ended),
        shadowed=tuple([hit(limit.key) for limit in quota.shadowed]),
        reserved=quota.reserved,
        overshoot=quota.overshoot,
        exact=tokens is None or (call.tokens.exact and call.model.needs_ids),
        degraded=quota.degraded,
    )
