"""Where the ledger's numbers live: one operation, the same in memory and in Redis.

All limits of an organisation lie together (one book in memory, one hash slot in a Redis Cluster), so that a step is
checked and charged on every scope at once, whatever happens in between. Organisations never share a limit.
"""

from typing import Protocol

from policies.reservation import Answer, Step


class Store(Protocol):
    """Takes steps of reservations, one at a time, each wholly or not at all."""

    async def apply(self, organisation: str, step: Step, now: int | None = None) -> Answer:
        """Take one step on the store's own clock; `now` (µs since 1970) replaces it in tests only.

        Raises `StoreError`; then the step may have been taken or not, and sending it again is safe.
        """

    def clock(self, organisation: str) -> int:
        """Tell the store's clock in µs since 1970, never ahead of it and behind by at most a reply's way."""

    async def probe(self) -> None:
        """Ask for a sign of life. Raises `StoreError`."""

    async def aclose(self) -> None:
        """Let go of everything."""
