"""The holder's half of a reservation: what one call knows of itself, and the steps it sends. No I/O, no clock.

The holder counts what was really used; the store counts what was promised. Tokens are produced against `edge`, the sum
of all grants, and only while the lease lasts on the holder's own clock, counted from when the step was sent, so that
the holder lets go before the store does. A holder that let its lease run out (a stall, a partition) has lost the slice
in hand, as a crash would: `lapse` settles what was used so far, and the next extension opens a further reservation,
under a number of its own, for what comes after.

Where the counts are estimates until the end (`exact` false, an HTTP upstream without our tokenizer), everything is held
until the settlement says what it was, because what was once called used is never given back.
"""

from dataclasses import dataclass
from enum import StrEnum

from policies.bucket import Kind, Limit
from policies.reservation import RETENTION_US, Answer, Claim, Step, Verdict


class Measure(StrEnum):
    """What a limit counts. Costs are counted in billionths of a US dollar."""

    __hash__ = str.__hash__  # an enum's own is written in Python

    REQUESTS = "requests"
    CONCURRENCY = "concurrency"
    INPUT = "input_tokens"
    OUTPUT = "output_tokens"
    TOKENS = "tokens"
    COST = "cost"


@dataclass(frozen=True, slots=True)
class Rule:
    """What of a call counts against a limit, in the limit's own tokens: so much a call, and a token of each sort.

    `input` is the weight of input tokens that no cache knew, `cached` of those that one did. A limit on input tokens
    has `input=1`; a budget of costs has the prices. A gauge counts `call` while the call lasts.
    """

    limit: Limit
    call: int = 0
    input: int = 0
    cached: int = 0
    output: int = 0
    measure: Measure = Measure.TOKENS


class Holder:
    """One call's reservation. Times are µs: `now` on the holder's clock, `store_now` as `Store.clock` tells it."""

    __slots__ = (
        "_from",
        "_heard",
        "_part",
        "_seq",
        "cached",
        "edge",
        "exact",
        "good_until",
        "input",
        "lease_us",
        "name",
        "output",
        "patience_us",
        "rules",
    )

    def __init__(
        self,
        name: str,
        rules: tuple[Rule, ...],
        *,
        lease_us: int = 30_000_000,
        patience_us: int = 500_000,
        exact: bool = True,
    ) -> None:
        self.name = name
        self.rules = rules
        self.lease_us = lease_us
        self.patience_us = patience_us  # a reservation that reaches the store later than this is not wanted any more
        self.exact = exact
        self.input = self.cached = self.output = 0  # what was really used; `cached` is a part of `input`
        self.edge = 0  # `output` may grow to here
        self.good_until = 0
        self._part = 0  # reservations that this call has let run out
        self._from = 0  # output that those have paid
        self._seq = 0
        self._heard = 0

    @property
    def in_hand(self) -> int:
        """Output tokens that may still be produced without asking, as long as the lease lasts."""
        return max(0, self.edge - self.output)

    def reserve(self, store_now: int, *, want: int, least: int = 0) -> Step:
        """Ask for the input, and for output: `want` tokens, `least` of them or nothing."""
        claims = []
        for rule in self.rules:
            held, charged = self._split(rule)
            claims.append(Claim(rule.limit, charged, held, rule.output))
        not_after = store_now + self.patience_us
        return self._step(claims, self.lease_us, not_after, want=want, least=least)

    def extend(self, store_now: int, want: int = 0) -> Step:
        """Tell what was used so far, keep what is in hand, ask for more, and renew the lease."""
        if not self._seq:
            return self.reserve(store_now, want=want, least=1)
        claims = []
        for rule in self.rules:
            held, charged = self._split(rule)
            used = (self.output - self._from) * rule.output
            if self.exact and rule.limit.kind is not Kind.GAUGE:
                held, charged, used = 0, charged + held + used, 0
            claims.append(Claim(rule.limit, charged, held + used + self.in_hand * rule.output, rule.output))
        return self._step(claims, self.lease_us, self._sure_until(store_now), want=want, force=True)

    def settle(self, store_now: int) -> Step:
        """Tell what was used in all, and let go of the rest."""
        claims = []
        for rule in self.rules:
            held, charged = self._split(rule)
            used = charged + held + (self.output - self._from) * rule.output
            claims.append(Claim(rule.limit, 0 if rule.limit.kind is Kind.GAUGE else used))
        return self._step(claims, 0, self._sure_until(store_now), force=True)

    def abandon(self, store_now: int) -> Step:
        """Take back a reservation whose reply never came: it is closed if it was made, and buried if it still comes."""
        return self._step([Claim(rule.limit) for rule in self.rules], 0, self._sure_until(store_now), force=True)

    def lapse(self, now: int, store_now: int) -> Step | None:
        """When the lease has run out, give the step that settles this reservation; the next step opens another."""
        if not self._seq or now < self.good_until:
            return None
        settlement = self.settle(store_now)
        self._part += 1
        self._from = self.edge = self.output
        self._seq = self._heard = self.good_until = 0
        return settlement

    def heard(self, step: Step, answer: Answer, sent: int, edge: int) -> None:
        """Take the answer to a step that was made, and sent for the first time, at `sent` with the edge at `edge`."""
        if answer.verdict is Verdict.GRANTED and step.lease_us and step.id == self._id():
            self.edge = max(self.edge, edge + answer.granted)
            self.good_until = sent + self.lease_us
            self._heard = answer.now

    def anew(self, rules: tuple[Rule, ...], *, begun: bool = False) -> "Holder":
        """Give a holder of the same call for another store; with `begun`, what was used so far was paid elsewhere."""
        holder = Holder(self.name, rules, lease_us=self.lease_us, patience_us=self.patience_us, exact=self.exact)
        holder.input, holder.cached, holder.output = self.input, self.cached, self.output
        if begun:
            holder._part = self._part + 1
            holder._from = holder.edge = self.output
        return holder

    def _id(self) -> str:
        return f"{self.name}.{self._part}" if self._part else self.name

    def _step(
        self, claims: list[Claim], lease_us: int, not_after: int, *, want: int = 0, least: int = 0, force: bool = False
    ) -> Step:
        self._seq += 1
        return Step(self._id(), self._seq, tuple(claims), lease_us, want, least, force, not_after)

    def _split(self, rule: Rule) -> tuple[int, int]:
        """Give what a call holds from its beginning, and what it is charged for beginning, tokens produced apart."""
        if rule.limit.kind is Kind.GAUGE:
            return rule.call, 0
        if self._part:
            return 0, 0
        return (self.input - self.cached) * rule.input + self.cached * rule.cached, rule.call

    def _sure_until(self, store_now: int) -> int:
        """Until when, on the store's clock, a missing record can only mean that the store lost its memory."""
        sure = store_now + RETENTION_US // 2
        return min(sure, self._heard + self.lease_us + RETENTION_US // 2) if self._heard else sure
