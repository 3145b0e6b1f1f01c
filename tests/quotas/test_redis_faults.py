"""Redis dies, freezes, slows down, is cut off, forgets, fills up, loses replies, under calls through real gateways.

Whatever it does: every call is answered, in the mode that its policy declares, and says so; when it is over, everything
is as before, and the books have charged what was used. How fast all this is, `python -m bench.redis_faults` tells.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest

from cache.ledger import Ledger
from tests.cache.conftest import CALM, redis_store_at
from tests.rig.chat_client import ChatClient, Told
from tests.rig.gateways import Gateway, eventually
from tests.rig.redis_faults import FAULTS, MODEL, MODES, SLICE, Fault, Rig, rig
from tests.rig.toxics import Latency

MOST_TOKENS = 256  # that a call here reserves

HUNG_S = 30.0
SPARE_FILES = 2  # a connection to the upstream, and one of the look itself
REQUESTS, OUTPUT = "strict requests/month", "strict output_tokens/month"


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    # A gateway may have to wait for its turn here: what is no failure must not look like one.
    with rig(tmp_path_factory.mktemp("faults"), timeout_ms=300, slow=Latency(1000, 200)) as running:
        files = [gateway.descriptors() for gateway in running.gateways]
        yield running
        for gateway, before in zip(running.gateways, files, strict=True):
            eventually(partial(has_few_files, gateway, before + SPARE_FILES))  # once idle connections have closed


@dataclass
class Crowd:
    """Callers of every mode at every gateway; `told` is everything that they heard, by mode."""

    rig: Rig
    told: dict[str, list[Told]] = field(default_factory=lambda: {mode: [] for mode in MODES})
    _count: int = 0

    async def round(self, calls: int) -> dict[str, list[Told]]:
        """Make so many calls of each mode at each gateway, and give what came of them."""
        told: dict[str, list[Told]] = {mode: [] for mode in MODES}
        async with asyncio.TaskGroup() as tasks:
            for mode in MODES:
                for gateway in self.rig.gateways:
                    numbers = iter(range(calls))
                    enough = partial(no_more, numbers)
                    tasks.create_task(self._calls(mode, gateway.port, enough, told[mode]))
        return told

    @asynccontextmanager
    async def calling(self) -> AsyncIterator[None]:
        """Call all the time, until the block ends and every answer is there."""
        enough = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            for mode in MODES:
                for gateway in self.rig.gateways:
                    for _ in range(2):
                        tasks.create_task(self._calls(mode, gateway.port, enough.is_set, []))
            try:
                yield
            finally:
                enough.set()

    async def _calls(self, mode: str, port: int, enough: Callable[[], bool], heard: list[Told]) -> None:
        client = ChatClient(port)
        try:
            while not enough():
                self._count += 1
                stream = self._count % 3 == 0
                words = 6 * SLICE if stream else 5
                ask = self.rig.ask(mode, f"{id(self)}.{self._count}", words=words, stream=stream, pace_s=0.003)
                async with asyncio.timeout(HUNG_S):
                    told = await client.ask(ask)
                self.told[mode].append(told)
                heard.append(told)
                await asyncio.sleep(0.005)
        finally:
            client.hang_up()


def has_few_files(gateway: Gateway, most: int) -> bool:
    return gateway.descriptors() <= most


def no_more(numbers: Iterator[int]) -> bool:
    return next(numbers, None) is None


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
async def test_every_call_is_answered_as_declared_and_nothing_stays_behind(faulty: Rig, fault: Fault) -> None:
    crowd = Crowd(faulty)
    await all_is_well(crowd)
    books = await charged(faulty)
    known = len(crowd.told["strict"])
    said = [len(gateway.said) for gateway in faulty.gateways]
    async with crowd.calling():
        await asyncio.sleep(0.2)
        fault.begin(faulty)  # on this thread: a server that is started dies with the thread that did
        if fault.breaks:
            await until(lambda: not any(map(faulty.store_up, faulty.gateways)))
            declared = await crowd.round(8)
            assert {(told.status, told.headers.get("retry-after")) for told in declared["strict"]} == {(503, "1")}
            assert {code(told) for told in declared["strict"]} == {"quota_unavailable"}
            assert {told.headers.get("x-penstock-degraded") for told in declared["loose"]} == {"quota"}
            assert {told.status for told in declared["loose"]} == {200}
        else:
            await crowd.round(4)
        fault.end(faulty)
        await until(lambda: all(map(faulty.store_up, faulty.gateways)))
    await all_is_well(crowd)

    assert [told for told in crowd.told["bare"] if told.ending != "whole" or told.status != 200 or told.error] == []
    assert [told for told in crowd.told["loose"] if told.ending != "whole" or told.status != 200 or told.error] == []
    assert [told for told in crowd.told["strict"] if told.ending != "whole" or told.status not in (200, 503)] == []
    for gateway, before in zip(faulty.gateways, said, strict=True):
        written = "\n".join(gateway.said[before:])
        assert not fault.breaks or ("is down: " in written and "is back after " in written)
        assert "Traceback" not in written
    if fault.forgets:
        assert all(gateway.metrics()["penstock_store_forgotten_total"] > 0 for gateway in faulty.gateways)
    else:
        now = await charged(faulty)
        answered, tokens, doubtful = await settled(faulty, {told.ask.id for told in crowd.told["strict"][known:]})
        refused = sum(told.status == 503 for told in crowd.told["strict"][known:])
        requests = now[REQUESTS] - books[REQUESTS]
        # A request counts as it comes in: one whose tokens found no store, or whose reply came too late, has come in.
        assert answered <= requests <= answered + refused
        # Exact, but for calls that lost the store in their midst: they may be charged what they had been granted.
        assert tokens <= now[OUTPUT] - books[OUTPUT] <= tokens + doubtful
    await until(lambda: faulty.network.open <= len(faulty.gateways))  # what was slow closes slowly


async def all_is_well(crowd: Crowd) -> None:
    """Wait until everybody is served, and nobody by a share."""
    async with asyncio.timeout(HUNG_S):
        while True:
            told = await crowd.round(3)
            served = [each for mode in MODES for each in told[mode] if each.status == 200 and each.error is None]
            if len(served) == 3 * 3 * 2 and not any("x-penstock-degraded" in each.headers for each in served):
                return


async def charged(rig: Rig) -> dict[str, int]:
    """Read what the strict organisation has been charged, once nobody of it is under way."""
    await until(lambda: rig.redis.ask("ZCARD", "penstock:{strict}:leases") == b":0\r\n")
    store = redis_store_at(rig.redis, CALM)
    account = rig.policy.keys["strict"].tenant.terms(MODEL).account
    async with Ledger(store) as ledger:
        standings = await ledger.look(account)
    await store.aclose()
    return {standing.limit.key: standing.limit.capacity - standing.free for standing in standings}


async def settled(rig: Rig, names: set[str]) -> tuple[int, int, int]:
    """Give how many of these calls were answered, the tokens that all of them brought, as the gateways logged them, and
    what those had been granted that lost the store in their midst.

    One whose store is lost between its upstream's answer and its caller is refused, and has brought tokens all the
    same.
    """
    lines: list[dict[str, Any]] = []

    def logged() -> bool:
        lines[:] = [line for gateway in rig.gateways for line in gateway.access_log() if line["id"] in names]
        return len(lines) == len(names)

    await until(logged)
    let_in = [line for line in lines if line["status"] == 200]
    quotas = [(line["status"], line["quota"]) for line in lines if line.get("quota")]
    cut = [quota for status, quota in quotas if status == 503 or quota.get("ended") == "store"]
    tokens = sum(line.get("completion_tokens", 0) for line in lines)
    return len(let_in), tokens, sum(quota.get("reserved_tokens", MOST_TOKENS) for quota in cut)


def code(told: Told) -> str | None:
    return None if told.error is None else told.error.get("code")


async def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds, looking at it from another thread."""
    async with asyncio.timeout(HUNG_S):
        while not await asyncio.to_thread(holds):
            await asyncio.sleep(0.02)
