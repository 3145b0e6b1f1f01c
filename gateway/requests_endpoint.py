"""GET /v1/requests and POST /v1/requests/{id}/cancel: a tenant's own calls under way.

A tenant sees and ends what was asked with any key of its own, and nothing of anybody else's: a foreign id is answered
as one that nobody ever had. No prompt and no answer is shown.
"""

import time
from collections.abc import Callable

import msgspec

from gateway.call import Call, Json
from gateway.endpoints import respond_json
from gateway.errors import Cancelled, NotFound
from gateway.identity.identity import Identity
from gateway.routes import Visit
from gateway.under_way import CallsUnderWay

REQUESTS_PATH = "/v1/requests"
CANCEL = "/cancel"

_json = msgspec.json.Encoder().encode


class RequestsUnderWay:
    """Both endpoints. `now` is unix seconds, `clock` those of `Call.received`."""

    def __init__(
        self,
        calls: CallsUnderWay,
        identity: Identity,
        *,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._calls = calls
        self._identity = identity
        self._now = now
        self._clock = clock

    async def list(self, visit: Visit) -> None:
        """Tell the tenant's calls, the oldest first. Raises `Unauthenticated`."""
        tenant = await self._identity.tenant(visit.request.headers)
        ago = self._now() - self._clock()
        data: Json = [told(call, call.received + ago) for call in self._calls.of(tenant.id)]
        respond_json(visit, 200, _json({"object": "list", "data": data}))

    async def cancel(self, visit: Visit) -> None:
        """End a call; it may still be unwinding when this is answered. Raises `Unauthenticated` and `NotFound`."""
        tenant = await self._identity.tenant(visit.request.headers)
        call_id = visit.request.path.removeprefix(REQUESTS_PATH + "/").removesuffix(CANCEL)
        known = visit.request.path.endswith(CANCEL) and self._calls.end(
            tenant.id, call_id, Cancelled("The request was cancelled.", code="request_cancelled")
        )
        if not known:
            raise NotFound(f"No request `{call_id[:128]}` is under way.", code="request_not_found")
        respond_json(visit, 200, _json({"id": call_id, "object": "request", "status": "cancelled"}))


def told(call: Call, since: float) -> dict[str, Json]:
    """Tell a call: `waiting` until an upstream or the engine has been asked, `running` from then on.

    `completion_tokens` is null where nobody counts them as they come: HTTP upstreams under no limit on tokens.
    """
    return {
        "id": call.id,
        "object": "request",
        "model": call.request.model[:256],
        "operation": call.request.operation.value,
        "stream": call.request.stream,
        "created": since,
        "stage": "running" if call.attempts else "waiting",
        "prompt_tokens": call.tokens.input if hasattr(call, "tokens") else None,
        "completion_tokens": produced(call),
        "bytes": call.sent_bytes,
    }


def produced(call: Call) -> int | None:
    """Tell how many tokens have come so far, where that is known."""
    if not hasattr(call, "generation"):
        return 0
    generation = call.generation
    if generation.emitted or call.model.needs_ids:
        return sum(map(len, generation.emitted.values()))
    return None if generation.reservation is None else generation.reservation.holder.output
