"""What the engine knows about its own pace: counters, and times smoothed over the last steps."""

from engine.batch import Batch

SMOOTHING = 0.1


class Meter:
    """Counts for `EngineStats`; written on the engine's thread. Smoothed values begin with the first observation."""

    def __init__(self) -> None:
        self.steps = 0
        self.prompt_tokens = 0
        self.generated_tokens = 0
        self.aborts = 0
        self.step_s = 0.0
        self.prefill_tokens_per_s = 0.0
        self.share_outside_model = 0.0

    def observe(self, batch: Batch, step_s: float, model_s: float) -> None:
        """Take note of a step: how long it took from the inbox to the hand-over, and how long the runner within."""
        self.steps += 1
        self.step_s = _smooth(self.step_s, step_s)
        if step_s > 0:
            self.share_outside_model = _smooth(self.share_outside_model, (step_s - model_s) / step_s)
            prefill_tokens = sum(row.count for row in batch.rows if row.count > 1)
            if prefill_tokens:
                self.prefill_tokens_per_s = _smooth(self.prefill_tokens_per_s, prefill_tokens / step_s)


def _smooth(past: float, value: float) -> float:
    return past + SMOOTHING * (value - past) if past else value
