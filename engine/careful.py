"""Runs a step so that what goes wrong in it costs as few answers as possible.

A runner changes nothing but the blocks of the rows that it computes, so a step that failed can be run again, in parts:

- *It raised.* Each half is run by itself, and so on, until what raises stands alone. Only that fails; everybody else
  has the step's token. A device that is gone raises whatever it is asked, so the runs are bounded: what was not found
  within them fails together.
- *No memory was left.* The first half is run once more, decodes first; the others keep their blocks and their turn, and
  come next time. If that finds no memory either, the newest of them fails. For some steps after, batches stay small,
  and grow again.
"""

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from typing import NamedTuple

from engine.batch import Batch, Row, Runner, Sampled
from engine.sequence import Sequence

GROWTH = 1.1  # of what a step may hold, for each one that went well
REGAIN_TOKENS = 1 << 16  # what is beyond every step: then nothing is held back any more


class Portion(NamedTuple):
    """Some rows of a step: what they brought, or what they raised. Rows of no portion wait for another step."""

    batch: Batch
    sampled: Seq[Sampled]
    error: Exception | None = None


class Careful:
    """Runs batches on a runner. `forget` is told who has to be computed afresh.

    `failures` counts steps that raised, `shortages` those that found no memory.
    """

    def __init__(self, runner: Runner, forget: Callable[[Sequence], None]) -> None:
        self._runner = runner
        self._forget = forget
        self._most: float | None = None  # tokens in a step, since memory ran out
        self.failures = 0
        self.shortages = 0

    def run(self, batch: Batch) -> list[Portion]:
        """Run a batch, or what can be run of it. Never raises."""
        if self._most is not None:
            batch = self._trimmed(batch, self._most)
        portion = self._try(batch)
        if portion.error is None:
            if self._most is not None:
                self._most = self._most * GROWTH + 1 if self._most < REGAIN_TOKENS else None
            return [portion]
        if isinstance(portion.error, MemoryError):
            self.shortages += 1
            return self._with_less(batch)
        self.failures += 1
        return self._apart(portion)

    def _try(self, batch: Batch) -> Portion:
        try:
            return Portion(batch, self._runner.run(batch))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is handed on with the rows that raised it
            for row in batch.rows:
                self._forget(row.sequence)
            return Portion(batch, (), error)

    def _with_less(self, batch: Batch) -> list[Portion]:
        """Try the first half of a step that found no memory; failing that, give its newest sequence up."""
        self._most = max(batch.num_tokens // 2, 1)
        half = self._trimmed(batch, self._most)
        portion = self._try(half)
        if portion.error is None:
            return [portion]
        newest = max(half.rows, key=lambda row: row.sequence.arrival)
        return [Portion(batch_of((newest,)), (), portion.error)]

    def _apart(self, failed: Portion) -> list[Portion]:
        """Find what raises, within so many runs as one row alone would need."""
        runs = 2 * len(failed.batch.rows).bit_length()
        found: list[Portion] = []
        pending = [failed]
        while pending:
            portion = pending.pop()
            rows = portion.batch.rows
            if portion.error is None or len(rows) == 1 or runs < 2:
                found.append(portion)
                continue
            middle = len(rows) // 2
            runs -= 2
            pending += [self._try(batch_of(rows[middle:])), self._try(batch_of(rows[:middle]))]
        return found

    def _trimmed(self, batch: Batch, most: float) -> Batch:
        """Give the first rows that hold at most so many tokens; one at the least."""
        tokens = 0
        for number, row in enumerate(batch.rows):
            tokens += row.count
            if number and tokens > most:
                return batch_of(batch.rows[:number])
        return batch


def batch_of(rows: Iterable[Row]) -> Batch:
    """Make a batch of some rows."""
    rows = tuple(rows)
    return Batch(rows, sum(row.count for row in rows))
