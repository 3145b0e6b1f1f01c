"""In which order those who wait are served: a protocol for the fair order, and first come first served."""

from typing import Protocol

from engine.sequence import Sequence


class Order(Protocol):
    """Chooses among waiting sequences of one priority, lane by lane. Called on the engine thread only.

    Within a lane the order of arrival is kept. An order that lets a lane wait forever starves it: that is its own to
    prevent. Sequences that were admitted before and lost their blocks do not pass through here again.
    """

    def lane(self, sequence: Sequence) -> str:
        """Name the lane that a sequence waits in, for instance its `order_key`."""
        ...

    def rank(self, lane: str) -> float:
        """Tell how soon a lane is next: the smallest goes first, and the earliest arrival among equals."""
        ...

    def arrived(self, sequence: Sequence) -> None:
        """Take note that a sequence begins to wait."""
        ...

    def served(self, sequence: Sequence, num_computed: int, num_generated: int) -> None:
        """Take note of what one step computed and generated for a sequence."""
        ...


class FirstCome:
    """First come, first served: one lane for all."""

    def lane(self, sequence: Sequence) -> str:
        """Put everybody into the same lane."""
        return ""

    def rank(self, lane: str) -> float:
        """Rank the only lane."""
        return 0.0

    def arrived(self, sequence: Sequence) -> None:
        """Remember nothing."""

    def served(self, sequence: Sequence, num_computed: int, num_generated: int) -> None:
        """Remember nothing."""
