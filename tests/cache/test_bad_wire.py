"""A good Redis behind a bad wire: slow, silent, or cut after the question was heard and before the answer came."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cache.errors import StoreUnavailable
from cache.redis_address import Address, Door
from cache.redis_link import Patience
from cache.redis_store import RedisStore
from cache.redis_topology import Single
from tests.cache.test_faults import CLOSED, LOCAL, Watched, quiet, until_down
from tests.rig.bad_wire import BadWire, bad_wire
from tests.rig.redis_server import RedisServer


@pytest.fixture
async def wired(tmp_path: Path) -> AsyncIterator[tuple[BadWire, Watched]]:
    with RedisServer(tmp_path) as server:
        async with bad_wire(server.path, tmp_path / "wire.sock") as wire:
            address, patience = Address(path=str(wire.path)), Patience(connect_s=1.0, reply_s=0.2)
            store = RedisStore(lambda forgot: Single.at(address, Door(), patience, forgot))
            try:
                await store.open()
                watched = Watched(store)
                async with watched.ledger:
                    yield wire, watched
            finally:
                await store.aclose()


async def test_a_reply_that_was_lost_does_not_charge_twice(wired: tuple[BadWire, Watched]) -> None:
    wire, redis = wired
    for number in range(20):
        wire.cut_replies = 1
        await redis.call(CLOSED, f"call-{number}", 10)
        await quiet(redis.ledger)

    assert wire.connections >= 20
    assert [standing.free for standing in await redis.ledger.look(CLOSED)] == [999 - 200]


async def test_a_slow_redis_is_down_until_it_is_quick_again(wired: tuple[BadWire, Watched]) -> None:
    wire, redis = wired
    wire.delay_s = 0.5
    health = await until_down(redis)

    assert health.reason == "timeout"
    await redis.call(LOCAL, "local")

    wire.delay_s = 0.0
    await redis.becomes(up=True)
    await quiet(redis.ledger)
    await redis.call(CLOSED, "after", 10)
    await quiet(redis.ledger)

    assert [standing.free for standing in await redis.ledger.look(CLOSED)] == [989]


async def test_a_silent_wire_holds_nobody_and_opens_few_connections(wired: tuple[BadWire, Watched]) -> None:
    wire, redis = wired
    wire.silent = True
    await until_down(redis)
    before = wire.connections
    refusals = await asyncio.gather(
        *[redis.call(CLOSED, f"refused-{number}") for number in range(200)], return_exceptions=True
    )

    assert all(isinstance(refusal, StoreUnavailable) and refusal.reason == "down" for refusal in refusals)
    assert wire.connections - before <= 1

    wire.silent = False
    await redis.becomes(up=True)
