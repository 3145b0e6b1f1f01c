"""Shares out what allowances leave: who may take a token in the step to come, who is parked, who has to end.

A row that samples takes one token of its call's allowance. What a step may take of each is reckoned once, before its
rows are chosen, so the choices of a call never take more between them than there is; where there is too little, those
go first that have produced least, and among equals the lower index; the others rest for a step.

A running sequence that finds nothing left is *parked*: it keeps its blocks and its place but has no row, and both go to
whoever needs them, whatever the standing, before anybody loses work that goes on. So a parked sequence holds up nobody,
neither while its reader sleeps nor while a store is silent. One that lost its blocks is *shelved*: it does not even
wait for room until it has a token to produce with it. Likewise one that is next to be admitted and has none.

Only news (`Engine.nudge`) can end this. After each, whoever is still short is told about once, so that no grant that
came just too late leaves anybody waiting.
"""

from collections.abc import Iterable
from typing import NamedTuple

from engine.allowance import Allowance
from engine.sequence import Sequence, Status


class Verdicts(NamedTuple):
    """`ended` have used up an allowance that is closed; `resumed` have tokens again and wait for room.

    `short` stands for those whose allowance has nothing left: one sequence for each allowance.
    """

    ended: list[Sequence]
    resumed: list[Sequence]
    short: list[Sequence]


class Rations:
    """The sequences that have an allowance.

    `parked` are running ones, and `resting` those for whom there is no token in this step, but perhaps in the next;
    `shelved` neither run nor stand in the queue.
    """

    def __init__(self) -> None:
        self.limited: dict[Sequence, None] = {}
        self.parked: dict[Sequence, None] = {}
        self.shelved: dict[Sequence, None] = {}
        self.resting: set[Sequence] = set()
        self._now = 0.0
        self._step = 0
        self._news = 0
        self._heeded = 0

    def add(self, sequence: Sequence) -> None:
        """Take note of a new sequence."""
        if sequence.allowance is not None:
            self.limited[sequence] = None

    def drop(self, sequence: Sequence) -> None:
        """Forget a sequence that ended."""
        if sequence.allowance is not None:
            self.limited.pop(sequence, None)
            self.parked.pop(sequence, None)
            self.shelved.pop(sequence, None)
            self.resting.discard(sequence)

    def shelve(self, sequence: Sequence) -> None:
        """Keep a sequence aside until it has tokens again."""
        self.parked.pop(sequence, None)
        self.shelved[sequence] = None

    def heed(self) -> None:
        """Allowances may have changed."""
        self._news += 1

    def share(self, running: Iterable[Sequence], now: float) -> Verdicts:
        """Begin a step: give a token to each running sequence whose next row samples; the others rest or are parked."""
        self._now = now
        self._step += 1
        self.parked.clear()
        self.resting.clear()
        verdicts = Verdicts([], [], [])
        scarce: dict[Allowance, list[Sequence]] = {}
        for sequence in running:
            allowance = sequence.allowance
            if allowance is None or len(sequence.token_ids) - sequence.num_computed != 1:
                continue
            if allowance.step != self._step:
                self._reckon(allowance)
            if not allowance.left_at_start:
                self.parked[sequence] = None
                self._deny(sequence, allowance, verdicts)
            else:
                allowance.spare -= 1
                if allowance.spare < 0:
                    scarce[allowance] = []
        if scarce:
            self._divide(running, scarce)
        if self._heeded != self._news:
            self._heeded = self._news
            self._review(verdicts)
        return verdicts

    def take(self, sequence: Sequence) -> bool:
        """Take a token for one more row that samples in this step, if there is one."""
        allowance = sequence.allowance
        if allowance is None:
            return True
        if allowance.step != self._step:
            self._reckon(allowance)
        if allowance.spare <= 0:
            return False
        allowance.spare -= 1
        return True

    def refuses(self, head: Sequence, verdicts: Verdicts) -> bool:
        """Tell whether it is of no use to admit a sequence, because it has no token to produce."""
        allowance = head.allowance
        if allowance is None or allowance.left(self._now):
            return False
        self._deny(head, allowance, verdicts)
        return True

    def _reckon(self, allowance: Allowance) -> None:
        allowance.step = self._step
        allowance.left_at_start = allowance.spare = allowance.left(self._now)

    def _divide(self, running: Iterable[Sequence], scarce: dict[Allowance, list[Sequence]]) -> None:
        """Of those whose allowance does not do for all, let the least advanced go on."""
        for sequence in running:
            allowance = sequence.allowance
            if allowance in scarce and len(sequence.token_ids) - sequence.num_computed == 1:
                scarce[allowance].append(sequence)
        for allowance, sequences in scarce.items():
            sequences.sort(key=_turn)
            self.resting.update(sequences[allowance.left_at_start :])
            allowance.spare = 0

    def _review(self, verdicts: Verdicts) -> None:
        """After news: let those come back who have tokens again, and end those who will never have any."""
        for sequence in self.limited:
            allowance = sequence.allowance
            assert allowance is not None
            if sequence.status is not Status.WAITING:
                continue
            if allowance.left(self._now):
                if sequence in self.shelved:
                    verdicts.resumed.append(sequence)
            elif allowance.closed or sequence in self.shelved:
                self._deny(sequence, allowance, verdicts)
        for sequence in verdicts.resumed:
            del self.shelved[sequence]

    def _deny(self, sequence: Sequence, allowance: Allowance, verdicts: Verdicts) -> None:
        if allowance.closed:
            verdicts.ended.append(sequence)
        elif allowance.told != self._news:
            allowance.told = self._news
            verdicts.short.append(sequence)


def _turn(sequence: Sequence) -> tuple[int, int]:
    return sequence.num_generated, sequence.arrival
