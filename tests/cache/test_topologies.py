"""Clusters and sentinels, with real servers: one organisation on one node, and the master wherever it is."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from cache.errors import StoreUnavailable
from cache.redis_address import Address, Door, parse_url
from cache.redis_store import RedisStore
from cache.redis_topology import NUM_SLOTS, Cluster, Single, slot
from policies.bucket import Kind, Limit
from policies.reservation import Claim, Step, Verdict
from tests.cache.conftest import CALM
from tests.rig.redis_server import RedisServer

DAY = Limit.budget("day", Kind.DAY, 100)


def free_port() -> int:
    """Find a port that nobody listens on just now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def reserve(name: str, tokens: int) -> Step:
    return Step(name, 1, (Claim(DAY, 0, tokens),), 30_000_000)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[list[RedisServer]]:
    """Two nodes with half of the slots each."""
    with ExitStack() as stack:
        nodes = []
        for index in range(2):
            folder = tmp_path / str(index)
            folder.mkdir()
            bus = ["--cluster-port", str(free_port())]
            nodes.append(RedisServer(folder, "--cluster-enabled", "yes", *bus, port=free_port()))
            stack.enter_context(nodes[-1])
        half = NUM_SLOTS // 2
        nodes[0].ask("CLUSTER", "ADDSLOTSRANGE", "0", str(half - 1))
        nodes[1].ask("CLUSTER", "ADDSLOTSRANGE", str(half), str(NUM_SLOTS - 1))
        yield nodes


async def meet(nodes: list[RedisServer]) -> None:
    """Introduce the nodes, and wait until each says that the cluster is whole."""
    bus = nodes[1].settings[nodes[1].settings.index("--cluster-port") + 1]
    nodes[0].ask("CLUSTER", "MEET", "127.0.0.1", str(nodes[1].port), bus)
    async with asyncio.timeout(60):
        for node in nodes:
            while b"cluster_state:ok" not in node.ask("CLUSTER", "INFO"):
                await asyncio.sleep(0.05)


async def test_each_organisation_lies_on_the_node_of_its_slot(cluster: list[RedisServer]) -> None:
    await meet(cluster)
    store = RedisStore(lambda _: Cluster([Address(port=cluster[0].port)], Door(), CALM))
    try:
        for organisation in ("acme", "globex", "initech", "umbrella", "hooli", "with {braces}"):
            assert (await store.apply(organisation, reserve("a", 60))).verdict is Verdict.GRANTED
            assert (await store.apply(organisation, reserve("b", 60))).verdict is Verdict.REFUSED
    finally:
        await store.aclose()

    assert all(node.ask("DBSIZE") != b":0\r\n" for node in cluster)


async def test_a_slot_that_has_moved_is_followed_and_one_on_its_way_is_not_there(cluster: list[RedisServer]) -> None:
    await meet(cluster)
    store = RedisStore(lambda _: Cluster([Address(port=cluster[0].port)], Door(), CALM))
    number, ids = str(slot("acme")), [node.ask("CLUSTER", "MYID").split(b"\r\n")[1].decode() for node in cluster]
    source = 0 if slot("acme") < NUM_SLOTS // 2 else 1
    try:
        assert (await store.apply("acme", reserve("a", 60))).verdict is Verdict.GRANTED
        cluster[1 - source].ask("CLUSTER", "SETSLOT", number, "IMPORTING", ids[source])
        cluster[source].ask("CLUSTER", "SETSLOT", number, "MIGRATING", ids[1 - source])
        with pytest.raises(StoreUnavailable) as error:
            await store.apply("acme", reserve("b", 20))

        assert error.value.reason in ("ask", "tryagain")

        cluster[source].ask("FLUSHALL")  # what a migration leaves behind
        for node in (cluster[1 - source], cluster[source]):
            node.ask("CLUSTER", "SETSLOT", number, "NODE", ids[1 - source])

        assert (await store.apply("acme", reserve("c", 60))).verdict is Verdict.GRANTED
        assert cluster[1 - source].ask("DBSIZE") != b":0\r\n"
    finally:
        await store.aclose()


async def test_a_node_that_was_started_anew_is_known_to_have_forgotten(cluster: list[RedisServer]) -> None:
    await meet(cluster)
    forgotten: list[int] = []
    seeds = [Address(port=node.port) for node in cluster]
    store = RedisStore(lambda forgot: Cluster(seeds, Door(), CALM, forgot))
    store.on_forgotten(lambda: forgotten.append(1))
    holder = cluster[0 if slot("acme") < NUM_SLOTS // 2 else 1]
    try:
        assert (await store.apply("acme", reserve("a", 60))).verdict is Verdict.GRANTED
        holder.kill()
        holder.start()
        async with asyncio.timeout(60):
            while not forgotten:
                with suppress(StoreUnavailable):  # until the cluster is whole again
                    await store.apply("acme", reserve("b", 60))
                await asyncio.sleep(0.02)
    finally:
        await store.aclose()

    assert forgotten == [1]


async def test_the_master_is_the_one_that_the_sentinels_name(tmp_path: Path) -> None:
    with ExitStack() as stack:
        folder = tmp_path / "master"
        folder.mkdir()
        master = stack.enter_context(RedisServer(folder, port=free_port()))
        folder = tmp_path / "sentinel"
        folder.mkdir()
        sentinel = stack.enter_context(
            RedisServer(folder, port=free_port(), sentinel=f"sentinel monitor quotas 127.0.0.1 {master.port} 1")
        )
        seats = [Address(port=free_port()), Address(port=sentinel.port)]  # the first is not there
        store = RedisStore(lambda forgot: Single.watched(seats, "quotas", Door(), CALM, forgot))
        try:
            assert (await store.apply("acme", reserve("a", 60))).verdict is Verdict.GRANTED
        finally:
            await store.aclose()

        assert master.ask("DBSIZE") != b":0\r\n"


async def test_a_password_and_a_database_are_said_at_the_door(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        server.ask("CONFIG", "SET", "requirepass", "sesame open")
        address, door = parse_url(f"unix://:sesame%20open@{server.path}?db=3")
        store = RedisStore(lambda forgot: Single.at(address, door, CALM, forgot))
        try:
            assert (await store.apply("acme", reserve("a", 60))).verdict is Verdict.GRANTED
        finally:
            await store.aclose()
        assert "sesame" not in repr(door)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://db:7000/2", (Address("db", 7000), Door(database=2))),
        ("redis://user:p%40ss@db", (Address("db", 6379), Door("user", "p@ss"))),
        ("rediss://db", (Address("db", 6379), Door(tls=True))),
        ("unix:///run/redis.sock?db=1", (Address(path="/run/redis.sock"), Door(database=1))),
    ],
)
def test_an_address_is_read_from_its_url(url: str, expected: tuple[Address, Door]) -> None:
    assert parse_url(url) == expected


@pytest.mark.parametrize("url", ["", "db:6379", "http://db", "redis://", "redis://db/one", "unix://", "unix:///x?db=a"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_url(url)


@pytest.mark.parametrize(("tag", "expected"), [("123456789", 12739), ("foo", 12182), ("", 0)])
def test_slots_are_counted_as_redis_counts_them(tag: str, expected: int) -> None:
    assert slot(tag) == expected
