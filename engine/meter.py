"""What the engine knows about its own pace: counters, and times smoothed over the last steps."""

from engine.batch import Batch

SMOOTHING = 0.1
FADING = 0.02  # how much of the best is forgotten with each step that could have been
STORM, CALM = 1.0, 0.5  # preemptions a step, smoothed: where a storm begins, and where it is over


class Meter:
    """Counts for `EngineStats`; written on the engine's thread. Smoothed values begin with the first observation.

    `best_prefill_tokens_per_s` is what prompts are computed at when there is nothing else to do, to be promised by
    nobody and exceeded by few: the fastest step of late that computed a chunk of `full_chunk` tokens or more. A step
    with less tells little of that, since most of its time may be spent once a step. 0 before there was one.
    """

    def __init__(self, full_chunk: int = 1) -> None:
        self.best_prefill_tokens_per_s = 0.0
        self._full_chunk = full_chunk
        self.steps = 0
        self.prompt_tokens = 0
        self.generated_tokens = 0
        self.aborts = 0
        self.row_errors = 0
        self.storms = 0
        self._storming = False
        self._preemptions = 0
        self._preemptions_per_step = 0.0
        self.step_s = 0.0
        self.prefill_tokens_per_s = 0.0
        self.share_outside_model = 0.0

    def observe(self, batch: Batch, step_s: float, model_s: float, num_preemptions: int = 0) -> None:
        """Take note of a step: how long it took from the inbox to the hand-over, and how long the runner within.

        `num_preemptions` counts those of all steps so far.
        """
        self.steps += 1
        if num_preemptions != self._preemptions or self._preemptions_per_step:
            self._weather(num_preemptions)
        self.step_s = _smooth(self.step_s, step_s)
        if step_s > 0:
            self.share_outside_model = _smooth(self.share_outside_model, (step_s - model_s) / step_s)
            prefill_tokens = sum(row.count for row in batch.rows if row.count > 1)
            if prefill_tokens:
                pace = prefill_tokens / step_s
                self.prefill_tokens_per_s = _smooth(self.prefill_tokens_per_s, pace)
                if prefill_tokens >= self._full_chunk:
                    best = self.best_prefill_tokens_per_s
                    self.best_prefill_tokens_per_s = max(pace, best + FADING * (pace - best))

    def _weather(self, num_preemptions: int) -> None:
        """Tell a storm of preemptions, in which more is computed again than gained, from single ones."""
        fresh, self._preemptions = num_preemptions - self._preemptions, num_preemptions
        self._preemptions_per_step += SMOOTHING * (fresh - self._preemptions_per_step)
        if not self._storming and self._preemptions_per_step >= STORM:
            self._storming = True
            self.storms += 1
        elif self._storming and self._preemptions_per_step < CALM:
            self._storming = False


def _smooth(past: float, value: float) -> float:
    return past + SMOOTHING * (value - past) if past else value
