"""A real Redis on a unix socket, and both stores behind the same door."""

from collections.abc import AsyncIterator, Iterator

import pytest

from cache.embedded import EmbeddedStore
from cache.redis_address import Address, Door
from cache.redis_link import Patience
from cache.redis_store import RedisStore
from cache.redis_topology import Single
from cache.store import Store
from tests.rig.redis_server import RedisServer

CALM = Patience(connect_s=10.0, reply_s=10.0)  # a busy machine is no failure


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server that all tests share; each has organisations of its own."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
async def redis_store(redis_server: RedisServer) -> AsyncIterator[RedisStore]:
    """The store in that Redis."""
    store = redis_store_at(redis_server, CALM)
    await store.open()
    yield store
    await store.aclose()


@pytest.fixture(params=["embedded", "redis"])
async def store(request: pytest.FixtureRequest, redis_server: RedisServer) -> AsyncIterator[Store]:
    """Either store; the contract holds for both."""
    store: Store = EmbeddedStore() if request.param == "embedded" else redis_store_at(redis_server, CALM)
    yield store
    await store.aclose()


@pytest.fixture
def organisation(request: pytest.FixtureRequest) -> str:
    """A name that no other test uses."""
    return request.node.name


def redis_store_at(server: RedisServer, patience: Patience) -> RedisStore:
    """Make a store over a server's unix socket."""
    return RedisStore(lambda forgot: Single.at(Address(path=str(server.path)), Door(), patience, forgot))
