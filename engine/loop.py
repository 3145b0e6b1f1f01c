"""The engine: requests in from any thread, one batch a step, one list of outputs a step out.

Callers touch the inbox only, under a lock held for a few instructions; scheduler, pool, runner and text belong to the
engine's thread alone. Whatever a step brings, the ends of aborted and failed answers included, leaves in one `deliver`
call, so that an event loop is crossed to once a step and not once a token.

An allowance (`engine.allowance`) is the one thing that both sides touch while an answer runs; its page says why they
may.
"""

import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from engine.batch import Batch, Runner
from engine.blocks import BlockPool
from engine.careful import Careful, Portion
from engine.config import EngineConfig
from engine.errors import DuplicateRequest, EngineStopped, InvalidParams, QueueFull
from engine.meter import Meter
from engine.order import FirstCome, Order
from engine.outbox import Outbox
from engine.output import EngineStats, GenerateRequest, Output
from engine.scheduler import TOO_LATE, Progress, Scheduler
from engine.sequence import FinishReason, Sequence
from engine.text.stream import TextStream

log = logging.getLogger("engine")


@dataclass(slots=True)
class Ticket:
    """One request on its way: its choices, their text streams, and how many of them have not ended."""

    choices: list[Sequence]
    streams: list[TextStream | None]
    num_open: int


class Engine:
    """Serves requests with a runner, on its own thread (`start`, `stop`) or step by step (`step`, for tests).

    `deliver` is called on the engine's thread, at most once a step, with every output of the step, and must not block:
    each choice gets outputs until exactly one with `finish`. `stats` is replaced once a step and read without a lock.
    Of a step that fails only those answers end with ERROR that make it fail, as far as that can be found out
    (`engine.careful`). `step_started` is when the step under way began, None between steps: a watchdog looks at it.
    """

    def __init__(
        self,
        runner: Runner,
        config: EngineConfig,
        new_text_stream: Callable[[Sequence], TextStream] | None,
        deliver: Callable[[list[Output]], None],
        order: Order | None = None,
        *,
        pool: BlockPool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if pool is None:
            pool = BlockPool(
                runner.num_blocks, runner.block_size, fingerprint=config.fingerprint, caching=config.prefix_cache
            )
        self.scheduler = Scheduler(config, pool, runner.max_model_len, order or FirstCome(), self._forget)
        self._runner = runner
        self._careful = Careful(runner, self._forget)
        self.step_started: float | None = None
        self._config = config
        self._new_text_stream = new_text_stream
        self._deliver = deliver
        self._clock = clock
        self._meter = Meter(config.max_prefill_chunk)
        self._outbox = Outbox()
        self._tickets: dict[str, Ticket] = {}  # engine thread: requests that the scheduler knows

        self._wake = threading.Condition()  # guards what follows
        self._inbox: list[Ticket] = []
        self._aborts: list[str] = []
        self._nudged = False
        self._live: set[str] = set()  # ids submitted and not ended
        self._num_incoming = 0  # choices in the inbox
        self._stopping = False

        self._thread: threading.Thread | None = None
        self.stats = self._snapshot()

    # From any thread.

    def submit(self, request: GenerateRequest) -> None:
        """Let a request in; its outputs come through `deliver`.

        Raises `InvalidParams`, `PromptEmpty`, `PromptTooLong`, `DuplicateRequest`, `QueueFull` or `EngineStopped`, and
        then nothing of it was taken in.
        """
        self.check(request)
        choices = [
            Sequence(
                request.id,
                index,
                list(request.prompt_ids),
                len(request.prompt_ids),
                request.params,
                priority=request.priority,
                deadline=request.deadline,
                salt=request.salt,
                order_key=request.order_key,
                weight=request.weight,
                allowance=request.allowance,
            )
            for index in range(request.n)
        ]
        new_text_stream = self._new_text_stream
        streams = [new_text_stream(choice) if new_text_stream else None for choice in choices]
        with self._wake:
            if self._stopping:
                raise EngineStopped("the engine takes no more requests")
            if request.id in self._live:
                raise DuplicateRequest(request.id)
            if self._num_incoming + self.scheduler.num_waiting >= self._config.max_waiting:
                raise QueueFull(self._config.max_waiting)
            self._live.add(request.id)
            self._inbox.append(Ticket(choices, streams, request.n))
            self._num_incoming += request.n
            self._wake.notify()

    def check(self, request: GenerateRequest) -> None:
        """Raise what a request would be refused with for its own sake, as `submit` says."""
        vocab_size = self._runner.vocab_size
        request.params.validate(vocab_size)
        if request.n < 1:
            raise InvalidParams("n", f"expected at least 1, got {request.n}")
        self.scheduler.check_fits(len(request.prompt_ids))
        lowest, highest = min(request.prompt_ids), max(request.prompt_ids)
        if lowest < 0 or highest >= vocab_size:
            wrong = lowest if lowest < 0 else highest
            raise InvalidParams("prompt", f"expected token ids from 0 to {vocab_size - 1}, got {wrong}")

    def abort(self, request_id: str) -> None:
        """End a request's unfinished choices with ABORT in the next step. Ids that are unknown or ended are ignored."""
        with self._wake:
            if request_id in self._live:
                self._aborts.append(request_id)
                self._wake.notify()

    def nudge(self) -> None:
        """Say that an allowance has changed; wakes an engine whose answers are all short of tokens."""
        with self._wake:
            self._nudged = True
            self._wake.notify()

    def usual_step_s(self) -> float:
        """Give what a step takes by now, smoothed."""
        return self._meter.step_s

    def where(self) -> str:
        """Tell where the engine's thread is, for an operator who wonders why a step takes so long."""
        frames = sys._current_frames()
        frame = None if self._thread is None or self._thread.ident is None else frames.get(self._thread.ident)
        return "no thread" if frame is None else "".join(traceback.format_stack(frame))

    def start(self) -> None:
        """Start the engine's thread."""
        assert self._thread is None, "the engine was started before"
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float | None = None) -> bool:
        """Take no more requests, finish the step in progress and end what is left with ERROR.

        Waits for the thread at most `timeout_s`; false if it still hangs in its step then.
        """
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread is None:
            self._close()
            return True
        if self._thread is not threading.current_thread():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    # On the engine's thread.

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._inbox or self._aborts or self._nudged or self.scheduler.has_work)

    def step(self) -> None:
        """Drain the inbox, run one batch, hand the outputs over."""
        self.step_started = started = self._clock()
        try:
            self._step(started)
        finally:
            self.step_started = None

    def _step(self, started: float) -> None:
        outputs: list[Output] = []
        self._drain(outputs)
        for sequence in self.scheduler.expire(started):
            self._end(sequence, FinishReason.ERROR, outputs, "deadline")
        for sequence in self.scheduler.shed(started, self._meter.best_prefill_tokens_per_s):
            self._end(sequence, FinishReason.ERROR, outputs, TOO_LATE)
        if self.scheduler.rations.limited:
            self._ration(started, outputs)
        batch = self.scheduler.schedule()
        model_s = self._compute(batch, outputs) if batch is not None else 0.0
        self.stats = self._snapshot()
        if outputs:
            self._hand_over(outputs)
        if batch is not None:
            # Who waits for a quota gives way by dozens when others come: that is no sign of an engine in trouble.
            preemptions = self.scheduler.num_preemptions - self.scheduler.num_shelved
            self._meter.observe(batch, self._clock() - started, model_s, preemptions)

    def _run(self) -> None:
        """Step until told to stop. An error in here is our own; it ends every request, and the loop goes on."""
        try:
            while self._wait_for_work():
                try:
                    self.step()
                except Exception as error:
                    log.exception("a step failed outside the model; every request ends")
                    self._end_all(f"the engine failed: {error!r}")
        finally:
            self._close()

    def _wait_for_work(self) -> bool:
        """Sleep until there is something to do or somebody's deadline comes; false when it is to stop."""
        with self._wake:
            while not self._stopping and not self.has_work:
                deadline = self.scheduler.next_deadline()  # of those who are short of tokens: nobody else is left
                wait_s = None if deadline is None else deadline - self._clock()
                if wait_s is not None and wait_s <= 0:
                    break
                self._wake.wait(wait_s)
            return not self._stopping

    def _drain(self, outputs: list[Output]) -> None:
        """Take in new requests, then abort, so that a request aborted in between is known."""
        if not self._inbox and not self._aborts and not self._nudged:
            return
        with self._wake:
            if self._nudged:
                self._nudged = False
                self.scheduler.rations.heed()
            inbox, self._inbox = self._inbox, []
            aborts, self._aborts = self._aborts, []
            self._num_incoming = 0
            for ticket in inbox:
                self.scheduler.add(ticket.choices)
        for ticket in inbox:
            self._tickets[ticket.choices[0].request_id] = ticket
            self._meter.prompt_tokens += sum(choice.num_prompt for choice in ticket.choices)
            for choice, stream in zip(ticket.choices, ticket.streams, strict=True):
                self._outbox.open(choice, stream)
        for request_id in aborts:
            aborted = self._tickets.get(request_id)
            for choice in aborted.choices if aborted else ():
                if choice in self._outbox:
                    self._meter.aborts += 1
                    self._end(choice, FinishReason.ABORT, outputs)

    def _ration(self, now: float, outputs: list[Output]) -> None:
        """Share out the allowances; end whose is closed and used up, and say of the others that they are short."""
        verdicts = self.scheduler.ration(now)
        outputs += [self._outbox.pause(sequence) for sequence in verdicts.short]
        for sequence in verdicts.ended:
            output = self._outbox.push(Progress(sequence, (), None, FinishReason.LENGTH, None, 0, limited=True))
            assert output is not None, "an end is never withheld"
            assert output.finish is not None
            outputs.append(output)
            self._settle(sequence, output.finish)

    def _compute(self, batch: Batch, outputs: list[Output]) -> float:
        """Run a batch and collect what it brought; give the seconds that the runner took."""
        started = self._clock()
        portions = self._careful.run(batch)
        model_s = self._clock() - started
        for portion in portions:
            if portion.error is not None:
                self._fail(portion.batch, portion.error, outputs)
                continue
            try:
                self._commit(portion, outputs)
            except Exception as error:  # noqa: BLE001 - logged where the answers end
                self._fail(portion.batch, error, outputs)
        return model_s

    def _commit(self, portion: Portion, outputs: list[Output]) -> None:
        for progress in self.scheduler.commit(portion.batch, portion.sampled):
            self._meter.generated_tokens += progress.num_accepted
            self._meter.row_errors += progress.error is not None
            output = self._outbox.push(progress)
            if output is not None:
                outputs.append(output)
                if output.finish is not None:
                    self._settle(progress.sequence, output.finish)

    def _fail(self, batch: Batch, error: Exception, outputs: list[Output]) -> None:
        """End the answers of rows that cannot be computed."""
        log.error("a step failed on %d rows; their answers end", len(batch.rows), exc_info=error)
        for row in batch.rows:
            if row.sequence in self._outbox:
                self._end(row.sequence, FinishReason.ERROR, outputs, f"the step failed: {error!r}")

    def _end(self, sequence: Sequence, finish: FinishReason, outputs: list[Output], error: str | None = None) -> None:
        """End an answer from outside the model."""
        outputs.append(self._outbox.close(sequence, finish, error))
        self._settle(sequence, finish)

    def _settle(self, sequence: Sequence, finish: FinishReason) -> None:
        """Take back what an ended sequence holds; with a request's last choice its id is free again."""
        self.scheduler.finish(sequence, finish)
        ticket = self._tickets[sequence.request_id]
        ticket.num_open -= 1
        if not ticket.num_open:
            del self._tickets[sequence.request_id]
            with self._wake:
                self._live.discard(sequence.request_id)

    def _end_all(self, error: str) -> None:
        outputs: list[Output] = []
        self._drain(outputs)
        for ticket in list(self._tickets.values()):
            for choice in ticket.choices:
                if choice in self._outbox:
                    self._end(choice, FinishReason.ERROR, outputs, error)
        self.stats = self._snapshot()
        if outputs:
            self._hand_over(outputs)

    def _close(self) -> None:
        """End everything that is left; whoever submits from now on is refused."""
        with self._wake:
            self._stopping = True
        self._end_all("the engine was stopped")

    def _forget(self, sequence: Sequence) -> None:
        try:
            self._runner.forget(sequence)
        except Exception:
            log.exception("the runner could not forget a sequence")

    def _hand_over(self, outputs: list[Output]) -> None:
        try:
            self._deliver(outputs)
        except Exception:
            log.exception("%d outputs could not be handed over", len(outputs))

    def _snapshot(self) -> EngineStats:
        scheduler, pool, meter = self.scheduler, self.scheduler.pool, self._meter
        return EngineStats(
            running=len(scheduler.running),
            parked=len(scheduler.rations.parked),
            waiting=scheduler.num_waiting,
            waiting_prefill_tokens=scheduler.num_waiting_prefill_tokens,
            free_blocks=pool.num_free,
            cached_blocks=pool.num_cached,
            total_blocks=pool.num_blocks,
            step_s=meter.step_s,
            prefill_tokens_per_s=meter.prefill_tokens_per_s,
            steps=meter.steps,
            prompt_tokens=meter.prompt_tokens,
            cached_tokens=scheduler.num_cached_tokens,
            generated_tokens=meter.generated_tokens,
            preemptions=scheduler.num_preemptions,
            aborts=meter.aborts,
            step_share_outside_model=meter.share_outside_model,
            failed_steps=self._careful.failures,
            memory_shortages=self._careful.shortages,
            row_errors=meter.row_errors,
            preemption_storms=meter.storms,
        )
