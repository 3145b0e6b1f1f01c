"""An upstream without a socket: it answers with the events that it was given, when it is told to; and calls to it."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.attempts.recovery import Recovery
from gateway.call import Call, ChatPrompt, Event, FinishReason, Model, Operation, Reply, Request, TokenCount, Usage
from gateway.errors import BadRequest, GatewayError
from gateway.generation import Generation
from gateway.scope import Scope
from gateway.upstreams.base import Room
from policies.outcome import Outcome
from policies.retry import RetryTerms

WORDS = (Event(text="Hello", token_ids=(1,)), Event(text=" you", token_ids=(2,)))
END = Event(finish=FinishReason.STOP, usage=Usage(3, 2))


def call_to(*upstreams: "InProcess", recovery: Recovery | None = None, retries: int = 2, **fields: object) -> Call:
    """A call that has come as far as dispatch; `fields` are the request's."""
    asked: dict[str, Any] = {"prompt": ChatPrompt([{"role": "user", "content": "hi"}])} | fields
    request = Request(Operation.CHAT, "m", **asked)
    call = Call("id", "/", 0.0, b"{}", {}, request, 1e9, Scope())
    recovery = recovery or Recovery(retry=RetryTerms(max_attempts=1 + retries, base_s=0.0))
    call.model = Model("m", upstreams, 0, "tests", "fp", recovery=recovery)
    call.tokens = TokenCount(1, False)
    call.generation = Generation(1e9)
    call.scope.push(call.generation.scope)
    call.route = upstreams
    return call


@dataclass(eq=False)
class InProcess:
    """Gives `script` event by event; an error in it is raised. `hold` stops it before each event until set; before the
    answer, each event and the end it lets the event loop go round `rounds` times.
    """

    script: Sequence[Event | GatewayError] = (*WORDS, END)
    name: str = "in-process"
    slots: int | None = None
    refusal: BadRequest | None = None
    at_send: GatewayError | None = None
    hold: asyncio.Event | None = None
    takes_ids: bool = False
    raw: bool = False
    rounds: int = 0
    leased: int = 0
    calls: list[Call] = field(default_factory=list)
    samples: list[tuple[Outcome, float | None]] = field(default_factory=list)  # what its leases learnt
    running: int = 0
    closed: int = 0

    def refuses(self, request: Request) -> BadRequest | None:
        return self.refusal

    def lease(self) -> "Slot":
        return Slot(self)

    def fits(self, call: Call) -> bool:
        return self.slots is None or self.slots > self.leased

    def room(self) -> Room:
        return Room(None if self.slots is None else self.slots - self.leased, self.leased)

    async def send(self, call: Call) -> Reply:
        self.calls.append(call)
        await self._go_round()
        if self.at_send is not None:
            raise self.at_send
        return Reply(200, {}, self._events(), raw=self.raw)

    async def aclose(self) -> None:
        self.closed += 1

    async def _events(self) -> AsyncGenerator[Event, None]:
        self.running += 1
        try:
            for event in self.script:
                await self._go_round()
                if self.hold is not None:
                    await self.hold.wait()
                if isinstance(event, GatewayError):
                    raise event
                yield event
            await self._go_round()
        finally:
            self.running -= 1

    async def _go_round(self) -> None:
        for _ in range(self.rounds):
            await asyncio.sleep(0)


@dataclass
class Slot:
    """One of its slots."""

    upstream: InProcess

    def sample(
        self, now: float, started: float, outcome: Outcome, prompt_tokens: int, first_event_s: float | None
    ) -> None:
        self.upstream.samples.append((outcome, first_event_s))

    def __enter__(self) -> None:
        self.upstream.leased += 1

    def __exit__(self, *_: object) -> None:
        self.upstream.leased -= 1
