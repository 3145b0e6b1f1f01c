"""A real Redis that dies, freezes, fills up, forgets: what its callers are told meanwhile, and that they come back."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from cache.errors import StoreError, StoreUnavailable
from cache.guard import Health
from cache.ledger import Ledger
from cache.redis_address import Address, Door
from cache.redis_connection import connect
from cache.redis_link import Patience
from cache.redis_store import RedisStore
from cache.reservation import LimitExceeded
from policies.account import Account, OnFailure
from policies.bucket import Kind, Limit
from policies.holder import Rule
from tests.cache.conftest import CALM, redis_store_at
from tests.rig.redis_server import RedisServer

DAY = Limit.budget("day", Kind.DAY, 999)
CLOSED = Account("org", (), (Rule(DAY, input=1, output=1),), OnFailure.CLOSED, slice=16)
LOCAL = replace(CLOSED, on_failure=OnFailure.LOCAL)
BRISK = Patience(connect_s=1.0, reply_s=0.2)  # long for a quick server, short for a frozen one


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as server:
        yield server


class Watched:
    """A ledger, and its health as it changes."""

    def __init__(self, store: RedisStore) -> None:
        self.ledger = Ledger(store, replicas=3)
        self.changes: asyncio.Queue[Health] = asyncio.Queue()
        self.ledger.on_change(self.changes.put_nowait)
        store.on_forgotten(self.ledger.renew_all)

    async def becomes(self, *, up: bool) -> Health:
        async with asyncio.timeout(60):
            while self.ledger.health.up is not up:
                await self.changes.get()
        return self.ledger.health

    async def call(self, account: Account, name: str, tokens: int = 10) -> None:
        async with self.ledger.reserve(account, name, input_tokens=tokens, max_output=0):
            pass


@asynccontextmanager
async def watched(server: RedisServer, patience: Patience = BRISK) -> AsyncIterator[Watched]:
    store = redis_store_at(server, patience)
    try:
        await store.open()
        watched = Watched(store)
        async with watched.ledger:
            yield watched
    finally:
        await store.aclose()


async def until_down(redis: Watched) -> Health:
    """Call until the ledger knows that its store is down; every call is answered."""
    async with asyncio.timeout(60):
        number = 0
        while redis.ledger.health.up:
            with suppress(StoreError):
                await redis.call(CLOSED, f"meanwhile-{number}", 0)
            number += 1
    return redis.ledger.health


async def test_a_dead_redis_refuses_or_is_stood_in_for_and_comes_back(server: RedisServer) -> None:
    async with watched(server) as redis:
        await redis.call(CLOSED, "before")
        server.kill()
        health = await until_down(redis)

        assert not health.up
        with pytest.raises(StoreUnavailable):
            await redis.call(CLOSED, "closed")
        for number in range(33):  # a third of 999, ten by ten
            await redis.call(LOCAL, f"local-{number}")
        with pytest.raises(LimitExceeded):
            await redis.call(LOCAL, "past the share")

        server.start()
        await redis.becomes(up=True)
        await redis.call(CLOSED, "after")


async def test_a_frozen_redis_is_given_up_and_charges_nobody_when_it_thaws(server: RedisServer) -> None:
    async with watched(server) as redis:
        await redis.call(CLOSED, "before", 100)
        server.freeze()
        health = await until_down(redis)

        assert not health.up
        assert health.reason in ("timeout", "connect")  # silence, or after it a connection that nobody takes up
        async with redis.ledger.reserve(LOCAL, "local", input_tokens=10, max_output=5) as reservation:
            assert reservation.degraded
            assert reservation.room() == 5

        await asyncio.sleep(0.6)  # what waits in the socket is too old by then
        server.thaw()
        await redis.becomes(up=True)
        await quiet(redis.ledger)

        assert [standing.free for standing in await redis.ledger.look(CLOSED)] == [899]


async def test_every_call_to_a_frozen_redis_waits_for_its_own_patience_only(server: RedisServer) -> None:
    connection = await connect(Address(path=str(server.path)), Door(), connect_s=10.0, patience_s=0.02)
    server.freeze()
    for _ in range(3):
        silence = asyncio.ensure_future(asyncio.sleep(0.5))  # half of what the connection is given up for
        call = connection.call("PING")
        await asyncio.wait([call, silence], return_when=asyncio.FIRST_COMPLETED)

        assert call.done()
        assert isinstance(call.exception(), StoreUnavailable)
        silence.cancel()
    await connection.aclose()


async def test_a_full_redis_is_down_and_comes_back(server: RedisServer) -> None:
    async with watched(server, CALM) as redis:
        server.ask("CONFIG", "SET", "maxmemory", "1")
        health = await until_down(redis)

        assert health == Health(up=False, reason="oom")

        server.ask("CONFIG", "SET", "maxmemory", "0")
        await redis.becomes(up=True)


async def test_a_redis_that_became_a_replica_is_down_and_comes_back(server: RedisServer) -> None:
    async with watched(server, CALM) as redis:
        server.ask("REPLICAOF", "127.0.0.1", "1")
        health = await until_down(redis)

        assert not health.up
        assert health.reason in ("readonly", "masterdown")

        server.ask("REPLICAOF", "NO", "ONE")
        await redis.becomes(up=True)


async def test_flushed_scripts_are_sent_again(server: RedisServer) -> None:
    async with watched(server, CALM) as redis:
        for number in range(3):
            server.ask("SCRIPT", "FLUSH")
            await redis.call(CLOSED, f"call-{number}")

        assert redis.ledger.health.up


async def test_a_redis_that_forgot_is_told_what_runs(server: RedisServer) -> None:
    async with watched(server, CALM) as redis:
        async with redis.ledger.reserve(CLOSED, "running", input_tokens=300, max_output=50) as reservation:
            reservation.count(4)
            server.kill()
            server.start()
            await redis.ledger.look(CLOSED)  # connects, and finds another memory than before
            await quiet(redis.ledger)

            assert [standing.free for standing in await redis.ledger.look(CLOSED)] == [999 - 300 - 16]
        await quiet(redis.ledger)

        assert [standing.free for standing in await redis.ledger.look(CLOSED)] == [999 - 304]


async def test_a_foreign_value_under_our_key_harms_only_its_call(server: RedisServer) -> None:
    async with watched(server, CALM) as redis:
        server.ask("SET", "penstock:{org}:r:odd", "foreign")
        with pytest.raises(StoreError):
            await redis.call(CLOSED, "odd")
        await redis.call(CLOSED, "even")

        assert redis.ledger.health.up


async def test_an_outage_leaves_no_sockets_behind(server: RedisServer) -> None:
    async with watched(server) as redis:
        await redis.call(CLOSED, "before")
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            server.kill()
            await until_down(redis)
            server.start()
            await redis.becomes(up=True)

        assert len(os.listdir("/proc/self/fd")) <= before + 1


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-lru", "volatile-ttl", "allkeys-random"])
async def test_a_redis_that_may_evict_quotas_is_complained_of(server: RedisServer, policy: str) -> None:
    store = redis_store_at(server, CALM)

    assert await store.complaint() is None

    server.ask("CONFIG", "SET", "maxmemory-policy", policy)

    assert policy in (await store.complaint() or "")
    await store.aclose()


async def test_keys_go_away_when_they_say_nothing_any_more(redis_server: RedisServer, redis_store: RedisStore) -> None:
    quick = Account("quick", (), (Rule(Limit.bucket("quick", 1000, 100_000), input=1),))
    async with Ledger(redis_store) as ledger:
        async with ledger.reserve(quick, "call", input_tokens=500, max_output=0):
            assert b"penstock:{quick}:l:quick" in redis_server.ask("KEYS", "penstock:{quick}:*")
        await quiet(ledger)
        async with asyncio.timeout(30):
            while b"l:quick" in redis_server.ask("KEYS", "penstock:{quick}:*"):
                await asyncio.sleep(0.01)

        assert redis_server.ask("ZCARD", "penstock:{quick}:leases") == b":0\r\n"


async def quiet(ledger: Ledger) -> None:
    """Wait until the ledger has nothing under way."""
    while ledger.tasks:
        await asyncio.wait(ledger.tasks)
