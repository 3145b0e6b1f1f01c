"""A recorded log under another policy: who would have been refused or cut short, when, and by which limit.

The log's calls come in at the times at which they came, to the very ledger that the gateway uses, over a store in
memory and on the log's own clock: so limits count, refill and refuse as they would have. A call that is refused goes no
further and uses nothing; one that is cut short has used what it had until then.

What a log does not tell is taken to be so:

- Output comes evenly between the first event and the end. Slices are asked for when it has come far enough.
- A call that is let in brings what it brought then, or less where this policy allows less.
- What never came to an end is taken for a call like the others of its tenant to its model so far, in the mean: one that
  a limit refused then and none does now (counted apart), with its input by its bytes where it was not counted; and an
  answer that a limit cut short then goes on to that length, and for one token at least.
- Callers do not change their ways: who is refused now does not come again unless the log says so.
- Time in queues and at upstreams is what it was. There is one store, which never fails.
"""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from math import ceil
from urllib.parse import unquote

import msgspec
from msgspec.structs import replace

from cache.embedded import EmbeddedStore
from cache.ledger import Ledger
from cache.reservation import LimitExceeded, Reservation
from gateway.call import BYTES_PER_TOKEN, Model, Operation, Request, TextPrompt
from gateway.dry_run.replay_log import Entry
from gateway.errors import BadRequest
from gateway.stages.bound import output_of
from policies.policy import Policy
from policies.tenant import OutputRule, Tenant, Terms

LEASE_S = 30.0


class Hit(msgspec.Struct):
    """What one limit, or cap, did to one tenant's calls: `what` is `refused`, `cut` or `shadow`. Times are µs."""

    tenant: str
    what: str
    by: str
    times: int
    first: int
    last: int


class Total(msgspec.Struct):
    """One tenant's calls under the new policy. `refused_then` were by a limit of the old one, `let_in` of them now not.

    Tokens are those of calls that were let in; `cost` in billionths of a US dollar, None where some price is not known.
    """

    tenant: str
    calls: int = 0
    refused: int = 0
    cut: int = 0
    refused_then: int = 0
    let_in: int = 0
    prompt: int = 0
    cached: int = 0
    completion: int = 0
    cost: int | None = 0


@dataclass
class Clock:
    """The log's time, in µs since 1970."""

    now: int = 0

    def __call__(self) -> int:
        return self.now


@dataclass
class Mean:
    """What the calls of one tenant to one model came to, so far."""

    calls: int = 0
    completion: int = 0
    lasted: int = 0

    def add(self, entry: Entry) -> None:
        """Count one that came to its end."""
        self.calls += 1
        self.completion += entry.completion
        self.lasted += entry.ended - entry.arrived

    def suppose(self, entry: Entry) -> Entry:
        """Give a call that was refused or cut short, as it might have gone."""
        completion, lasted = self.completion // max(1, self.calls), self.lasted // max(1, self.calls)
        if entry.refused:
            tokens = ceil(entry.bytes_in / BYTES_PER_TOKEN) if entry.input is None else entry.input
            return replace(
                entry,
                input=tokens,
                prompt=tokens,
                completion=completion,
                first_event=None,
                ended=entry.arrived + lasted,
            )
        longer = max(completion, entry.completion + 1)
        since = entry.arrived if entry.first_event is None else entry.first_event
        ended = since + (entry.ended - since) * longer // max(1, entry.completion)
        return replace(entry, completion=longer, ended=ended)


@dataclass(eq=False)
class Run:
    """A call that was let in, until it ends. `target` is the output that it would come to, `output` what has come."""

    entry: Entry
    terms: Terms
    total: Total
    calls: Reservation
    ends: int
    target: int
    tokens: Reservation | None = None
    output: int = 0
    cut: str | None = None
    over: bool = False

    def time_of(self, token: int) -> int:
        """Tell when a token of output came."""
        entry = self.entry
        since = entry.arrived if entry.first_event is None else entry.first_event
        return since + (entry.ended - since) * (token - 1) // max(1, entry.completion - 1)

    def output_by(self, now: int) -> int:
        """Tell how much output has come by now, as `time_of` has it."""
        entry = self.entry
        since = entry.arrived if entry.first_event is None else entry.first_event
        span, steps = entry.ended - since, entry.completion - 1
        if now < since:
            return 0
        if span <= 0 or steps <= 0 or now >= entry.ended:
            return self.target
        return min(self.target, -(-(now - since + 1) * steps // span))


class Due(IntEnum):
    """What happens to a call that runs; at the same moment in this order."""

    RENEW = 0
    MORE = 1
    END = 2


class Replay:
    """Takes calls in the order of arrival. `totals` and `hits` are what came of them, `unknown` whose were left out."""

    def __init__(self, policy: Policy) -> None:
        self.totals: dict[str, Total] = {}
        self.hits: dict[tuple[str, str, str], Hit] = {}
        self.unknown: dict[str, int] = {}
        self.first: int | None = None
        self.last = 0
        self._policy = policy
        self._clock = Clock()
        self._ledger = Ledger(EmbeddedStore(self._clock), lease_s=LEASE_S, clock=self._clock)
        self._due: list[tuple[int, Due, int, Run]] = []  # a heap
        self._serial = 0
        self._means: dict[tuple[str, str], Mean] = {}

    async def run(self, entries: Iterable[Entry]) -> None:
        """Replay all of them, to the last one's end."""
        for entry in entries:
            await self._until(entry.arrived)
            self._clock.now = max(self._clock.now, entry.arrived)
            self.first = entry.arrived if self.first is None else self.first
            self.last = max(self.last, entry.ended)
            await self._arrive(entry)
        await self._until(None)

    async def _until(self, time: int | None) -> None:
        """Let everything happen that happens by a time; None for everything."""
        due = self._due
        while due and (time is None or due[0][0] <= time):
            now, what, _, run = heapq.heappop(due)
            if run.over:
                continue
            self._clock.now = max(self._clock.now, now)
            match what:
                case Due.RENEW:
                    self._renew(run)
                case Due.MORE:
                    await self._more(run)
                case Due.END:
                    await self._end(run)

    async def _arrive(self, entry: Entry) -> None:
        tenant = tenant_of(self._policy, entry)
        if tenant is None:
            self.unknown[entry.tenant] = self.unknown.get(entry.tenant, 0) + 1
            return
        total = self.totals.setdefault(tenant.id, Total(tenant.id))
        total.calls += 1
        total.refused_then += entry.refused
        mean = self._means.setdefault((tenant.id, entry.model), Mean())
        counted = not entry.refused or entry.input is not None
        if entry.refused or entry.cut:
            entry = mean.suppose(entry)
        elif entry.first_event is not None:
            mean.add(entry)
        terms = tenant.terms(entry.model)
        self._serial += 1
        calls = self._ledger.allow(terms.account, str(self._serial))
        run = Run(entry, terms, total, calls, entry.ended, entry.completion)
        try:
            if not terms.allowed:
                raise BadRequest("", code="model_not_allowed")
            await calls.__aenter__()
            run.tokens = self._promise(run, exact=entry.engine and counted)
            if run.tokens is not None:
                await run.tokens.__aenter__()
        except LimitExceeded as exceeded:
            await self._refuse(run, exceeded.limit.key)
        except BadRequest as error:
            await self._refuse(run, error.code or "refused")
        else:
            self._begin(run)

    def _promise(self, run: Run, *, exact: bool) -> Reservation | None:
        """Make the reservation of a call's tokens; None for one that never came so far. Raises `BadRequest`."""
        entry, terms = run.entry, run.terms
        if entry.input is None:
            return None  # it was wrong, and told so before its tokens were counted
        if terms.max_input is not None and entry.input > terms.max_input:
            raise BadRequest("", code="input_too_long")
        each = output_each(entry, terms.output)
        most = None if each is None else each * entry.choices
        if most is not None and most < run.target and (entry.max_output is None or each != entry.max_output):
            run.target, run.cut = most, "max_output_tokens"
        whole = not entry.engine and not entry.stream and most is not None
        return self._ledger.reserve(
            terms.account,
            str(self._serial),
            input_tokens=entry.input,
            max_output=most,
            exact=exact,
            least=entry.choices if whole else 1,
            whole=whole,
        )

    def _begin(self, run: Run) -> None:
        entry, tokens = run.entry, run.tokens
        run.total.let_in += entry.refused
        if tokens is not None and any(rule.output for rule in run.terms.account.tokens):
            if entry.engine or entry.stream:
                self._plan(run)
            elif tokens.tight is not None:  # its upstream was told to bring no more than this
                room = tokens.granted // entry.choices * entry.choices
                if run.target >= room:
                    run.target, run.cut = room, tokens.tight.key
        if run.cut is not None:
            run.ends = min(run.ends, run.time_of(run.target))
        self._at(run.ends, Due.END, run)
        self._at(self._clock.now + self._ledger.lease_us // 2, Due.RENEW, run)

    def _at(self, time: int, what: Due, run: Run) -> None:
        if time <= run.ends:
            self._serial += 1
            heapq.heappush(self._due, (time, what, self._serial, run))

    def _plan(self, run: Run) -> None:
        """Look again when enough has come for the next slice to be asked for, or nothing is left to go on with."""
        assert run.tokens is not None, "only who has a promise is held to it"
        ahead = run.tokens.granted - run.terms.account.slice // 2
        token = min(ahead if ahead > run.output else run.tokens.granted, run.target)
        if token > run.output:
            self._at(run.time_of(token), Due.MORE, run)

    def _renew(self, run: Run) -> None:
        for promise in (run.calls, run.tokens):
            if promise is not None:
                promise.renew()
        self._at(self._clock.now + self._ledger.lease_us // 2, Due.RENEW, run)

    async def _more(self, run: Run) -> None:
        """Count what has come, which asks for more in time; a call that has nothing left to go on with ends here."""
        tokens = run.tokens
        assert tokens is not None, "only who has a promise is held to it"
        if run.entry.engine and not run.output:
            tokens.holder.cached = run.entry.cached  # known with the first token
        came = min(run.output_by(self._clock.now), tokens.granted)
        if came > run.output:
            tokens.count(came - run.output)
            run.output = came
        if run.output < run.target and not tokens.room() and not await tokens.more():
            run.target, run.cut = run.output, "max_output_tokens" if tokens.edge is None else tokens.edge.key
            await self._end(run)
        else:
            self._plan(run)

    async def _end(self, run: Run) -> None:
        """Settle what a call has used."""
        entry, total, price = run.entry, run.total, run.terms.price
        prompt, cached, completion = entry.prompt, entry.cached, min(run.target, entry.completion)
        if run.cut is not None:
            total.cut += 1
            self._hit(run, "cut", run.cut)
        if run.tokens is not None:
            run.tokens.usage(input_tokens=prompt, cached_tokens=cached, output_tokens=completion)
        total.prompt += prompt
        total.cached += cached
        total.completion += completion
        if total.cost is not None and (prompt or completion):
            cost = None if price is None else (prompt - cached) * price.input + cached * price.cached
            total.cost = None if price is None or cost is None else total.cost + cost + completion * price.output
        await self._leave(run)

    async def _refuse(self, run: Run, by: str) -> None:
        run.total.refused += 1
        self._hit(run, "refused", by)
        if run.tokens is not None:
            run.tokens.usage(input_tokens=0, cached_tokens=0, output_tokens=0)
        await self._leave(run)

    async def _leave(self, run: Run) -> None:
        run.over = True
        for promise in (run.tokens, run.calls):
            if promise is not None:
                for limit in promise.shadowed:
                    self._hit(run, "shadow", limit.key, run.entry.arrived if promise is run.calls else None)
                await promise.__aexit__(None, None, None)

    def _hit(self, run: Run, what: str, by: str, at: int | None = None) -> None:
        when, key = self._clock.now if at is None else at, (run.total.tenant, what, by)
        hit = self.hits.get(key)
        if hit is None:
            hit = self.hits[key] = Hit(run.total.tenant, what, by, 0, when, when)
        hit.times += 1
        hit.first, hit.last = min(hit.first, when), max(hit.last, when)


def tenant_of(policy: Policy, entry: Entry) -> Tenant | None:
    """Find whom a policy takes a call's caller for: by its key, else, as a token's subject, by its names."""
    stored = None if entry.key is None else policy.keys.get(entry.key)
    if stored is not None:
        return stored.tenant
    if not policy.issuers:
        return None
    return policy.find(entry.organisation, entry.team, unquote(entry.tenant.rpartition("/")[2]), entry.key)


def output_each(entry: Entry, rule: OutputRule) -> int | None:
    """Tell how much each choice may bring: as `Bound` has it, but never more room than it had. Raises `BadRequest`."""
    request = Request(Operation.CHAT, entry.model, TextPrompt(()), max_tokens=entry.asked_output)
    each, _ = output_of(request, Model(entry.model, (), 0, "", ""), rule)
    if each is None or (entry.asked_output is None and entry.max_output is not None):
        return entry.max_output if each is None else min(each, entry.max_output or each)
    return each
