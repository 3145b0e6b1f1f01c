"""How much an engine is given at a time: by the KV blocks it has left, the prefill that waits in it, and its pace.

An upstream behind HTTP has to be guessed at (`policies.concurrency`); an engine in this process says what it has. A
request is let in when three things hold:

- its prompt's blocks are free, and a reserve besides, from which the answers that run already will grow: an engine that
  is filled to the brim preempts, and computes again what it had;
- its first token is predicted within the objective: everything that waits for prefill, itself included, at the pace of
  the latest steps;
- a step takes no longer than it may, which is what every running answer waits for between two of its tokens.

What the engine says is as old as its latest step. What was let in since is not in there, and a burst within one step
would all be measured against the same emptiness: so it is remembered here, until the second step after, by which it is
certain to have been counted by the engine itself.
"""

from dataclasses import dataclass

from msgspec import Struct


class EngineLoad(Struct, frozen=True):
    """What an engine said after its step number `step`. `blocks_free` counts those that could be had by eviction."""

    step: int
    blocks_free: int
    blocks_total: int
    block_tokens: int
    waiting_prefill_tokens: int
    prefill_tokens_per_s: float
    step_s: float


@dataclass(frozen=True, slots=True)
class EngineTerms:
    """`reserve`: share of all blocks kept for answers to grow into. None: no objective. Times in seconds."""

    reserve: float = 0.05
    first_token_s: float | None = None
    step_s: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.reserve < 1 or min(self.first_token_s or 1, self.step_s or 1) <= 0:
            raise ValueError(f"{self}; expected a reserve of 0 to below 1 and positive times")


class EngineLimitSnapshot(Struct, frozen=True):
    """What was let in that the engine has not counted yet."""

    pledged_tokens: int
    pledged_blocks: int


class EngineLimit:
    """Lets requests into one engine. Not for several threads: the loads are handed over, and read here."""

    __slots__ = ("_blocks", "_step", "_tokens", "terms")

    def __init__(self, terms: EngineTerms | None = None) -> None:
        self.terms = terms or EngineTerms()
        self._step = 0
        self._tokens = [0, 0]  # pledged since the latest load, and between that and the one before
        self._blocks = [0, 0]

    def predict(self, load: EngineLoad, prompt_tokens: int) -> float | None:
        """When a prompt's first token would come, in seconds; None while the engine's pace is unknown."""
        self._turn(load)
        if not load.prefill_tokens_per_s:
            return None
        tokens = load.waiting_prefill_tokens + sum(self._tokens) + prompt_tokens
        return tokens / load.prefill_tokens_per_s + load.step_s

    def fits(self, load: EngineLoad, prompt_tokens: int, in_flight: int) -> bool:
        """Whether a request may be let in now, beside so many that were let in and have not ended.

        The only one may always be: an engine without work takes no step, so that nothing here would ever change.
        """
        if not in_flight:
            return True
        terms = self.terms
        self._turn(load)
        needed = -(-(prompt_tokens + 1) // load.block_tokens) + sum(self._blocks)
        if needed + terms.reserve * load.blocks_total > load.blocks_free:
            return False
        if terms.step_s is not None and load.step_s > terms.step_s:
            return False
        if terms.first_token_s is None:
            return True
        first_token_s = self.predict(load, prompt_tokens)
        return first_token_s is None or first_token_s <= terms.first_token_s

    def pledge(self, load: EngineLoad, prompt_tokens: int) -> None:
        """A request is being let in."""
        self._turn(load)
        self._tokens[0] += prompt_tokens
        self._blocks[0] += -(-(prompt_tokens + 1) // load.block_tokens)

    def snapshot(self) -> EngineLimitSnapshot:
        """What stands, for metrics."""
        return EngineLimitSnapshot(sum(self._tokens), sum(self._blocks))

    def _turn(self, load: EngineLoad) -> None:
        gone = load.step - self._step
        if gone > 0:
            self._tokens = [0, self._tokens[0] if gone == 1 else 0]
            self._blocks = [0, self._blocks[0] if gone == 1 else 0]
            self._step = load.step
