"""What a request asks of the sampler and of the stopping rules."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from engine.errors import InvalidParams

MAX_LOGPROBS = 20
MAX_STOPS = 16
MAX_LOGIT_BIAS = 1024


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling and stopping of one request; the names are OpenAI's where OpenAI has one.

    `temperature` 0 is greedy. `top_k` 0 and `top_p` 1 and `min_p` 0 are off. `repetition_penalty` is multiplicative and
    looks at prompt and answer, `presence_penalty` and `frequency_penalty` are subtracted and look at the answer only.
    `seed` always has a value (whoever builds the parameters draws one when the caller gave none): the n-th token of
    choice i is drawn from a generator keyed by (seed, i, position), so that batch-mates, slots, chunking and preemption
    do not change it. `logprobs` None asks for none, k asks for the chosen token's and the k likeliest.
    The first `min_tokens` tokens do not end the answer: stop tokens are forbidden there and stop strings ignored. A
    stop token is counted but not given out, and a stop string is cut off, unless `include_stop`.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0
    logprobs: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    include_stop: bool = False

    def validate(self, vocab_size: int) -> None:
        """Raise `InvalidParams` naming the first parameter that is out of range, what was expected and what came."""

        def need(ok: bool, param: str, expected: str) -> None:
            if not ok:
                raise InvalidParams(param, f"expected {expected}, got {getattr(self, param)!r}")

        need(self.max_tokens >= 1, "max_tokens", "at least 1")
        need(0 <= self.min_tokens <= self.max_tokens, "min_tokens", f"0 to max_tokens ({self.max_tokens})")
        need(math.isfinite(self.temperature) and 0 <= self.temperature <= 100, "temperature", "0 to 100")
        need(self.top_k >= 0, "top_k", "0 (off) or more")
        need(0 < self.top_p <= 1, "top_p", "more than 0, at most 1")
        need(0 <= self.min_p <= 1, "min_p", "0 to 1")
        need(-2 <= self.presence_penalty <= 2, "presence_penalty", "-2 to 2")
        need(-2 <= self.frequency_penalty <= 2, "frequency_penalty", "-2 to 2")
        need(0 < self.repetition_penalty <= 10, "repetition_penalty", "more than 0, at most 10")
        need(-(2**63) <= self.seed < 2**64, "seed", "a 64-bit integer")
        need(self.logprobs is None or 0 <= self.logprobs <= MAX_LOGPROBS, "logprobs", f"0 to {MAX_LOGPROBS}")
        need(len(self.stop) <= MAX_STOPS and all(self.stop), "stop", f"at most {MAX_STOPS} strings, none empty")
        need(len(self.logit_bias) <= MAX_LOGIT_BIAS, "logit_bias", f"at most {MAX_LOGIT_BIAS} tokens")
        for token in self.stop_token_ids:
            need(0 <= token < vocab_size, "stop_token_ids", f"token ids from 0 to {vocab_size - 1}")
        for token, bias in self.logit_bias.items():
            need(0 <= token < vocab_size, "logit_bias", f"token ids from 0 to {vocab_size - 1}")
            need(-100 <= bias <= 100, "logit_bias", "biases from -100 to 100")
