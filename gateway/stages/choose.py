"""Choose: which upstreams may serve this call, and in which order?"""

import time
from collections.abc import Awaitable, Callable

from gateway.attempts.recovery import unavailable
from gateway.call import Call, Handler, Reply


class Choose:
    """Refuses with 400 what none of the model's upstreams can do at all, with 503 and Retry-After where all fail.

    The order is the configuration's; an upstream that lacks what the request needs (a response format, a suffix) is
    left out, so that another one may serve it, and so is one whose breaker lets nothing through: nobody waits for room
    there. Acquires nothing.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock

    def __call__(self, call: Call, inner: Handler) -> Awaitable[Reply]:
        able, first = [], None
        for upstream in call.model.upstreams:
            refusal = upstream.refuses(call.request)
            if refusal is None:
                able.append(upstream)
            elif first is None:
                first = refusal
        if not able:
            assert first is not None, "a model without upstreams is not served"
            raise first
        recovery = call.model.recovery
        if call.model.needs_ids:
            recovery.listen(self._clock())
        if not recovery.well:
            now = self._clock()
            waits = {upstream: recovery.wait_s(upstream, now) for upstream in able}
            able = [upstream for upstream in able if not waits[upstream]]
            if not able:
                raise unavailable(min(waits.values()))
        call.route = tuple(able)
        return inner(call)
