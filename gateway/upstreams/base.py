"""What dispatch knows of an upstream."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from gateway.call import Call, Reply, Request
from gateway.errors import BadRequest


@dataclass(frozen=True, slots=True)
class Room:
    """An immutable snapshot of what an upstream can still take, read without a lock.

    `slots` is how many more requests may be sent now (None: not limited). The rest is the engine's own knowledge.
    """

    slots: int | None = None
    free_blocks: int | None = None
    waiting_prefill_tokens: int = 0
    step_s: float = 0.0
    predicted_first_token_s: float | None = None


class Upstream(Protocol):
    """Somewhere an attempt can be sent."""

    name: str
    takes_ids: bool  # whether it wants `call.tokens.prompts`

    def refuses(self, request: Request) -> BadRequest | None:
        """Say why this upstream can never serve the request (a feature that it lacks); None where it can."""
        ...

    def lease(self) -> AbstractContextManager[None]:
        """Occupy one slot until closed. Whoever leases has looked at `room` with no await in between."""
        ...

    async def send(self, call: Call) -> Reply:
        """Begin an attempt. Raises `UpstreamError`, or another `GatewayError` when the request itself is at fault.

        The reply's events own the attempt: closing them before their end cancels it at the upstream.
        """
        ...

    def room(self) -> Room: ...

    async def aclose(self) -> None:
        """Release sockets, threads and memory. Running attempts fail."""
        ...
