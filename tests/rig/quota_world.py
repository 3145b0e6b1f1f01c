"""A simulated world for the protocol of reservations: one organisation, some calls, a bad network, one seed.

The holders are the real ones (`policies.holder`), the store is whoever takes the steps. Between them commands are late,
doubled or lost, replies are lost, holders stall past their lease or die, and they know the store's clock only roughly.
What was really produced, and when, is judged by accounts of its own:

- in no bucket was more used in any interval than capacity + rate x time, at the moments when it was really used;
- budgets are charged what was used, to the token, for calls that heard every reply; for the others no less than that,
  and no more than the slices that were in hand when they fell silent;
- the store never promises more than it has, what it holds is what its records hold, and in the end it holds nothing.

    python -m tests.rig.quota_world --seeds 100000
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from random import Random

from policies.bucket import Kind, Limit
from policies.holder import Holder, Rule
from policies.reservation import RETENTION_US, Answer, Book, State, Step, Verdict

START_US = 1_790_000_000_000_000
MS, SECOND = 1_000, 1_000_000
LEASE_US = 3 * SECOND
TIMEOUT_US = 50 * MS


class Violation(AssertionError):
    """A promise was broken."""


@dataclass
class Meter:
    """A bucket's own account of what was really used: a leaky bucket that must never run over."""

    rule: Rule
    level: int = 0
    at: int = START_US

    def use(self, now: int, tokens: int) -> None:
        limit = self.rule.limit
        if not tokens or limit.shadow:
            return
        self.level = max(0, self.level - (now - self.at) * limit.rate) + tokens * limit.unit
        self.at = now
        if self.level > limit.capacity * limit.unit:
            raise Violation(f"{limit.key}: more than capacity + rate x time was used")


@dataclass
class Call:
    """A call as its holder lives it, and what its charge may come to."""

    holder: Holder
    target: int
    slice: int
    seed: Random
    begun: bool = False
    ended: bool = False
    dead: bool = False
    waiting: bool = False  # for the reply to an extension
    settled: bool = False
    clean: bool = True
    forgone: int = 0  # slices that were in hand, or under way, when a lease ran out
    unheard: int = 0  # tokens that were asked for without hearing the reply


@dataclass
class World:
    """Run with `run`; afterwards `trace` holds every step as the store took it, with its answer."""

    seed: int
    take: Callable[[Step, int], Answer]
    book: Book | None = None  # looked into after each step, if the store is one
    trace: list[tuple[Step, int, Answer]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = rng = Random(self.seed)
        self.now = START_US + rng.randrange(SECOND)
        self.events: list[tuple[int, int, Callable[[], None]]] = []
        self.count = 0
        self.rules = draw_rules(rng)
        self.meters = [Meter(rule) for rule in self.rules if rule.limit.kind is Kind.BUCKET]
        self.calls: list[Call] = []
        self.admitted: set[str] = set()
        bad = rng.random() < 0.8
        self.p_lost, self.p_twice, self.p_late = (0.12, 0.15, 0.03) if bad else (0.0, 0.0, 0.0)
        self.p_dead, self.p_stall = (0.15, 0.05) if bad else (0.0, 0.0)
        for index in range(rng.randrange(2, 8)):
            holder = Holder(f"call-{index}", self.rules, lease_us=LEASE_US, exact=rng.random() < 0.8)
            holder.input = rng.randrange(1, 40)
            holder.cached = rng.randrange(holder.input + 1) if rng.random() < 0.3 else 0
            call = Call(holder, rng.randrange(1, 60), rng.randrange(1, 16), Random(rng.random()))
            self.calls.append(call)
            self.at(rng.randrange(6 * SECOND), lambda call=call: self.begin(call))  # type: ignore[misc]

    def at(self, after: int, event: Callable[[], None]) -> None:
        self.count += 1
        heappush(self.events, (self.now + max(0, after), self.count, event))

    def run(self) -> None:
        while self.events:
            self.now, _, event = heappop(self.events)
            event()
        self.judge()

    # The holder's side.

    def begin(self, call: Call) -> None:
        step = call.holder.reserve(self.store_now(), want=call.slice, least=1)
        call.unheard = call.slice
        self.send(call, step, lambda answer: self.reserved(call, answer), lambda: self.give_up(call))

    def reserved(self, call: Call, answer: Answer) -> None:
        if answer.verdict is not Verdict.GRANTED:
            call.ended = True
            return None
        call.unheard = 0
        if self.now >= call.holder.good_until:
            return self.end(call)
        call.begun = True
        for meter in self.meters:
            rule, holder = meter.rule, call.holder
            fresh = holder.input - holder.cached
            meter.use(self.now, fresh * rule.input + holder.cached * rule.cached)
        return self.at(self.pace(call), lambda: self.produce(call))

    def give_up(self, call: Call) -> None:
        call.ended, call.clean = True, False
        self.insist(call, call.holder.abandon(self.store_now()), self.now)

    def produce(self, call: Call) -> None:
        holder = call.holder
        if call.dead or call.ended:
            return
        if call.seed.random() < self.p_dead / 10:
            call.dead, call.clean = True, False
            return
        in_hand = holder.in_hand
        if (settlement := holder.lapse(self.now, self.store_now())) is not None:
            call.clean = False
            call.forgone += in_hand + call.unheard
            self.insist(call, settlement, self.now)
        tokens = min(call.seed.randrange(1, 6), holder.in_hand, call.target - holder.output)
        holder.output += tokens
        for meter in self.meters:
            meter.use(self.now, tokens * meter.rule.output)
        if holder.output >= call.target:
            self.end(call)
            return
        if not call.waiting and (holder.in_hand <= call.slice // 2 or holder.good_until - self.now < LEASE_US // 2):
            call.waiting = True
            want = call.slice if holder.in_hand <= call.slice // 2 else 0
            call.unheard += want
            step = holder.extend(self.store_now(), want)
            self.send(call, step, lambda answer: self.extended(call, want, answer), lambda: self.deaf(call))
        stall = call.seed.randrange(2 * LEASE_US) if call.seed.random() < self.p_stall else 0
        self.at(self.pace(call) + stall, lambda: self.produce(call))

    def extended(self, call: Call, want: int, answer: Answer) -> None:
        call.waiting = False
        call.unheard -= want
        if want and not answer.granted and not call.holder.in_hand and not call.ended:
            self.end(call)

    def deaf(self, call: Call) -> None:
        call.waiting, call.clean = False, False

    def end(self, call: Call) -> None:
        call.ended = True
        if call.waiting:
            call.clean = False  # the extension under way may yet be taken before the settlement
        self.insist(call, call.holder.settle(self.store_now()), self.now)

    def insist(self, call: Call, step: Step, since: int) -> None:
        def again() -> None:
            if self.now - since < RETENTION_US // 2 - SECOND:
                self.at(200 * MS, lambda: self.insist(call, step, since))
            else:
                call.clean = False

        def settled(answer: Answer) -> None:
            call.settled = True
            if answer.verdict is not Verdict.GRANTED or self.now >= call.holder.good_until:
                call.clean = False  # the lease may have run out while the settlement was under way

        self.send(call, step, settled, again, retry=False)

    # The network, and the store's clock as the holder knows it.

    def send(
        self,
        call: Call,
        step: Step,
        heard: Callable[[Answer], None],
        silence: Callable[[], None],
        *,
        retry: bool = True,
    ) -> None:
        sent, edge, open_ = self.now, call.holder.edge, [True]

        def reply(answer: Answer) -> None:
            if open_[0] and not call.dead:
                open_[0] = False
                call.holder.heard(step, answer, sent, edge)
                heard(answer)

        def deliver() -> None:
            answer = self.apply(step)
            if self.rng.random() >= self.p_lost:
                self.at(self.delay(), lambda: reply(answer))

        def transmit() -> None:
            copies = 2 if self.rng.random() < self.p_twice else 1
            for _ in range(copies):
                if self.rng.random() >= self.p_lost:
                    self.at(self.delay(), deliver)

        def timeout(again: bool) -> None:
            if not open_[0] or call.dead:
                return
            if again:
                transmit()
                self.at(TIMEOUT_US, lambda: timeout(False))
            else:
                open_[0] = False
                silence()

        transmit()
        self.at(TIMEOUT_US, lambda: timeout(retry and self.rng.random() < 0.5))

    def delay(self) -> int:
        if self.rng.random() < self.p_late:
            return self.rng.randrange(40 * SECOND)
        return self.rng.randrange(2 * MS) if self.rng.random() < 0.9 else self.rng.randrange(80 * MS)

    def pace(self, call: Call) -> int:
        return call.seed.randrange(1, 150 * MS)

    def store_now(self) -> int:
        return self.now - self.rng.randrange(40 * MS)

    def apply(self, step: Step) -> Answer:
        answer = self.take(step, self.now)
        if answer.verdict is Verdict.GRANTED and step.seq == 1 and step.lease_us and step.id not in self.admitted:
            self.admitted.add(step.id)  # a call counts when it is let in, its tokens when they are used
            for claim, rule in zip(step.claims, self.rules, strict=True):
                for meter in self.meters:
                    meter.use(self.now, claim.used if meter.rule is rule else 0)
        self.trace.append((step, self.now, answer))
        if self.book is not None:
            self.audit(self.book)
        return answer

    # Judgement.

    def audit(self, book: Book) -> None:
        for rule in self.rules:
            level = book.levels.get(rule.limit.key)
            if level is None:
                continue
            held = sum(
                record.held[record.keys.index(rule.limit.key)]
                for record in book.records.values()
                if record.state is State.OPEN
            )
            if held != level.held:
                raise Violation(f"{rule.limit.key}: {level.held} held, {held} by records")
            # A gauge may be run over by a holder that came back after its lease: it does run, whoever came in between.
            if level.free() < 0 and not rule.limit.shadow and rule.limit.kind is not Kind.GAUGE:
                raise Violation(f"{rule.limit.key}: {level.free()} free")

    def judge(self) -> None:
        """After everything was delivered and every lease has run out, look at what was charged."""
        self.now += LEASE_US + 1
        zero = tuple(Holder("judge", self.rules).abandon(self.now).claims)
        self.apply(Step("judge-1", 1, zero, 0, force=True))
        final = self.apply(Step("judge-2", 1, zero, 0, force=True))
        for index, rule in enumerate(self.rules):
            limit, free = rule.limit, final.standings[index][0]
            if limit.kind is Kind.GAUGE and free != limit.capacity:
                raise Violation(f"{limit.key}: {limit.capacity - free} never came back")
            if limit.kind is Kind.MONTH:
                least, most = map(sum, zip(*[self.due(call, rule) for call in self.calls], strict=True))
                charged = limit.capacity - free
                if not least <= charged <= most:
                    raise Violation(f"{limit.key}: {charged} charged, expected {least} to {most}")
        if self.book is not None and any(level.held for level in self.book.levels.values()):
            raise Violation("something is held for nobody")

    def due(self, call: Call, rule: Rule) -> tuple[int, int]:
        """What a call's charge may be at least and at most."""
        holder = call.holder
        fixed = rule.call + (holder.input - holder.cached) * rule.input + holder.cached * rule.cached
        if not call.begun and call.settled and call.clean:
            return fixed, fixed  # granted, heard too late to begin, and settled
        least = fixed + holder.output * rule.output if call.begun else 0
        if call.begun and call.clean:
            return least, least
        if call.ended and not call.begun and call.clean:
            return 0, 0  # refused
        return least, fixed + (max(holder.edge, holder.output) + call.unheard + call.forgone) * rule.output


def draw_rules(rng: Random) -> tuple[Rule, ...]:
    """Draw an organisation's limits, mostly so tight that calls get into each other's way."""
    period = rng.choice((SECOND, 7 * SECOND, 60 * SECOND))
    amount = rng.choice((37, 60, 100, 250))
    capacity = rng.choice((None, amount // 2, 3 * amount))
    return (
        Rule(Limit.bucket("requests", rng.randrange(1, 20), period), call=1),
        Rule(Limit.gauge("running", rng.randrange(1, 8)), call=1),
        Rule(Limit.bucket("input", amount, period, capacity=capacity), input=1),
        Rule(Limit.bucket("total", 3 * amount, period), input=1, cached=1, output=1),
        Rule(Limit.bucket("output", rng.randrange(5, 200), period), output=1),
        Rule(Limit.bucket("watched", 20, period, shadow=True), output=1),
        Rule(Limit.budget("cost", Kind.MONTH, 10**12), call=5, input=300, cached=30, output=1200),
        Rule(Limit.budget("calls", Kind.MONTH, rng.choice((3, 10**6))), call=1),
    )


def simulate(seed: int, book: Book | None = None) -> World:
    """Run one seed on the model. Raises `Violation`."""
    book = book or Book()
    world = World(seed, book.apply, book)
    world.run()
    return world


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the protocol's simulation over many seeds.")
    parser.add_argument("--seeds", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    steps = 0
    for seed in range(options.first, options.first + options.seeds):
        try:
            steps += len(simulate(seed).trace)
        except Violation as violation:
            raise SystemExit(f"seed {seed}: {violation}") from violation
    print(f"{options.seeds} seeds, {steps} steps, no violation")


if __name__ == "__main__":
    main()
