"""Hints between replicas: one says that its breaker opened, and the others believe their own failures sooner."""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random

import pytest

from cache.errors import StoreError, StoreUnavailable
from cache.redis_address import Address, Door
from cache.redis_board import RedisBoard
from cache.redis_link import Patience
from cache.redis_topology import Single
from gateway.assembly import assemble
from gateway.attempts.breaker_hints import NOTE_S, Board, BreakerHints
from gateway.attempts.recovery import Recovery
from gateway.call import Model
from gateway.configuration.loading import load
from gateway.quotas.store import QuotaStore
from gateway.telemetry.metrics import Metrics
from policies.breaker import BreakerTerms, Cause, CircuitBreaker, State
from policies.outcome import Outcome
from tests.rig.in_process import InProcess
from tests.rig.redis_server import RedisServer
from tests.rig.upstream import eventually

TERMS = BreakerTerms(consecutive=10, hinted_consecutive=3)


class Memory:
    """Notes in memory, with the time by hand."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.notes: dict[str, tuple[str, float]] = {}
        self.down = False

    async def post(self, name: str, text: str, ttl_s: float) -> None:
        if self.down:
            raise StoreUnavailable("x", reason="down")
        self.notes[name] = (text, self.now + ttl_s)

    async def read(self, names: list[str]) -> list[str | None]:
        if self.down:
            raise StoreUnavailable("x", reason="down")
        found = [self.notes.get(name, ("", 0.0)) for name in names]
        return [text if until > self.now else None for text, until in found]


class Replica:
    """One gateway's breaker for the upstream `up`, and its hints."""

    def __init__(self, board: Board, memory: Memory, *, engine: bool = False) -> None:
        upstream = InProcess(name="up", takes_ids=engine)
        recovery = Recovery((upstream,), breakers={upstream: TERMS}, rng=Random(1))
        model = Model("m", (upstream,), 0, "tests", "fp", recovery=recovery)
        self.breaker: CircuitBreaker = recovery.breakers[upstream]
        self.hints = BreakerHints([model], board, clock=lambda: memory.now)
        self._memory = memory

    def fails(self, times: int) -> State:
        """Let attempts fail one after the other."""
        for _ in range(times):
            passed = self.breaker.admit(self._memory.now)
            assert passed is not None
            self.breaker.record(self._memory.now, passed, Outcome.DROPPED)
        return self.breaker.state


@pytest.fixture(params=["memory", "redis"])
async def board(request: pytest.FixtureRequest, memory: Memory, tmp_path: Path) -> AsyncIterator[Board]:
    """Where the notes hang: in memory, or in a real Redis."""
    if request.param == "memory":
        yield memory  # type: ignore[misc]
        return
    with RedisServer(tmp_path) as server:
        patience = Patience(connect_s=10.0, reply_s=10.0)
        topology = Single.at(Address(path=str(server.path)), Door(), patience, lambda: None)
        yield RedisBoard(topology)
        for link in topology.links():
            await link.aclose()


@pytest.fixture
def memory() -> Memory:
    return Memory()


async def test_what_opens_here_makes_others_believe_three_failures_instead_of_ten(board: Board, memory: Memory) -> None:
    one, other = Replica(board, memory), Replica(board, memory)
    one.breaker.trip(memory.now, Cause.FAILURE_RATE)
    await one.hints.look()
    await other.hints.look()

    assert other.breaker.state is State.CLOSED  # a hint alone opens nothing
    assert other.fails(2) is State.CLOSED
    assert other.fails(1) is State.OPEN


async def test_without_a_hint_ten_it_is(board: Board, memory: Memory) -> None:
    one, other = Replica(board, memory), Replica(board, memory)
    await one.hints.look()
    await other.hints.look()

    assert other.fails(9) is State.CLOSED
    assert other.fails(1) is State.OPEN


async def test_nobody_hears_its_own_hint(board: Board, memory: Memory) -> None:
    one = Replica(board, memory)
    one.breaker.trip(memory.now, Cause.FAILURE_RATE)
    await one.hints.look()
    await one.hints.look()

    memory.now += 1.5
    passed = one.breaker.admit(memory.now)
    assert passed is not None
    one.breaker.record(memory.now, passed, Outcome.SUCCESS)
    assert one.fails(9) is State.CLOSED


async def test_an_opening_is_told_once_and_forgotten(memory: Memory) -> None:
    one, other = Replica(memory, memory), Replica(memory, memory)
    one.breaker.trip(memory.now, Cause.FAILURE_RATE)
    await one.hints.look()
    memory.now += NOTE_S + 1
    await one.hints.look()
    await other.hints.look()

    assert other.fails(9) is State.CLOSED


async def test_an_engine_is_nobody_elses_affair(memory: Memory) -> None:
    one = Replica(memory, memory, engine=True)
    one.breaker.trip(memory.now, Cause.DEVICE_ERROR)

    await one.hints.run()  # there is nothing to run for

    assert memory.notes == {}


async def test_what_opened_while_the_store_was_down_is_told_when_it_is_back(memory: Memory) -> None:
    one = Replica(memory, memory)
    one.breaker.trip(memory.now, Cause.FAILURE_RATE)
    memory.down = True

    with pytest.raises(StoreError):
        await one.hints.look()
    memory.down = False
    await one.hints.look()

    assert list(memory.notes) == ["breaker:m:up"]


async def test_two_gateways_over_one_redis_hear_of_each_other(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        server = stack.enter_context(RedisServer(tmp_path))
        (tmp_path / "penstock.yaml").write_text(
            "models: {m: {upstreams: [u]}}\nupstreams: {u: {url: 'http://127.0.0.1:1'}}\n"
            f"store: {{url: 'unix://{server.path}'}}\n"
        )
        loaded = load(tmp_path / "penstock.yaml", environ={})
        breakers: list[CircuitBreaker] = []
        for _ in range(2):
            quotas = QuotaStore(loaded.config.store, loaded.secrets, say=print)
            app = await assemble(loaded, Metrics("test"), [], quotas)
            stack.push_async_callback(quotas.aclose)
            stack.push_async_callback(app.aclose)
            breakers += app._models[0].recovery.breakers.values()

        opened, other = breakers
        opened.trip(time.monotonic(), Cause.FAILURE_RATE)
        await eventually(lambda: other._hinted_until > time.monotonic(), within_s=20.0)

        assert other.state is State.CLOSED
