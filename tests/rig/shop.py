"""A gateway from `Choose` on before an upstream with so many slots, and customers that arrive at a rate: for overload.

Runs on any event loop, in virtual time too. What a customer wants (who it is, how long it is served, how long it has)
is decided before it arrives, so that the same world can be run with and without a defence.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

from gateway.attempts.dispatch import Dispatch
from gateway.call import Call, Event, FinishReason, Handler, Reply, TokenCount, Usage, compose
from gateway.errors import DeadlineExceeded, GatewayError, Overloaded
from gateway.stages.admit import Admit
from gateway.stages.choose import Choose
from gateway.vacancy import Vacancy
from policies.tenant import UNLIMITED, Tenant, Terms
from tests.rig.in_process import InProcess, call_to
from tests.rig.simulated import now

COMPLETION = 10  # tokens of every answer


@dataclass(eq=False)
class Shop(InProcess):
    """Serves each call for as long as its body says, in seconds. With `counters` it takes everybody in and serves so
    many at a time, in order of arrival, and whoever leaves meanwhile is served all the same: a server as they are.
    """

    counters: int | None = None
    pace: float = 1.0  # by which every service takes longer
    served: list[tuple[float, Call]] = field(default_factory=list)
    working: set["asyncio.Task[None]"] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._counter = None if self.counters is None else asyncio.Semaphore(self.counters)

    async def send(self, call: Call) -> Reply:
        return Reply(200, {}, self._serve(call))

    async def _serve(self, call: Call) -> AsyncGenerator[Event, None]:
        if self._counter is None:
            await self._work(call)
        else:
            task = asyncio.ensure_future(self._at_a_counter(self._counter, call))
            self.working.add(task)
            task.add_done_callback(self.working.discard)
            await asyncio.shield(task)
        yield Event(text="x", token_ids=(1,))
        yield Event(finish=FinishReason.STOP, usage=Usage(call.tokens.input, COMPLETION))

    async def _at_a_counter(self, counter: asyncio.Semaphore, call: Call) -> None:
        async with counter:
            await self._work(call)

    async def _work(self, call: Call) -> None:
        await asyncio.sleep(float(call.body) * self.pace)
        self.served.append((now(), call))


@dataclass(frozen=True, slots=True)
class Visit:
    """One customer's wish: when it comes, who it is, how long its service takes, its patience, how often it returns."""

    at: float
    tenant: str = "t"
    service_s: float = 0.5
    patience_s: float = 3.0
    tokens: int = 10
    retries: int = 0


@dataclass(slots=True)
class Outcome:
    """What became of one: when it was over, and the last error. `tries` counts its comings."""

    visit: Visit
    ended: float = 0.0
    error: GatewayError | None = None
    tries: int = 0

    @property
    def good(self) -> bool:
        return self.error is None

    @property
    def seconds(self) -> float:
        return self.ended - self.visit.at


class Gate:
    """The way in, and what became of everybody."""

    def __init__(
        self, shop: Shop, *, terms: dict[str, Terms] | None = None, max_waiting: int = 256, max_wait_s: float = 10.0
    ) -> None:
        self.shop = shop
        self.vacancy = Vacancy([(shop,)], max_waiting=max_waiting, max_wait_s=max_wait_s, rng=Random(1))
        admit = Admit(self.vacancy, clock=now)
        self.handler: Handler = compose([Choose(clock=now), admit], Dispatch(self.vacancy, clock=now))
        self.outcomes: list[Outcome] = []
        self.refusals: list[tuple[float, str, float]] = []  # when, whose, and how many seconds later to come back
        self._terms = terms or {}

    async def come(self, visit: Visit) -> None:
        """Ask, and where told when to come back, do so."""
        outcome = Outcome(visit)
        self.outcomes.append(outcome)
        while True:
            outcome.tries += 1
            outcome.error = await self._ask(visit)
            outcome.ended = now()
            error = outcome.error
            if not isinstance(error, Overloaded) or outcome.tries > visit.retries:
                return
            await asyncio.sleep(int(error.headers["retry-after-ms"]) / 1000)

    async def _ask(self, visit: Visit) -> GatewayError | None:
        call = call_to(self.shop, stream=True)
        call.body = str(visit.service_s).encode()
        call.tenant = Tenant(visit.tenant)
        call.terms = self._terms.get(visit.tenant, UNLIMITED)
        call.tokens = TokenCount(visit.tokens, True, COMPLETION)
        call.received, call.deadline = now(), now() + visit.patience_s
        try:
            async with asyncio.timeout(visit.patience_s), call.scope:
                reply = await self.handler(call)
                async for _ in reply.events:
                    pass
        except TimeoutError:
            return DeadlineExceeded("left")
        except GatewayError as error:
            if isinstance(error, Overloaded):
                self.refusals.append((now(), visit.tenant, int(error.headers["retry-after-ms"]) / 1000))
            return error
        return None

    async def open(self, visits: Sequence[Visit]) -> None:
        """Let everybody come in time; return when all have gone."""
        async with asyncio.TaskGroup() as group:
            for visit in sorted(visits, key=lambda each: each.at):
                await asyncio.sleep(visit.at - now())
                group.create_task(self.come(visit))

    def between(self, begin: float, end: float, tenant: str | None = None) -> list[Outcome]:
        """Those who came first within that time."""
        return [
            each
            for each in self.outcomes
            if begin <= each.visit.at < end and (tenant is None or each.visit.tenant == tenant)
        ]

    def goodput(self, begin: float, end: float) -> float:
        """Good answers a second."""
        return sum(each.good and begin <= each.ended < end for each in self.outcomes) / (end - begin)


def arrivals(rng: Random, rate: float, begin: float, end: float, **wish: object) -> Iterator[Visit]:
    """Customers at random, so many a second, whose service takes a random time around `service_s`."""
    mean_s = float(wish.pop("service_s", 0.5))  # type: ignore[arg-type]
    spread = float(wish.pop("spread", 0.5))  # type: ignore[arg-type]
    at = begin + rng.expovariate(rate)
    while at < end:
        service_s = mean_s * rng.lognormvariate(-spread * spread / 2, spread)
        yield Visit(at, service_s=service_s, **wish)  # type: ignore[arg-type]
        at += rng.expovariate(rate)


def p99(seconds: Sequence[float]) -> float:
    """The 99th percentile."""
    return sorted(seconds)[int(len(seconds) * 0.99)]
