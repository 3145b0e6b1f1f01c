"""What each decision of resilience costs, in microseconds of CPU a call: `python -m bench.policies`.

Each line is the best of five rounds, the loop around the call subtracted. No I/O happens and no clock is read: `now` is
an argument.
"""

import time
from collections.abc import Callable
from random import Random

from engine.params import SamplingParams
from engine.sequence import Sequence, Status
from policies.breaker import CircuitBreaker
from policies.concurrency import AimdLimit, ConcurrencyLimiter, FixedLimit, Gradient2Limit
from policies.fairness import FairOrder, VirtualTokenCounter
from policies.hedge import HedgePolicy
from policies.outcome import Outcome
from policies.retry import Failure, RetryPolicy, judge
from policies.retry_budget import RetryBudget
from policies.shedding import Shedder
from policies.waiting_room import WaitingRoom

CALLS, ROUNDS, START, TICK = 20_000, 5, 1000.0, 0.001


def measure(name: str, call: Callable[[float], object], *, calls: int = CALLS) -> None:
    """Print what a call costs that is given a `now` which moves on by a millisecond each time."""
    moments = [START + number * TICK for number in range(calls * ROUNDS)]
    best = empty = float("inf")
    for turn in range(ROUNDS):
        part = moments[turn * calls : (turn + 1) * calls]
        begun = time.perf_counter()
        for now in part:
            call(now)
        best = min(best, time.perf_counter() - begun)
        begun = time.perf_counter()
        for _ in part:
            pass
        empty = min(empty, time.perf_counter() - begun)
    print(f"{name:<58} {(best - empty) / calls * 1e6:7.2f} µs")


def main() -> None:
    """Measure everything once."""
    rng = Random(1)

    budget = RetryBudget()
    measure("retry_budget: deposit", budget.deposit)
    measure("retry_budget: withdraw (mostly refused)", RetryBudget().withdraw)

    retry, failure = RetryPolicy(rng=rng), Failure("status", status=503)
    measure("retry: judge", lambda now: judge(failure))
    measure("retry: delay", lambda now: retry.delay(failure, 1, 30.0, elsewhere=False))

    breaker = CircuitBreaker(rng=rng)

    def attempt(now: float) -> None:
        passed = breaker.admit(now)
        assert passed is not None
        breaker.record(now, passed, Outcome.SUCCESS, 0.1)

    measure("breaker: admit and record, closed", attempt)
    measure("breaker: wait_s, closed", breaker.wait_s)

    hedge = HedgePolicy()
    measure("hedge: observe", lambda now: hedge.observe(now, 300, 0.1))
    measure("hedge: delay", lambda now: hedge.delay(now, 300, 60.0, acts=False))

    for name, limit in (("fixed", FixedLimit(20)), ("aimd", AimdLimit()), ("gradient2", Gradient2Limit())):
        limiter = ConcurrencyLimiter(limit)

        def slot(now: float, limiter: ConcurrencyLimiter = limiter) -> None:
            limiter.acquire()
            limiter.sample(now, now, Outcome.SUCCESS, 300, 0.1)
            limiter.release()

        measure(f"concurrency: acquire, sample and release, {name}", slot)

    counters = VirtualTokenCounter()
    for number in range(100):
        counters.arrive(f"c{number}")

    def turn(now: float) -> None:
        counters.arrive("c7")
        counters.start("c7", 10)
        counters.charge("c7", 10)

    measure("fairness: arrive, start and charge, 100 clients wait", turn)

    order, params = FairOrder(), SamplingParams(max_tokens=9)
    waiting = [Sequence(str(each), 0, [1], 1, params, order_key=f"c{each}") for each in range(100)]
    for sequence in waiting:
        order.arrived(sequence)
    lanes = [order.lane(sequence) for sequence in waiting]
    running = Sequence("r", 0, [1], 1, params, order_key="c1")
    running.status = Status.RUNNING
    measure("fairness: FairOrder.served, one token", lambda now: order.served(running, 1, 1))
    measure("fairness: FairOrder.rank of 100 lanes", lambda now: [order.rank(lane) for lane in lanes], calls=500)

    room: WaitingRoom[float] = WaitingRoom(1000)
    for number in range(255):
        room.join(-float(number) - 1, f"c{number % 20}")

    def pass_through(now: float) -> None:
        room.join(now, "c7")
        room.start(now, 10)

    measure("waiting_room: join and start, 255 others of 20 clients", pass_through)
    measure("waiting_room: who is next", lambda now: next(iter(room)), calls=2000)
    measure("waiting_room: ahead", lambda now: room.ahead("c7"), calls=2000)
    measure("waiting_room: loser", lambda now: room.loser("new", 0), calls=2000)

    shedder = Shedder(rng=rng)
    measure("shedding: freed", lambda now: shedder.freed(now, 1.0))
    measure("shedding: predict and shed", lambda now: shedder.shed(now, 10.0, shedder.predict(now, 9, 20)))


if __name__ == "__main__":
    main()
