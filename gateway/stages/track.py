"""Track: from here on the call can be seen and ended by its tenant."""

from collections.abc import Awaitable

from gateway.call import Call, Handler, Reply
from gateway.under_way import CallsUnderWay


class Track:
    """Refuses nothing. Enters the call's place among those under way on its scope (`gateway/under_way.py`)."""

    def __init__(self, calls: CallsUnderWay) -> None:
        self._calls = calls

    def __call__(self, call: Call, inner: Handler) -> Awaitable[Reply]:
        call.scope.push(self._calls.enter(call))
        return inner(call)
