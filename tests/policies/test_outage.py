"""Retries, budget and breaker together, through a bad minute: what an upstream is sent, and what callers get."""

from dataclasses import dataclass, field
from heapq import heappop, heappush
from random import Random

from policies.breaker import BreakerTerms, CircuitBreaker, State
from policies.outcome import Outcome
from policies.retry import Failure, RetryPolicy, judge
from policies.retry_budget import RetryBudget

START, RATE, DOWN, HEALED = 1000.0, 50, 10.0, 70.0
FAILURE = Failure("status", status=503)


@dataclass
class Gateway:
    """One upstream behind retries, budget and breaker. An attempt takes 50 ms; in virtual time."""

    failing: float  # the share of attempts that fail while it is down
    breaker: CircuitBreaker
    rng: Random = field(default_factory=lambda: Random(7))
    budget: RetryBudget = field(default_factory=RetryBudget)
    attempts: list[float] = field(default_factory=list)
    succeeded: list[float] = field(default_factory=list)  # by the call's arrival
    opened: float | None = None

    def run(self, until: float) -> None:
        """Let calls arrive at a steady rate; each is an entry (when, serial, arrival, attempts made, its pass)."""
        retry = RetryPolicy(rng=self.rng)
        events: list[tuple[float, int, float, int, int | None]] = []
        arrivals = [START + number / RATE for number in range(int(until * RATE))]
        for serial, arrival in enumerate(arrivals):
            heappush(events, (arrival, serial, arrival, 0, None))
        while events:
            now, serial, arrival, made, passed = heappop(events)
            if passed is None:  # about to send
                passed = self.breaker.admit(now)
                if passed is None or (made and not self.budget.withdraw(now)):
                    if passed is not None:
                        self.breaker.record(now, passed, Outcome.IGNORED)
                    continue
                self.attempts.append(now)
                heappush(events, (now + 0.05, serial, arrival, made + 1, passed))
                continue
            if DOWN <= now - START < HEALED and self.rng.random() < self.failing:
                self.breaker.record(now, passed, judge(FAILURE).outcome)
                if self.opened is None and self.breaker.state is State.OPEN:
                    self.opened = now
                pause = retry.delay(FAILURE, made, 30.0, elsewhere=False)
                if pause is not None:
                    heappush(events, (now + pause, serial, arrival, made, None))
            else:
                self.breaker.record(now, passed, Outcome.SUCCESS, 0.05)
                self.budget.deposit(now)
                self.succeeded.append(arrival)

    def sent(self, begin: float, end: float) -> int:
        return sum(begin <= at - START < end for at in self.attempts)

    def good(self, begin: float, end: float) -> float:
        return sum(begin <= at - START < end for at in self.succeeded) / (RATE * (end - begin))


NEVER_OPENS = BreakerTerms(consecutive=10**9, min_calls=10**9)


def test_a_minute_of_outage_costs_the_upstream_no_more_than_was_offered_and_ends_within_five_seconds() -> None:
    gateway = Gateway(1.0, CircuitBreaker(rng=Random(1)))
    gateway.run(90)

    assert gateway.sent(DOWN, HEALED) <= 1.2 * RATE * 60 + 3 * 60
    assert gateway.opened is not None
    assert gateway.opened - START <= DOWN + 2
    assert max(gateway.sent(at, at + 1) for at in range(12, 70)) <= 1
    assert gateway.good(HEALED + 5, 90) >= 0.95
    assert gateway.good(0, DOWN - 0.5) == 1.0


def test_the_budget_alone_holds_the_outage_to_a_fifth_and_three_a_second() -> None:
    gateway = Gateway(1.0, CircuitBreaker(NEVER_OPENS, rng=Random(1)))
    gateway.run(90)

    assert gateway.sent(DOWN, HEALED) <= 1.2 * RATE * 60 + 3 * 60


def test_with_half_failing_retries_save_what_the_budget_pays_for() -> None:
    gateway = Gateway(0.5, CircuitBreaker(NEVER_OPENS, rng=Random(1)))
    gateway.run(90)

    assert gateway.sent(DOWN, HEALED) <= 1.5 * RATE * 60
    assert gateway.good(DOWN, HEALED - 1) > 0.55


def test_the_breaker_leaves_an_upstream_alone_that_is_down_and_not_one_that_is_unwell() -> None:
    gateway = Gateway(0.5, CircuitBreaker(rng=Random(1)))
    gateway.run(90)

    assert gateway.good(DOWN, HEALED - 1) > 0.45
