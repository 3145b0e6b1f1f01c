"""Upstreams and gateways in virtual time: attempts that take their time and fail, and calls that arrive at a rate."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field

from gateway.attempts.dispatch import Dispatch
from gateway.attempts.recovery import Recovery
from gateway.call import Attempt, Call, Event, FinishReason, Handler, Reply, Usage, compose
from gateway.errors import GatewayError, UpstreamError, UpstreamFailure
from gateway.stages.choose import Choose
from gateway.vacancy import Vacancy
from tests.rig.in_process import InProcess, call_to

UNAVAILABLE = (UpstreamFailure.STATUS, 503)


def now() -> float:
    return asyncio.get_running_loop().time()


@dataclass(eq=False)
class Simulated(InProcess):
    """Fails at `sent` attempts for which `failing` says so, after `fails_after_s`; brings its first event after
    `first_event_s`, and its end after `rest_s` more.
    """

    failing: Callable[[float], bool] = lambda _: False
    failure: tuple[UpstreamFailure, int | None] = UNAVAILABLE
    retry_after_s: float | None = None
    fails_after_s: float = 0.02
    first_event_s: Callable[[], float] = lambda: 0.05
    rest_s: float = 0.05
    sent: list[float] = field(default_factory=list)
    left: list[float] = field(default_factory=list)  # when an attempt was given up before its first event
    most: int = 0  # that ran at a time

    async def send(self, call: Call) -> Reply:
        self.sent.append(now())
        if self.failing(now()):
            kind, status = self.failure
            await asyncio.sleep(self.fails_after_s)
            raise UpstreamError("x", kind=kind, status=status, answered=status, retry_after_s=self.retry_after_s)
        return Reply(200, {}, self._answer(self.first_event_s()))

    async def _answer(self, first_event_s: float) -> AsyncGenerator[Event, None]:
        self.running += 1
        self.most = max(self.most, self.running)
        begun = False
        try:
            await asyncio.sleep(first_event_s)
            begun = True
            yield Event(text="x", token_ids=(1,))
            await asyncio.sleep(self.rest_s)
            yield Event(finish=FinishReason.STOP, usage=Usage(1, 1))
        finally:
            self.running -= 1
            if not begun:
                self.left.append(now())


@dataclass
class Answered:
    """What became of one call. `first_event_s` is from its arrival; `error` None says that it was answered."""

    arrived: float
    first_event_s: float | None
    error: GatewayError | None
    attempts: list[Attempt]
    usage: Usage | None


@dataclass
class World:
    """A gateway from `Choose` on, before simulated upstreams."""

    recovery: Recovery
    upstreams: tuple[Simulated, ...]
    answered: list[Answered] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.handler: Handler = compose([Choose(clock=now)], Dispatch(Vacancy(), clock=now))

    async def ask(self, headers: Mapping[bytes, bytes] | None = None, **fields: object) -> Answered:
        """Send one call and read its answer to the end."""
        call = call_to(*self.upstreams, recovery=self.recovery, **({"stream": True} | fields))  # type: ignore[arg-type]
        arrived, first, told = now(), None, None
        call.deadline = call.generation.deadline = arrived + 600.0
        call.headers = dict(headers or {})
        try:
            async with call.scope:
                reply = await self.handler(call)
                async for _ in reply.events:
                    first = first or now()
        except GatewayError as error:
            told = error
        answered = Answered(
            arrived, None if first is None else first - arrived, told, call.attempts, call.generation.usage
        )
        self.answered.append(answered)
        return answered

    async def offer(self, rate: float, seconds: float) -> None:
        """Let calls arrive at a steady rate, whatever becomes of them; return when all have ended."""
        async with asyncio.TaskGroup() as calls:
            for number in range(int(rate * seconds)):
                calls.create_task(self.ask())
                await asyncio.sleep(1 / rate)
                del number

    def good(self, begin: float, end: float) -> float:
        """The share of calls answered, of those that arrived in that time."""
        arrived = [each for each in self.answered if begin <= each.arrived < end]
        return sum(each.error is None for each in arrived) / len(arrived)
