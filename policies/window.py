"""Counts of the recent past: what happened within the last `span_s` seconds, in slots that expire one by one.

A slot is a tenth of the span by default. What was counted is remembered for at least nine tenths of the span and never
longer than all of it. The totals are kept, so that reading them costs nothing; adding is O(1) amortised.
"""


class Window:
    """Several counters side by side, called columns, over one sliding window. Times in seconds, never negative."""

    __slots__ = ("_columns", "_index", "_latest", "_num_slots", "_slot_s", "_slots", "_until", "totals")

    def __init__(self, span_s: float, *, columns: int = 1, num_slots: int = 10) -> None:
        if span_s <= 0 or num_slots < 1:
            raise ValueError(f"a window of {span_s} s in {num_slots} slots; expected positive numbers")
        self.totals = [0] * columns
        self._slots = [[0] * columns for _ in range(num_slots)]
        self._columns = range(columns)
        self._num_slots = num_slots
        self._slot_s = span_s / num_slots
        self._index = 0
        self._latest = self._slots[0]
        self._until = 0.0  # the end of the latest slot; nothing expires before it

    def add(self, now: float, column: int, amount: int) -> None:
        """Count in the slot of `now`. A clock that was set back counts in the latest slot."""
        if now >= self._until:
            self.advance(now)
        self._latest[column] += amount
        self.totals[column] += amount

    def advance(self, now: float) -> None:
        """Forget what is too old by `now`."""
        if now < self._until:
            return
        index = int(now / self._slot_s)
        gone = index - self._index
        if gone <= 0:
            return
        for past in range(index, index - min(gone, self._num_slots), -1):
            slot = self._slots[past % self._num_slots]
            for column in self._columns:
                self.totals[column] -= slot[column]
                slot[column] = 0
        self._index = index
        self._latest = self._slots[index % self._num_slots]
        self._until = (index + 1) * self._slot_s

    def clear(self) -> None:
        """Forget everything."""
        for slot in (self.totals, *self._slots):
            slot[:] = [0] * len(slot)
