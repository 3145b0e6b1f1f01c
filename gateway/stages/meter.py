"""Meter: are there tokens left for this, and what did it use?"""

from types import TracebackType

from cache.errors import StoreError
from cache.ledger import Ledger
from cache.reservation import LimitExceeded, Reservation
from gateway.call import Call, Handler, Reply
from gateway.identifier import new_id
from gateway.metering import Metered, settlement
from gateway.quota import num_choices
from gateway.quota_error import refusal, unavailable


class Meter:
    """Refuses with 429 what the tenant's limits on tokens and costs have no room for, with 503 as `Throttle` does.

    Enters on the generation's scope the reservation of its input and of the first slice of its output, and above it its
    own exit half, which tells the reservation what was really used before it settles. An engine counts for itself; the
    events of an HTTP upstream are counted here as they pass, where output is limited at all.

    A call that no limit counts tokens of costs nothing here.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def __call__(self, call: Call, inner: Handler) -> Reply:
        account = call.terms.account
        if not account.tokens:
            return await inner(call)
        tokens, quota, generation = call.tokens, call.quota, call.generation
        assert quota is not None, "who throttles has seen that there are limits"
        engine = call.model.needs_ids
        reservation = self._ledger.reserve(
            account,
            new_id(),
            input_tokens=tokens.input,
            max_output=None if tokens.output is None else tokens.output * num_choices(call),
            exact=engine and tokens.exact,
            whole=not engine and not call.request.stream,
        )
        quota.tokens = reservation
        try:
            await generation.scope.enter(reservation)
        except LimitExceeded as exceeded:
            raise refusal(exceeded, quota) from exceeded
        except StoreError as error:
            raise unavailable(error) from error
        generation.reservation = reservation
        generation.scope.push(Settling(call, reservation))
        reply = await inner(call)
        if reply.raw and any(rule.output for rule in account.tokens):
            reply.events = Metered(reply.events, call, reservation, quota)
        return reply


class Settling:
    """The exit half: tells the reservation below it what its call has used, however the call ended."""

    __slots__ = ("_call", "_reservation")

    def __init__(self, call: Call, reservation: Reservation) -> None:
        self._call = call
        self._reservation = reservation

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        usage = settlement(self._call, self._reservation, error)
        self._reservation.usage(input_tokens=usage.prompt, cached_tokens=usage.cached, output_tokens=usage.completion)
