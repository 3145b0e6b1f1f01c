"""What the engine takes in and hands out: requests, and one list of outputs a step."""

from dataclasses import dataclass

from engine.allowance import Allowance
from engine.batch import Logprobs
from engine.params import SamplingParams
from engine.sequence import FinishReason


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One request of `n` choices over the same prompt. `deadline` is `time.monotonic()` seconds.

    `allowance`, if there is one, bounds what may be produced; requests of one call share it. `salt` separates the
    prefix caches of those who must not share; `order_key` and `weight` are for the fair order.
    """

    id: str
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    n: int = 1
    priority: int = 0
    salt: bytes = b""
    order_key: str = ""
    weight: float = 1.0
    deadline: float | None = None
    allowance: Allowance | None = None


@dataclass(slots=True)
class Output:
    """What one step brought for one choice. Not changed by anybody who gets it, though not frozen (see `engine.batch`).

    A token travels with the last byte of its text: tokens whose text is still withheld (half a character, a possible
    beginning of a stop string) come with a later output. `logprobs` runs parallel to `token_ids` when asked. On the
    last output `finish` is set and nothing follows. `num_generated` counts every token that was produced so far, a stop
    token and those of a cut stop string included, though neither is among `token_ids`; `stop` is the one that was met.
    `error` says what went wrong when `finish` is ERROR: "deadline" where that had passed, "too late" where it would
    have before the prompt was computed. `num_prompt` is 0 at the end of a sequence that no step was spent on.

    A sequence with an allowance has an output for every token, also while all its text is withheld, so that the tokens
    can be counted. `short` marks one without any: the allowance has nothing left, and nothing more comes until it is
    renewed or closed. `limited` says that LENGTH means the allowance's end.
    """

    request_id: str
    index: int
    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[Logprobs, ...] | None = None
    finish: FinishReason | None = None
    stop: str | int | None = None
    num_prompt: int = 0
    num_cached: int = 0
    num_generated: int = 0
    error: str | None = None
    limited: bool = False
    short: bool = False


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot published once a step and read without a lock. Times in seconds, smoothed over the last steps.

    `running` and `waiting` count choices, as do the counters `preemptions` and `aborts`. Counters only grow.
    `parked` of those running produce nothing for now, because their allowance has nothing left.
    `step_share_outside_model` is what schedule, text and hand-over take of a step: 1 - runner / step.

    Counters of what a breaker should know: `failed_steps` raised, `memory_shortages` found no memory, `row_errors` are
    answers that ended by their own row (logits that were not finite), `preemption_storms` are times when preemptions
    became as many as steps, and `stalls` steps that took longer than they may, counted by whoever watches the engine.
    """

    running: int = 0
    parked: int = 0
    waiting: int = 0
    waiting_prefill_tokens: int = 0
    free_blocks: int = 0
    cached_blocks: int = 0
    total_blocks: int = 0
    step_s: float = 0.0
    prefill_tokens_per_s: float = 0.0
    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    aborts: int = 0
    step_share_outside_model: float = 0.0
    failed_steps: int = 0
    memory_shortages: int = 0
    row_errors: int = 0
    preemption_storms: int = 0
    stalls: int = 0
