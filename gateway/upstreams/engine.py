"""The door to the in-process engine: calls in, one crossing of threads a step out.

The engine's thread hands over the outputs of a whole step at once; one callback on the event loop puts each into its
answer's mailbox and wakes whoever reads. An answer's mailbox holds at most what its `max_tokens` allow, so that a slow
reader costs memory that was granted, and nobody else's time.

Where a quota bounds the call, the engine produces against an allowance (`gateway/upstreams/supply.py`). Whoever leaves
before the end waits for the engine's last word, a step at most as a rule, so that what was really produced is settled
and logged.

Nothing else of the gateway imports the engine (its texts aside), and this file is imported only when the configuration
names a local model.
"""

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from types import TracebackType

from engine.allowance import Allowance
from engine.config import EngineConfig
from engine.errors import (
    DeviceError,
    DuplicateRequest,
    EngineError,
    EngineStopped,
    InvalidConfig,
    InvalidParams,
    ModelError,
    PromptEmpty,
    PromptTooLong,
    QueueFull,
    TemplateError,
)
from engine.load import LoadedModel, LoadOptions, load, model_directory
from engine.output import EngineStats, GenerateRequest, Output
from engine.params import SamplingParams
from engine.scheduler import TOO_LATE
from engine.sequence import FinishReason as EngineFinish
from gateway.call import Call, ChatPrompt, Event, FinishReason, Reply, Request, TokenLogprob, Usage
from gateway.configuration.config import EngineModel
from gateway.deadline import out_of_time
from gateway.errors import (
    BadRequest,
    ContextTooLong,
    GatewayError,
    InternalError,
    Overloaded,
    UpstreamError,
    UpstreamFailure,
)
from gateway.process.watchdog import Watchdog
from gateway.prompts import ModelPrompts
from gateway.upstreams.base import Room
from gateway.upstreams.supply import Supply
from policies.engine_limit import EngineLimit, EngineLoad, EngineTerms
from policies.engine_report import EngineCounts
from policies.fairness import FairOrder
from policies.outcome import Outcome
from policies.tenant import STANDING

log = logging.getLogger("gateway")

STOP_WAIT_S = 5.0  # a step that takes longer is left to the process's end
LAST_WORD_S = 2.0  # how long who leaves waits for it; then everything that was granted counts
FINISHES: Mapping[EngineFinish, FinishReason] = {
    EngineFinish.STOP: FinishReason.STOP,
    EngineFinish.LENGTH: FinishReason.LENGTH,
}


class CannotLoad(Exception):
    """A local model cannot be brought up; one clear line."""


def translate(error: EngineError) -> GatewayError:
    """What a caller is told of the engine's errors. A test holds that none is missing."""
    match error:
        case PromptTooLong():
            return ContextTooLong(
                f"This model's maximum context length is {error.limit} tokens. However, your prompt resulted in "
                f"{error.num_tokens} tokens, and the answer needs at least one. Please reduce the length.",
                code="context_length_exceeded",
            )
        case InvalidParams():
            why = str(error).removeprefix(f"{error.param}: ")
            return BadRequest(f"Invalid '{error.param}': {why}.", param=error.param, code="invalid_value")
        case PromptEmpty():
            return BadRequest("The prompt has no token.", param="prompt")
        case TemplateError():
            return BadRequest(f"The messages do not fit the model's chat template: {error}", param="messages")
        case QueueFull():
            message = f"The engine is overloaded: {error.limit} answers wait already."
            return Overloaded(message, code="queue_full", headers={"retry-after": "1"})
        case EngineStopped():
            return UpstreamError("The engine was stopped.", kind=UpstreamFailure.ENGINE, sent=False)
        case DeviceError():
            return UpstreamError("The engine's device failed.", kind=UpstreamFailure.ENGINE)
        case DuplicateRequest() | ModelError() | InvalidConfig():
            return InternalError(str(error))
        case _:
            raise AssertionError(f"{type(error).__name__} has no translation")


class EngineUpstream:
    """Implements `Upstream` over one loaded model. Starts the engine's thread; lives on the running event loop.

    At most `max_sequences` answers run and `max_waiting` wait; `room` counts what is left of both together. Beyond that
    `limit` decides by what the engine says of itself: a call that does not fit waits with us, where it can still be
    sent elsewhere, or be told when to come back. The engine serves tenants in the fair order.
    """

    takes_ids = True

    def __init__(
        self, name: str, model: LoadedModel, config: EngineConfig | None = None, limit: EngineTerms | None = None
    ) -> None:
        config = config or EngineConfig()
        self.name = name
        self._model = model
        self._loop = asyncio.get_running_loop()
        # Who arrives waits in the engine's inbox until its next step, also if nothing runs: the inbox must hold all
        # that `room` lets in, or a burst would be refused beside an idle engine.
        self._capacity = config.max_sequences + config.max_waiting
        self._engine = model.open_engine(self._deliver, replace(config, max_waiting=self._capacity), FairOrder())
        self._block_tokens = self._engine.scheduler.pool.block_size
        self._limit = EngineLimit(limit)
        self._told = self._engine.stats
        self._said = self._load_of(self._told)
        self._occupied = 0  # choices of running answers; a leased slot counts as one until its answer begins
        self._answers: dict[str, _Answer] = {}  # by engine request id
        self._serial = count()
        self.max_context = min(model.runner.max_model_len, self._engine.scheduler.pool.capacity)
        self.fingerprint = "fp_" + model.fingerprint[:6].hex()
        self.prompts = ModelPrompts(model.tokenizer, model.template, self.max_context, model.runner.vocab_size)
        self._watchdog: Watchdog | None = None
        self._engine.start()

    @classmethod
    async def open(cls, name: str, settings: EngineModel, directory: Path | None = None) -> "EngineUpstream":
        """Load what the configuration names, on a thread. `directory` is the path that `settings.path` means.

        Raises `CannotLoad`.
        """
        try:
            config = _engine_config(settings)
            options = LoadOptions(
                device=settings.device,
                dtype=settings.dtype,
                max_model_len=settings.max_model_len,
                num_blocks=settings.num_blocks,
                kv_bytes=settings.kv_memory_bytes,
                threads=settings.threads,
                max_batch_tokens=config.max_batch_tokens,
                max_sequences=config.max_sequences,
                deterministic=settings.deterministic,
            )
            model = await asyncio.to_thread(load, directory or model_directory(settings.path), options)
        except EngineError as error:
            raise CannotLoad(f"model {name}: {error}") from error
        return cls(name, model, config, engine_terms(settings))

    def refuses(self, request: Request) -> BadRequest | None:
        """What needs a grammar, a prompt's log-probabilities or infilling is not here yet."""
        prompt = request.prompt
        if request.response_format is not None:
            return BadRequest("This model cannot enforce a response format.", param="response_format")
        if request.best_of is not None and request.best_of > request.n:
            return BadRequest("'best_of' greater than 'n' is not supported.", param="best_of")
        if isinstance(prompt, ChatPrompt):
            if prompt.tool_choice not in (None, "auto", "none"):
                return BadRequest("This model cannot be forced to call a tool: use 'auto'.", param="tool_choice")
        elif prompt.suffix is not None:
            return BadRequest("'suffix' is not supported.", param="suffix")
        elif prompt.echo and request.sampling.logprobs is not None:
            return BadRequest("'echo' together with 'logprobs' is not supported.", param="echo")
        return None

    def fits(self, call: Call) -> bool:
        """Whether a place is free, and the limit lets so long a prompt in beside what runs."""
        occupied = self._occupied
        return occupied < self._capacity and self._limit.fits(self._load(), call.tokens.input, occupied)

    def lease(self) -> "Slot":
        """Give a slot, occupied once it is entered."""
        return Slot(self)

    def occupy(self, slots: int) -> None:
        """Take slots, or give them back where `slots` is negative."""
        self._occupied += slots

    async def send(self, call: Call) -> Reply:
        """Submit the call's prompts, each with `n` choices; they are aborted when the events are closed.

        Under a quota nothing is granted to several before all are submitted: where one is refused, none has produced
        anything.
        """
        prompts, output = call.tokens.prompts, call.tokens.output
        assert prompts is not None, "prompts are encoded for whoever takes ids"
        assert output is not None, "who encodes prompts knows how much room they leave"
        reservation = call.generation.reservation
        allowance: Allowance | None = None
        supply: Supply | None = None
        if reservation is not None and output:
            allowance = Allowance(0)
            supply = Supply(reservation, allowance, self._engine.nudge, len(prompts))
            if len(prompts) == 1:
                supply.open()
        answer = _Answer(call, self._engine.abort, self._leave, supply)
        try:
            for position, prompt_ids in enumerate(prompts):
                if output == 0:
                    answer.skip(position, len(prompt_ids))
                else:
                    self._submit(call, answer, position, prompt_ids, output, allowance)
        except EngineError as error:
            await answer.aclose()
            raise translate(error) from error
        if supply is not None and len(prompts) > 1:
            supply.open()
            self._engine.nudge()
        return Reply(200, {}, answer)

    def foresee(self, call: Call) -> None:
        """Raise what the engine would refuse the call's parameters or prompts with; nothing is submitted."""
        prompts, output = call.tokens.prompts, call.tokens.output
        assert prompts is not None, "prompts are encoded for whoever takes ids"
        try:
            for prompt_ids in prompts if output else ():
                self._engine.check(GenerateRequest("", prompt_ids, self._params(call.request, output or 1)))
        except EngineError as error:
            raise translate(error) from error

    def room(self) -> Room:
        """What is left, from the engine's latest step."""
        stats = self._engine.stats
        wait_s = stats.waiting_prefill_tokens / stats.prefill_tokens_per_s if stats.prefill_tokens_per_s else None
        return Room(
            slots=max(self._capacity - self._occupied, 0),
            in_flight=self._occupied,
            free_blocks=stats.free_blocks + stats.cached_blocks,
            waiting_prefill_tokens=stats.waiting_prefill_tokens,
            step_s=stats.step_s,
            predicted_first_token_s=None if wait_s is None else wait_s + stats.step_s,
        )

    def _load(self) -> EngineLoad:
        """What the engine said after its latest step."""
        stats = self._engine.stats
        if stats is not self._told:
            self._told, self._said = stats, self._load_of(stats)
        return self._said

    def _load_of(self, stats: EngineStats) -> EngineLoad:
        return EngineLoad(
            step=stats.steps,
            blocks_free=stats.free_blocks + stats.cached_blocks,
            blocks_total=stats.total_blocks,
            block_tokens=self._block_tokens,
            waiting_prefill_tokens=stats.waiting_prefill_tokens,
            prefill_tokens_per_s=stats.prefill_tokens_per_s,
            step_s=stats.step_s,
        )

    def stats(self) -> Mapping[str, float]:
        """The engine's numbers, by the names of `EngineStats`."""
        numbers = asdict(self._engine.stats)
        if self._watchdog is not None:
            numbers["stalls"] = self._watchdog.stalls
        return numbers

    def troubles(self) -> EngineCounts:
        """What a breaker should know of."""
        stats = self._engine.stats
        return EngineCounts(
            stats.steps,
            stats.failed_steps,
            stats.memory_shortages,
            stats.row_errors,
            stats.preemption_storms,
            0 if self._watchdog is None else self._watchdog.stalls,
        )

    def watch(
        self, bound_s: float, *, say: Callable[[str], None], give_up: Callable[[str], None] | None = None
    ) -> Watchdog:
        """Have somebody look whether steps come to an end, until this is closed."""
        watchdog = self._watchdog = Watchdog(self.name, self._engine, bound_s, say=say, give_up=give_up)
        watchdog.start()
        return watchdog

    async def aclose(self) -> None:
        """Stop the engine's thread behind its running step; answers under way end with an error."""
        if self._watchdog is not None:
            self._watchdog.close()
        await asyncio.to_thread(self._engine.stop, STOP_WAIT_S)

    def _submit(
        self,
        call: Call,
        answer: "_Answer",
        position: int,
        prompt_ids: tuple[int, ...],
        max_tokens: int,
        allowance: Allowance | None,
    ) -> None:
        request_id = f"{call.id}.{next(self._serial)}"
        request = GenerateRequest(
            request_id,
            prompt_ids,
            self._params(call.request, max_tokens),
            n=call.request.n,
            priority=STANDING[call.terms.priority],
            salt=call.tenant.salt,
            order_key=call.tenant.id,
            weight=call.terms.weight,
            deadline=call.deadline,
            allowance=allowance,
        )
        self._engine.submit(request)
        self._limit.pledge(self._load(), len(prompt_ids))
        # A slot was leased for the first choice of all; the others are counted here, until the answer is closed.
        self._occupied += request.n - (not answer.num_choices)
        self._answers[request_id] = answer
        answer.expect(request_id, position, request.n)

    def _params(self, request: Request, max_tokens: int) -> SamplingParams:
        asked, defaults = request.sampling, self._model.defaults
        stop_ids = frozenset(asked.stop_token_ids)

        def chosen(value: float | None, default: float) -> float:
            return default if value is None else value

        # OpenAI takes a `top_p` of 0, of which nothing but the likeliest token is left.
        top_p = chosen(asked.top_p, defaults.top_p)
        return SamplingParams(
            max_tokens=max_tokens,
            min_tokens=asked.min_tokens or 0,
            temperature=chosen(asked.temperature, defaults.temperature) if top_p else 0.0,
            top_k=max(defaults.top_k if asked.top_k is None else asked.top_k, 0),
            top_p=top_p or 1.0,
            min_p=chosen(asked.min_p, defaults.min_p),
            presence_penalty=asked.presence_penalty or 0.0,
            frequency_penalty=asked.frequency_penalty or 0.0,
            repetition_penalty=chosen(asked.repetition_penalty, defaults.repetition_penalty),
            logit_bias=asked.logit_bias or {},
            seed=secrets.randbits(63) if asked.seed is None else asked.seed,
            logprobs=asked.logprobs,
            stop=asked.stop,
            stop_token_ids=stop_ids if asked.ignore_eos else stop_ids | self._model.tokenizer.stop_ids,
        )

    def _deliver(self, outputs: list[Output]) -> None:
        """On the engine's thread: cross once."""
        self._loop.call_soon_threadsafe(self._route, outputs)

    def _route(self, outputs: list[Output]) -> None:
        """On the event loop: to each its own. Who has left is not missed."""
        for output in outputs:
            answer = self._answers.get(output.request_id)
            if answer is not None:
                answer.receive(output)
                if not answer.is_open(output.request_id):
                    del self._answers[output.request_id]

    def _leave(self, answer: "_Answer") -> None:
        """An answer is closed: give its room back, and listen no longer for what the engine still owes it."""
        for request_id in answer.open_ids():
            del self._answers[request_id]
        self._occupied -= max(answer.num_choices - 1, 0)


class Slot:
    """One place of an engine, occupied."""

    __slots__ = ("_upstream",)

    def __init__(self, upstream: EngineUpstream) -> None:
        self._upstream = upstream

    def sample(
        self, now: float, started: float, outcome: Outcome, prompt_tokens: int, first_event_s: float | None
    ) -> None:
        """Learn nothing: an engine says itself what it can take."""

    def __enter__(self) -> None:
        self._upstream.occupy(1)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._upstream.occupy(-1)


class _Answer(AsyncGenerator[Event, None]):
    """The events of one call: a mailbox with one reader.

    A plain object and not a generator function, because one that is closed before its first event must abort as well.
    """

    def __init__(
        self,
        call: Call,
        abort: Callable[[str], None],
        leave: Callable[["_Answer"], None],
        supply: Supply | None,
    ) -> None:
        self._call = call
        self._n = call.request.n
        self._generation = call.generation
        self._abort = abort
        self._leave = leave
        self._supply = supply
        self._places: dict[str, int] = {}  # engine request id → place of its prompt among the call's
        self._num_open: dict[str, int] = {}
        self._unheard: set[str] = set()  # under a quota: requests that have not said what of their prompt was cached
        self._mail: deque[Output | Event] = deque()
        self._waiting: asyncio.Future[None] | None = None
        self._usage = Usage()
        self._told = False  # the usage
        self._closed = False
        self.num_choices = 0  # that were submitted

    def expect(self, request_id: str, place: int, n: int) -> None:
        """A request was submitted for the prompt at `place`."""
        self._places[request_id] = place
        self._num_open[request_id] = n
        if self._supply is not None:
            self._unheard.add(request_id)
        self.num_choices += n

    def skip(self, place: int, num_prompt: int) -> None:
        """Nothing shall be generated behind the prompt at `place`."""
        self._usage.prompt += num_prompt
        for index in range(self._n):
            self._mail.append(Event(index=place * self._n + index, finish=FinishReason.LENGTH))

    def is_open(self, request_id: str) -> bool:
        """Whether more is to come for a request."""
        return request_id in self._num_open

    def open_ids(self) -> list[str]:
        """The requests that more is to come for."""
        return list(self._num_open)

    def receive(self, output: Output) -> None:
        """Take in what a step brought, whether anybody reads or not."""
        if self._supply is not None:
            self._count(output, self._supply)
        if output.finish is not None:
            self._usage.completion += output.num_generated
            if output.index == 0:  # the choices of a prompt share it
                self._usage.prompt += output.num_prompt
                self._usage.cached += output.num_cached
            self._num_open[output.request_id] -= 1
            if not self._num_open[output.request_id]:
                del self._num_open[output.request_id]
        if self._closed:
            if self._num_open:
                return
        elif output.token_ids or output.text or output.finish is not None:
            self._mail.append(output)
        elif not output.short:
            return
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _count(self, output: Output, supply: Supply) -> None:
        """What was cached comes first: the count may have the next slice asked for, and that charges the prompt."""
        if output.short:
            supply.short = True
        elif output.index == 0 and output.request_id in self._unheard:
            self._unheard.discard(output.request_id)
            supply.cached(output.num_cached)
        supply.count()

    async def __anext__(self) -> Event:
        while not self._mail:
            if self._closed or not self._num_open:
                raise StopAsyncIteration
            if self._supply is not None and self._supply.short:
                await self._supply.refill()
            else:
                await self._next_mail()
        mail = self._mail.popleft()
        event = mail if isinstance(mail, Event) else self._event(mail)
        if not self._mail and not self._num_open:
            event.usage = self._usage
            self._told = True
        return event

    async def asend(self, value: None) -> Event:
        return await self.__anext__()

    async def athrow(
        self,
        kind: type[BaseException] | BaseException,
        value: BaseException | object = None,
        traceback: TracebackType | None = None,
    ) -> Event:
        await self.aclose()
        raise kind

    async def aclose(self) -> None:
        """Abort what still runs, and wait until the engine has said how far it came. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._mail.clear()
        try:
            if self._num_open:
                await self._last_word()
        finally:
            self._settle()
            self._leave(self)

    async def _next_mail(self) -> None:
        self._waiting = asyncio.get_running_loop().create_future()
        try:
            await self._waiting
        finally:
            self._waiting = None

    async def _last_word(self) -> None:
        for request_id in self._num_open:
            self._abort(request_id)
        try:
            async with asyncio.timeout(LAST_WORD_S):
                await self._next_mail()
        except TimeoutError:
            log.warning("the engine did not acknowledge an abort within %g s", LAST_WORD_S)

    def _settle(self) -> None:
        """Write down what was used, unless the last event said so; without the engine's last word, all that may be."""
        supply = self._supply
        if supply is not None:
            supply.end(forfeit=bool(self._num_open))
        if self._told or not self.num_choices:
            return
        if not self._num_open:
            self._generation.usage = self._usage
        elif supply is not None:
            self._generation.usage = supply.usage()

    def _event(self, output: Output) -> Event:
        """Raises `UpstreamError` or `DeadlineExceeded` for an answer that the engine could not finish."""
        finish: FinishReason | None = None
        if output.finish is not None:
            if output.finish not in FINISHES:
                raise _failure(self._call, output)
            finish = FINISHES[output.finish]
        return Event(
            index=self._places[output.request_id] * self._n + output.index,
            token_ids=output.token_ids,
            text=output.text,
            logprobs=_logprobs(output) if output.logprobs else (),
            finish=finish,
            limit=self._supply.limit if output.limited and self._supply is not None else None,
        )


def _logprobs(output: Output) -> tuple[TokenLogprob, ...]:
    entries = zip(output.token_ids, output.logprobs or (), strict=True)
    return tuple(TokenLogprob(token_id, entry.chosen, entry.top) for token_id, entry in entries)


def _failure(call: Call, output: Output) -> GatewayError:
    if output.error == "deadline":
        return out_of_time(call)
    if output.error == TOO_LATE:
        return out_of_time(call, " before its prompt could have been computed")
    return UpstreamError(f"The engine could not finish: {output.error or output.finish}.", kind=UpstreamFailure.ENGINE)


def _engine_config(settings: EngineModel) -> EngineConfig:
    """What the operator said; the rest as the engine decides. Raises `InvalidConfig`."""
    default = EngineConfig()
    return EngineConfig(
        max_batch_tokens=settings.max_batch_tokens or default.max_batch_tokens,
        max_sequences=settings.max_sequences or default.max_sequences,
        max_prefill_chunk=settings.max_prefill_chunk or default.max_prefill_chunk,
        max_waiting=settings.max_waiting or default.max_waiting,
        prefix_cache=settings.prefix_cache,
    )


def engine_terms(settings: EngineModel) -> EngineTerms:
    """How much the engine is given at a time, as the operator said."""
    return EngineTerms(settings.kv_reserve, settings.max_first_token_s, settings.max_step_s)
