"""Decides what each step runs: whose next token, which part of whose prompt, and who must give blocks back.

A step's token budget goes to the running answers first, one token each, and what is left to prompts in chunks. So a
flood of prompts never holds up an answer for longer than a step, and a prompt always finds some budget, because it
occupies one of the `max_sequences` places and needs no decode itself.

Blocks are given for all known tokens at admission and one by one afterwards. When they run out, somebody is preempted:
its blocks are freed, its tokens are kept, and it computes them again later, less what the prefix index still holds.
Sequences have a standing, (priority, arrival), which never changes. A sequence in need takes from those of lower
standing only, from the lowest priority and there from the one that loses the least work; if nobody stands lower, it
gives way itself. A waiting one takes from a strictly lower priority only. Hence the one of highest standing always
moves on, and since each request that is let in fits into the pool alone, every one of them finishes: no two can take
blocks from each other in turn.

A sequence whose allowance has nothing left is parked (`engine.rations`). It is the one exception to standing: anybody
takes its blocks and its place, before those of one that moves. That cannot go on for ever either, because it comes back
only with at least one token more to produce. So among those who have tokens the highest always moves on.
"""

from bisect import insort
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from heapq import heapify, heappop, heappush
from itertools import count
from typing import NamedTuple

from engine.batch import Batch, Logprobs, Row, Sampled
from engine.blocks import BlockPool
from engine.config import EngineConfig
from engine.errors import PromptEmpty, PromptTooLong
from engine.order import Order
from engine.rations import Rations, Verdicts
from engine.sequence import FinishReason, Sequence, Status
from engine.waiting import WaitingQueue

# How many blocks an admission leaves to each running sequence: one, one more each time that they ran out (up to a
# bound), and less again with each answer that ends. Who preempts computes again, and who admits late lets wait.
LEAST_SPARE, MOST_SPARE, SPARE_DECAY = 1.0, 16.0, 0.95


TOO_LATE = "too late"  # the error of who is shed: the deadline is still to come, and nothing could be there by then


class Progress(NamedTuple):
    """What one step brought for one sequence: tokens to emit, and whether it ended.

    A stop token is not among `token_ids`, unless the parameters include it; `stop` names it, `num_accepted` counts it.
    `limited` says that it ended because its allowance did.
    """

    sequence: Sequence
    token_ids: tuple[int, ...]
    logprobs: tuple[Logprobs, ...] | None
    finish: FinishReason | None
    stop: int | None
    num_accepted: int
    error: str | None = None
    limited: bool = False


class Scheduler:
    """Holds every unfinished sequence, and gives each step its batch. Lives on the engine thread.

    `forget` is told about each sequence that lost its blocks. The choices of one request share the prompt: the others
    wait until the first has computed it, and then find it in the prefix index.
    """

    def __init__(
        self,
        config: EngineConfig,
        pool: BlockPool,
        max_model_len: int,
        order: Order,
        forget: Callable[[Sequence], None],
    ) -> None:
        self.config = config
        self.pool = pool
        self.max_model_len = max_model_len
        self.running: list[Sequence] = []  # by standing, the highest first
        self.waiting = WaitingQueue(order)
        self.rations = Rations()
        self.num_preemptions = 0
        self.num_shelved = 0  # of those, the ones that had no token to produce anyway
        self.num_cached_tokens = 0  # of prompts, found at their first admission
        self._order = order
        self._forget = forget
        self._limit = min(max_model_len, pool.capacity)
        self._spare = LEAST_SPARE
        self._gave_way: set[Sequence] = set()  # preempted since the step began to be scheduled
        self._siblings: dict[Sequence, list[Sequence]] = {}  # first choice -> those that wait for its prompt
        self._num_siblings = 0
        self._deadlines: list[tuple[float, int, Sequence]] = []
        self._arrivals = count()

    @property
    def has_work(self) -> bool:
        """Whether `schedule` would give a batch."""
        return len(self.running) > len(self.rations.parked) or bool(self.waiting)

    @property
    def num_waiting(self) -> int:
        """How many sequences wait to be admitted, or for a token to be admitted with. May be read from any thread."""
        return len(self.waiting) + self._num_siblings + len(self.rations.shelved)

    @property
    def num_waiting_prefill_tokens(self) -> int:
        """How many tokens are to be computed before all have their first one; cached ones are not known yet."""
        lacking = (len(sequence.token_ids) - sequence.num_computed for sequence in self.running)
        return self.waiting.num_tokens + sum(tokens for tokens in lacking if tokens > 1)

    def check_fits(self, num_prompt: int) -> None:
        """Raise `PromptEmpty` or `PromptTooLong` for a prompt that could never run. May be called from any thread."""
        if num_prompt == 0:
            raise PromptEmpty("the prompt has no token")
        if num_prompt + 1 > self.max_model_len:
            raise PromptTooLong(num_prompt, self.max_model_len)
        if num_prompt + 1 > self.pool.capacity:
            raise PromptTooLong(num_prompt, self.pool.capacity, "the capacity of the KV pool")

    def add(self, choices: Seq[Sequence]) -> None:
        """Let the choices of one request wait."""
        for sequence in choices:
            sequence.arrival = next(self._arrivals)
            self.rations.add(sequence)
            self._watch(sequence)
        first, *others = choices
        self.waiting.push(first)
        if self.pool.caching and others and first.num_prompt > self.pool.block_size:
            self._siblings[first] = others
            self._num_siblings += len(others)
        else:
            for sequence in others:
                self.waiting.push(sequence)

    def expire(self, now: float) -> list[Sequence]:
        """End the sequences that are past their deadline, and return them."""
        expired = []
        while self._deadlines and self._deadlines[0][0] <= now:
            sequence = heappop(self._deadlines)[2]
            if sequence.status is not Status.FINISHED:
                self.finish(sequence, FinishReason.ERROR)
                expired.append(sequence)
        return expired

    def shed(self, now: float, prefill_tokens_per_s: float) -> list[Sequence]:
        """End those next in line whose prompt could not be computed before their deadline even alone, and return them.

        They would cost steps that others need, and bring nothing. The pace is the best there is; 0 is not known yet.
        """
        shed: list[Sequence] = []
        if not prefill_tokens_per_s or not self._deadlines:
            return shed
        if (self._deadlines[0][0] - now) * prefill_tokens_per_s >= self._limit:  # there is time for the longest prompt
            return shed
        while (head := self.waiting.head()) is not None and self._is_hopeless(head, now, prefill_tokens_per_s):
            self.finish(head, FinishReason.ERROR)
            shed.append(head)
        return shed

    def next_deadline(self) -> float | None:
        """Tell when `expire` will next end somebody, if nothing else happens."""
        while self._deadlines and self._deadlines[0][2].status is Status.FINISHED:
            heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def ration(self, now: float) -> Verdicts:
        """Share out the allowances for the step to come. To be called before `schedule`, if any sequence has one.

        Who has ended is for the caller to finish.
        """
        verdicts = self.rations.share(self.running, now)
        for sequence in verdicts.resumed:
            self.waiting.push_resumed(sequence)
        for sequence in verdicts.ended:
            if self.waiting.discard(sequence):
                self.rations.shelve(sequence)
        while (head := self.waiting.head()) is not None and self.rations.refuses(head, verdicts):
            self.waiting.discard(head)
            self.rations.shelve(head)
        return verdicts

    def finish(self, sequence: Sequence, reason: FinishReason, *, spoilt: bool = False) -> None:
        """End a sequence wherever it stands and take its blocks back. A finished one only changes its reason.

        What a `spoilt` sequence computed is not kept in the prefix index.
        """
        if sequence.status is Status.RUNNING:
            self.running.remove(sequence)
            self._release(sequence, spoilt)
        elif sequence.status is Status.WAITING and not self._stops_waiting(sequence):
            self._num_siblings -= 1
        self.rations.drop(sequence)
        sequence.status = Status.FINISHED
        sequence.finish = reason
        self._spare = max(self._spare * SPARE_DECAY, LEAST_SPARE)
        self._admit_siblings(sequence)

    def schedule(self) -> Batch | None:
        """Choose the next step's rows, and give them their blocks; None when there is nothing to do."""
        self._gave_way.clear()
        self._grow()
        decodes: list[Sequence] = []
        prefills: list[Sequence] = []
        parked, resting = self.rations.parked, self.rations.resting
        all_move = not parked and not resting
        for sequence in self.running:
            known, computed = len(sequence.token_ids), sequence.num_computed
            if known - computed != 1:
                prefills.append(sequence)
            elif all_move or (sequence not in parked and sequence not in resting):
                decodes.append(sequence)
        budget = self.config.max_batch_tokens - len(decodes)
        chunks = []
        candidates = self._prefills(prefills)
        while budget and (candidate := next(candidates, None)) is not None:
            start, known = candidate.num_computed, len(candidate.token_ids)
            size = min(known - start, self.config.max_prefill_chunk, budget)
            samples = start + size == known
            if samples and not self.rations.take(candidate):
                size, samples = size - 1, False
                if not size:
                    continue
            chunks.append(Row(candidate, start, size, samples))
            budget -= size
        # An admission may have taken the blocks of a lower priority's decode.
        rows = [Row(s, s.num_computed, 1, True) for s in decodes if s.status is Status.RUNNING]
        rows += chunks
        return Batch(tuple(rows), sum(row.count for row in rows)) if rows else None

    def commit(self, batch: Batch, sampled: Seq[Sampled]) -> list[Progress]:
        """Take in what a step computed and sampled; end whoever met a stop token or the length limit.

        One `Sampled` for each sampling row. Of several accepted tokens all but the last are in the blocks already.
        """
        results = iter(sampled)
        progress = []
        for row in batch.rows:
            if not row.samples:
                self.pool.advance(row.sequence, row.start + row.count)
                self._order.served(row.sequence, row.count, 0)
            else:
                progress.append(self._accept(row, next(results)))
            if (
                self._siblings
                and row.sequence in self._siblings
                and row.sequence.num_computed >= row.sequence.num_prompt
            ):
                self._admit_siblings(row.sequence)
        assert next(results, None) is None, "the runner returned more results than sampling rows"
        return progress

    def _accept(self, row: Row, sampled: Sampled) -> Progress:
        """Append a row's tokens up to the one that ends the sequence; a prefix of what was sampled."""
        sequence, params = row.sequence, row.sequence.params
        if sampled.error is not None:
            self.finish(sequence, FinishReason.ERROR, spoilt=True)
            return Progress(sequence, (), None, FinishReason.ERROR, None, 0, sampled.error)
        assert sampled.token_ids, "a sampling row brought no token"
        finish: FinishReason | None = None
        stop: int | None = None
        known = len(sequence.token_ids)
        earliest_stop = sequence.num_prompt + params.min_tokens
        last = min(sequence.num_prompt + params.max_tokens, self._limit)
        num_accepted = 0
        for token in sampled.token_ids:
            sequence.token_ids.append(token)
            num_accepted += 1
            if token in params.stop_token_ids and known + num_accepted > earliest_stop:
                finish, stop = FinishReason.STOP, token
                break
            if known + num_accepted >= last:
                finish = FinishReason.LENGTH
                break
        self.pool.advance(sequence, row.start + row.count + num_accepted - 1)
        self._order.served(sequence, row.count, num_accepted)
        if sequence.allowance is not None:
            sequence.allowance.used += num_accepted
        if finish is not None:
            self.finish(sequence, finish)
        token_ids, logprobs = sampled.token_ids, sampled.logprobs
        num_emitted = num_accepted if stop is None or params.include_stop else num_accepted - 1
        if num_emitted < len(token_ids):
            token_ids, logprobs = token_ids[:num_emitted], logprobs and logprobs[:num_emitted]
        return Progress(sequence, token_ids, logprobs, finish, stop, num_accepted)

    def _grow(self) -> None:
        """Give each running sequence the block that its newest token needs, the highest standing first."""
        parked = self.rations.parked
        for sequence in list(self.running):
            if not self.pool.lacks_blocks(sequence) or sequence in parked:
                continue
            while sequence.status is Status.RUNNING:
                if self.pool.can_append(sequence):
                    self.pool.append(sequence)
                    break
                lower = self.running[self.running.index(sequence) + 1 :]
                self._preempt(self._victim([*parked, *lower]) or sequence)
                self._spare = min(self._spare + 1, MOST_SPARE)

    def _victim(self, sequences: Seq[Sequence]) -> Sequence | None:
        """Choose whom to preempt: one that is parked, else the cheapest."""
        parked = [sequence for sequence in sequences if sequence in self.rations.parked] if self.rations.parked else []
        return self._cheapest(parked) or (parked[-1] if parked else self._cheapest(sequences))

    def _cheapest(self, sequences: Seq[Sequence]) -> Sequence | None:
        """Choose among those that move: the lowest priority, then the least work lost, then the latest to arrive."""

        def cost(sequence: Sequence) -> tuple[int, int, int]:
            shared = (len(sequence.block_table) - self.pool.num_exclusive(sequence)) * self.pool.block_size
            return sequence.priority, sequence.num_computed - shared, -sequence.arrival

        return min((s for s in sequences if self.pool.num_exclusive(s)), key=cost, default=None)

    def _prefills(self, running: list[Sequence]) -> Iterator[Sequence]:
        """Give those whose prompt needs computing: running ones, and the next waiting one before a lower priority."""
        position, blocked = 0, False
        while True:
            head = None if blocked else self.waiting.head()
            if position < len(running) and (head is None or head.priority <= running[position].priority):
                sequence = running[position]
                position += 1
                if sequence.status is Status.RUNNING:
                    yield sequence
            elif head is None:
                return
            elif head not in self._gave_way and self._admit(head):
                yield head
            else:
                # Nobody overtakes whoever is next, or a large prompt would wait forever; and who gave way in this step
                # does not come back in it.
                blocked = True

    def _admit(self, sequence: Sequence) -> bool:
        """Give a waiting sequence its blocks and let it run, if it finds room.

        Those who run and need not give way keep some spare blocks, or the newcomer would be preempted as they grow.
        """
        found = self.pool.match(sequence)
        parked = self.rations.parked
        lower = [other for other in self.running if other.priority < sequence.priority or other in parked]
        stay = len(self.running) - len(lower)
        spare = int(stay * self._spare)
        reclaimable = self.pool.num_reclaimable(lower, found)
        if stay >= self.config.max_sequences or self.pool.shortage(sequence, found) + spare > reclaimable:
            return False
        while len(self.running) >= self.config.max_sequences or not self.pool.can_allocate(sequence, found, spare):
            victim = self._victim(lower) or lower[-1]
            lower.remove(victim)
            self._preempt(victim)
        self.waiting.discard(sequence)
        self.pool.allocate(sequence, found)
        if not sequence.num_preemptions:
            sequence.num_cached = sequence.num_computed
            self.num_cached_tokens += sequence.num_cached
        sequence.status = Status.RUNNING
        sequence.begun = True
        insort(self.running, sequence, key=_standing)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Take a running sequence's blocks back, and let it wait to compute its tokens again, once it may sample."""
        self.running.remove(sequence)
        self._release(sequence)
        sequence.status = Status.WAITING
        sequence.num_preemptions += 1
        self.num_preemptions += 1
        if sequence in self.rations.parked:
            self.num_shelved += 1
            self.rations.shelve(sequence)
        else:
            self._gave_way.add(sequence)
            self.waiting.push_resumed(sequence)

    def _release(self, sequence: Sequence, spoilt: bool = False) -> None:
        self.pool.free(sequence, spoilt=spoilt)
        self._forget(sequence)

    def _admit_siblings(self, first: Sequence) -> None:
        """Let the other choices of a request into the queue: its prompt is computed, or will not be."""
        for sequence in self._siblings.pop(first, ()):
            if sequence.status is Status.WAITING:
                self._num_siblings -= 1
                self.waiting.push_resumed(sequence)

    def _is_hopeless(self, sequence: Sequence, now: float, prefill_tokens_per_s: float) -> bool:
        """Whether a prompt that no step was spent on cannot be computed in time; what is cached need not be."""
        if sequence.deadline is None or sequence.begun:
            return False
        computable = (sequence.deadline - now) * prefill_tokens_per_s
        if sequence.num_prompt <= computable:
            return False
        return sequence.num_prompt - len(self.pool.match(sequence)) * self.pool.block_size > computable

    def _stops_waiting(self, sequence: Sequence) -> bool:
        """Take a sequence out of the queue; false if it stands neither there nor aside."""
        return sequence in self.rations.shelved or self.waiting.discard(sequence)

    def _watch(self, sequence: Sequence) -> None:
        """Remember a sequence's deadline; those of the finished are dropped before they outnumber the others."""
        if sequence.deadline is None:
            return
        if len(self._deadlines) > 64 + 2 * (len(self.running) + self.num_waiting):
            self._deadlines = [entry for entry in self._deadlines if entry[2].status is not Status.FINISHED]
            heapify(self._deadlines)
        heappush(self._deadlines, (sequence.deadline, sequence.arrival, sequence))


def _standing(sequence: Sequence) -> tuple[int, int]:
    return -sequence.priority, sequence.arrival
