"""What dispatch knows of an upstream."""

from types import TracebackType
from typing import Protocol, runtime_checkable

from msgspec import Struct

from gateway.call import Call, Reply, Request
from gateway.errors import BadRequest
from policies.outcome import Outcome


class Room(Struct, frozen=True):
    """An immutable snapshot of what an upstream can still take, read without a lock.

    `slots` is how many more requests may be sent now (None: not limited), `in_flight` how many have not ended. The rest
    is the engine's own knowledge.
    """

    slots: int | None = None
    in_flight: int = 0
    free_blocks: int | None = None
    waiting_prefill_tokens: int = 0
    step_s: float = 0.0
    predicted_first_token_s: float | None = None


class Lease(Protocol):
    """One slot of an upstream, occupied from `__enter__` to `__exit__`, whatever comes between them."""

    def sample(
        self, now: float, started: float, outcome: Outcome, prompt_tokens: int, first_event_s: float | None
    ) -> None:
        """Learn from the attempt, at most once and while the slot is taken; a limit that is found out lives on it.

        SUCCESS when its first event is there, `first_event_s` after `started` (None: the answer came whole, and nobody
        knows when it began); DROPPED when it failed before that. Whoever left or was at fault is no sample.
        """
        ...

    def __enter__(self) -> object: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> object: ...


class Upstream(Protocol):
    """Somewhere an attempt can be sent."""

    name: str
    takes_ids: bool  # whether it wants `call.tokens.prompts`

    def refuses(self, request: Request) -> BadRequest | None:
        """Say why this upstream can never serve the request (a feature that it lacks); None where it can."""
        ...

    def fits(self, call: Call) -> bool:
        """Whether there is room for an attempt of this call now."""
        ...

    def lease(self) -> Lease:
        """Give a slot, occupied once it is entered. Whoever leases has seen it `fits`, with no await in between."""
        ...

    async def send(self, call: Call) -> Reply:
        """Begin an attempt. Raises `UpstreamError`, or another `GatewayError` when the request itself is at fault.

        The reply's events own the attempt: closing them before their end cancels it at the upstream.
        """
        ...

    def room(self) -> Room:
        """Tell what stands, for predictions and metrics; whether a call may be sent is for `fits` to say."""
        ...

    async def aclose(self) -> None:
        """Release sockets, threads and memory. Running attempts fail."""
        ...


@runtime_checkable
class Foresees(Protocol):
    """An upstream that knows without being asked to run a call what it would refuse it with."""

    def foresee(self, call: Call) -> None:
        """Raise what `send` would raise because of the request itself."""
        ...
