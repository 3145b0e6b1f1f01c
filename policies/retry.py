"""Whether a failed attempt is followed by another one, where, and after how long.

Three questions, asked in this order; each can say no:

1. *May it?* What failed decides (`judge`): nothing that the request itself is to blame for is sent again, and nothing
   of which the caller has seen a first chunk. Some failures may be tried anywhere, some only at another upstream: a
   server that has misread the protocol, refuses our key or let the first token's clock run out will do so again.
2. *When?* At another upstream at once the first time, since what failed speaks of the one before; otherwise after a
   pause drawn from [0, min(max_backoff, base × 2^n)), "full jitter" (AWS Architecture Blog, "Exponential Backoff and
   Jitter"). Where the upstream itself named a time (`Retry-After`, `retry-after-ms`) it is waited for, if what remains
   of the deadline allows, and else there is no retry.
3. *Is it paid for?* `RetryBudget.withdraw`, asked last and only for what will be sent.

A request makes at most `max_attempts` over all upstreams. Those that its client made before (`x-stainless-retry-count`)
count, because three times three is nine; and the client is told by `x-should-retry: false` (`advice`) not to go on
where this gateway has done what could be done.

tenacity's `wait_random_exponential` draws the same pause. It is not used: it draws from the module-wide generator,
which a test cannot pass in, and wants a `Retrying` and its call state for what is one line here. Importing tenacity
costs every start 50 ms besides (measured, CPython 3.11).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import IntEnum
from random import Random
from types import MappingProxyType
from typing import NamedTuple

from msgspec import Struct

from policies.outcome import Outcome


class Where(IntEnum):
    """Where a failed attempt may be repeated. Ordered: the larger allows more."""

    NOWHERE = 0
    ELSEWHERE = 1
    ANYWHERE = 2


class Verdict(NamedTuple):
    """What a failure says about the upstream, and where the request may be tried again."""

    outcome: Outcome
    where: Where


class Failure(Struct, frozen=True):
    """A failed attempt, as far as it matters here.

    `kind` is one of `KINDS`; `begun` tells whether the caller has seen a first chunk. `status`, `retry_after_s` and
    `should_retry` are what the upstream said, None where it said nothing; an error inside a 200 may have a status too.
    """

    kind: str
    begun: bool = False
    status: int | None = None
    retry_after_s: float | None = None
    should_retry: bool | None = None


# Before the first chunk, and without an error status. The names are those that attempts carry in metrics.
KINDS: Mapping[str, Verdict] = MappingProxyType(
    {
        "connect": Verdict(Outcome.DROPPED, Where.ANYWHERE),
        "connect_timeout": Verdict(Outcome.DROPPED, Where.ANYWHERE),
        "first_chunk_timeout": Verdict(Outcome.DROPPED, Where.ELSEWHERE),  # it may be at work on it still
        "between_timeout": Verdict(Outcome.DROPPED, Where.ELSEWHERE),
        "total_timeout": Verdict(Outcome.DROPPED, Where.NOWHERE),  # a second one would take as long
        "status": Verdict(Outcome.DROPPED, Where.ELSEWHERE),  # one that is no answer and no error: 1xx, 3xx
        "reset": Verdict(Outcome.DROPPED, Where.ANYWHERE),
        "protocol": Verdict(Outcome.DROPPED, Where.ELSEWHERE),
        "unfinished": Verdict(Outcome.DROPPED, Where.ANYWHERE),
        "in_band": Verdict(Outcome.DROPPED, Where.ANYWHERE),
        "engine": Verdict(Outcome.DROPPED, Where.ELSEWHERE),  # a request that fails a step may fail the next one too
        "overloaded": Verdict(Outcome.IGNORED, Where.ELSEWHERE),  # our own engine's queue: well, but full
        "deadline": Verdict(Outcome.IGNORED, Where.NOWHERE),
        "request": Verdict(Outcome.IGNORED, Where.NOWHERE),
    }
)
# Error statuses that are not as their hundred is: 5xx is the upstream's fault and 4xx the request's.
STATUSES: Mapping[int, Verdict] = MappingProxyType(
    {
        401: Verdict(Outcome.DROPPED, Where.ELSEWHERE),  # our credentials there, not the caller's
        403: Verdict(Outcome.DROPPED, Where.ELSEWHERE),
        407: Verdict(Outcome.DROPPED, Where.ELSEWHERE),
        408: Verdict(Outcome.DROPPED, Where.ANYWHERE),
        409: Verdict(Outcome.IGNORED, Where.ANYWHERE),  # OpenAI's lock timeout
        425: Verdict(Outcome.DROPPED, Where.ANYWHERE),
        429: Verdict(Outcome.DROPPED, Where.ANYWHERE),
        501: Verdict(Outcome.DROPPED, Where.ELSEWHERE),
        505: Verdict(Outcome.DROPPED, Where.ELSEWHERE),
    }
)
SERVER_ERROR = Verdict(Outcome.DROPPED, Where.ANYWHERE)
REQUEST_ERROR = Verdict(Outcome.IGNORED, Where.NOWHERE)


def judge(failure: Failure) -> Verdict:
    """Classify a failure, once: breaker, budget, limits and telemetry read the outcome, retries the rest.

    An upstream's `x-should-retry: false` keeps us from that upstream, not from another one; `true` opens what the
    status would have closed. Neither changes the outcome. Raises `KeyError` for a kind that is not listed.
    """
    status = failure.status
    if status is not None and status >= 400:
        verdict = STATUSES.get(status) or (SERVER_ERROR if status >= 500 else REQUEST_ERROR)
    else:
        verdict = KINDS[failure.kind]
    where = verdict.where
    if failure.begun:
        where = Where.NOWHERE
    elif failure.should_retry:
        where = Where.ANYWHERE
    elif failure.should_retry is False:
        where = min(where, Where.ELSEWHERE)
    return verdict if where is verdict.where else Verdict(verdict.outcome, where)


def told_wait_s(retry_after: str | None, retry_after_ms: str | None, unix_now: float) -> float | None:
    """Read how long an upstream asks to be left alone: milliseconds, else seconds or an HTTP date; None if neither."""
    for text, unit in ((retry_after_ms, 1000.0), (retry_after, 1.0)):
        if text is not None:
            try:
                seconds = float(text) / unit
            except ValueError:
                continue
            if 0 <= seconds < 1e9:  # neither nan nor inf
                return seconds
    if retry_after is None:
        return None
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - unix_now)
    except (ValueError, OverflowError):
        return None


@dataclass(frozen=True, slots=True)
class RetryTerms:
    """At most `max_attempts` in all; the n-th pause is below `base_s` × 2^(n-1) and `max_backoff_s`.

    A `Retry-After` beyond `max_retry_after_s` is not waited for. Nothing is sent with less than `least_s` to live.
    """

    max_attempts: int = 3
    base_s: float = 0.1
    max_backoff_s: float = 2.0
    max_retry_after_s: float = 30.0
    least_s: float = 0.05

    def __post_init__(self) -> None:
        if self.max_attempts < 1 or min(self.base_s, self.max_backoff_s, self.max_retry_after_s, self.least_s) < 0:
            raise ValueError(f"{self}; expected at least one attempt and no negative time")


class RetryPolicy:
    """Answers the first two questions. Holds no state but its generator."""

    __slots__ = ("_rng", "terms")

    def __init__(self, terms: RetryTerms | None = None, *, rng: Random) -> None:
        self.terms = terms or RetryTerms()
        self._rng = rng

    def attempts_left(self, made: int, client_retries: int = 0) -> int:
        """How many attempts may follow `made`. A client's own repetitions count, but its request gets one attempt."""
        return max(max(self.terms.max_attempts - client_retries, 1) - made, 0)

    def delay(
        self, failure: Failure, made: int, remaining_s: float, *, elsewhere: bool, client_retries: int = 0
    ) -> float | None:
        """How many seconds to pause before the next attempt; None if there shall be none.

        `made` attempts were made so far, `remaining_s` is what the deadline leaves; `elsewhere` says that the next
        candidate is another upstream than the one that failed.
        """
        where = judge(failure).where
        if where is Where.NOWHERE or (where is Where.ELSEWHERE and not elsewhere):
            return None
        if not self.attempts_left(made, client_retries):
            return None
        terms = self.terms
        told_s = failure.retry_after_s
        if elsewhere and made <= 1:
            pause_s = 0.0
        elif told_s is not None and not elsewhere:
            if told_s > terms.max_retry_after_s:
                return None
            pause_s = told_s + self._rng.random() * terms.base_s  # not earlier, and not all at once
        else:
            pause_s = self._rng.random() * min(terms.max_backoff_s, terms.base_s * 2.0 ** min(made - 1, 32))
        return pause_s if pause_s + terms.least_s <= remaining_s else None


def advice(failure: Failure, attempts_left: int, *, budget_spent: bool) -> bool | None:
    """What to tell the client in `x-should-retry` with the error: False, or None to leave it to the client.

    False where we have tried and given up, and where nothing would come of it. Never True: a client that comes back on
    our word is an attempt that no budget counts.
    """
    if budget_spent or not attempts_left or judge(failure).where is Where.NOWHERE:
        return False
    return None
