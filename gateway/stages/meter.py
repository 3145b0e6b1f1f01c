"""Meter: are there tokens left for this, and what did it use?"""

from collections.abc import Awaitable
from types import TracebackType

from msgspec.structs import replace

from cache.errors import StoreError
from cache.ledger import Ledger
from cache.reservation import LimitExceeded, Reservation
from gateway.call import Call, Handler, Reply, Single
from gateway.identifier import new_id
from gateway.quotas.error import refusal, unavailable
from gateway.quotas.metering import Metered, settlement, take_whole
from gateway.quotas.quota import Quota, num_choices


class Meter:
    """Refuses with 429 what the tenant's limits on tokens and costs have no room for, with 503 as `Throttle` does.

    Enters on the generation's scope the reservation of its input and of the first slice of its output, and above it its
    own exit half, which tells the reservation what was really used before it settles. An engine counts for itself; the
    events of an HTTP upstream are counted here as they pass, where output is limited at all. A whole answer of one
    cannot be counted before it is there, so all of its output is reserved, and if there is less, it may bring no more.

    A call that no limit counts tokens of costs nothing here.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def __call__(self, call: Call, inner: Handler) -> Awaitable[Reply]:
        if not call.terms.account.tokens:
            return inner(call)
        quota = call.quota
        assert quota is not None, "who throttles has seen that there are limits"
        return self._metered(call, inner, quota)

    async def _metered(self, call: Call, inner: Handler, quota: Quota) -> Reply:
        reservation = quota.tokens = self._reservation(call)
        generation = call.generation
        try:
            await generation.scope.enter(reservation)
        except LimitExceeded as exceeded:
            raise refusal(exceeded, quota) from exceeded
        except StoreError as error:
            raise unavailable(error) from error
        generation.reservation = reservation
        generation.scope.push(Settling(call, reservation, quota))
        engine = call.model.needs_ids
        if not engine and not call.request.stream and reservation.tight is not None:
            self._tighten(call, reservation)
        reply = await inner(call)
        if not engine and any(rule.output for rule in quota.account.tokens):
            events = reply.events
            if type(events) is not Single:
                reply.events = Metered(events, call, reservation)
            elif events.event is not None and events.event.raw is not None:
                await take_whole(call, reservation, events.event, events.event.raw)
        return reply

    def _reservation(self, call: Call) -> Reservation:
        tokens, engine, choices = call.tokens, call.model.needs_ids, num_choices(call)
        whole = not engine and not call.request.stream and tokens.output is not None
        return self._ledger.reserve(
            call.terms.account,
            new_id(),
            input_tokens=tokens.input,
            max_output=None if tokens.output is None else tokens.output * choices,
            exact=engine and tokens.exact,
            least=choices if whole else 1,
            whole=whole,
            apart=call.quota is not None and call.quota.degraded,
        )

    def _tighten(self, call: Call, reservation: Reservation) -> None:
        """Let a whole answer bring no more than there is: nobody can stop it on its way."""
        if call.tokens.output is not None:
            call.tokens = replace(call.tokens, output=reservation.granted // num_choices(call), imposed=True)


class Settling:
    """The exit half: tells the reservation below it what its call has used, however the call ended."""

    __slots__ = ("_call", "_quota", "_reservation")

    def __init__(self, call: Call, reservation: Reservation, quota: Quota) -> None:
        self._call = call
        self._reservation = reservation
        self._quota = quota

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        reservation, quota = self._reservation, self._quota
        usage = self._call.generation.usage = settlement(self._call, reservation)
        quota.reserved = reservation.holder.input
        if any(rule.output for rule in quota.account.tokens):
            quota.reserved += reservation.granted
            quota.overshoot = max(0, usage.completion - reservation.granted)
        reservation.usage(input_tokens=usage.prompt, cached_tokens=usage.cached, output_tokens=usage.completion)
