"""The store of the limits in the process: with a real Redis that is there, comes late, dies, or may evict."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from gateway.configuration.config import StoreConfig
from gateway.quotas.store import QuotaStore, UnfitStore
from gateway.telemetry.metrics import Metrics
from policies.account import OnFailure
from policies.secret import Secret
from tests.gateway.conftest import Gateway, http_upstream, model, running
from tests.rig.limited import limited, output_a_minute, requests_a_minute, tokens_a_minute
from tests.rig.redis_server import RedisServer
from tests.rig.upstream import Upstream, eventually

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
PATIENCE: dict[str, Any] = {"timeout_ms": 1000, "connect_timeout_ms": 1000}  # for a machine that is busy elsewhere


def store_at(server: RedisServer, said: list[str], **settings: Any) -> QuotaStore:
    password = settings.get("password")
    config = StoreConfig(url=f"unix://{server.path}", **(PATIENCE | settings))
    return QuotaStore(config, {} if password is None else {password: "s3cret"}, say=said.append)


@asynccontextmanager
async def opened(store: QuotaStore) -> AsyncIterator[QuotaStore]:
    try:
        await store.open()
        yield store
    finally:
        await store.aclose()


@asynccontextmanager
async def serving(
    store: QuotaStore, upstream: Upstream, on_failure: OnFailure
) -> AsyncIterator[tuple[Gateway, httpx.AsyncClient]]:
    tenant = limited(requests_a_minute(30), tokens_a_minute(100_000), output_a_minute(100_000), on_failure=on_failure)
    async with (
        opened(store),
        running(model("m", http_upstream(upstream.url)), tenants={"k": tenant}, ledger=store.ledger) as gateway,
        httpx.AsyncClient(base_url=gateway.url, headers={"authorization": "Bearer k"}, timeout=30) as client,
    ):
        yield gateway, client


async def ask(client: httpx.AsyncClient) -> httpx.Response:
    return await client.post("/v1/chat/completions", json=CHAT)


async def test_without_a_redis_limits_live_in_this_process() -> None:
    said: list[str] = []
    async with opened(QuotaStore(StoreConfig(), {}, say=said.append)) as store:
        assert store.where == "memory"
        assert store.state().up
    assert said == []


async def test_two_gateways_on_one_redis_hold_one_limit_together(tmp_path: Path, upstream: Upstream) -> None:
    with RedisServer(tmp_path) as server:
        async with (
            serving(store_at(server, []), upstream, OnFailure.CLOSED) as (_, one),
            serving(store_at(server, []), upstream, OnFailure.CLOSED) as (_, other),
        ):
            answers = await asyncio.gather(*[ask(client) for client in (one, other) for _ in range(20)])

            admitted = [answer.status_code for answer in answers].count(200)
            assert admitted in (30, 31)  # one may flow back meanwhile


async def test_a_redis_that_dies_and_comes_back_is_announced_and_lived_through(
    tmp_path: Path, upstream: Upstream
) -> None:
    said: list[str] = []
    with RedisServer(tmp_path) as server:
        store = store_at(server, said, replicas=3)
        async with serving(store, upstream, OnFailure.CLOSED) as (gateway, client):
            gateway.metrics.quota.store = store.state
            assert (await ask(client)).status_code == 200
            assert said == []
            server.kill()
            refused = await ask(client)

            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "quota_unavailable"
            assert refused.headers["retry-after"] == "1"
            assert len(said) == 1
            assert "is down" in said[0]
            told = gateway.metrics.exposition()
            assert b"penstock_store_up 0.0" in told
            assert b"penstock_store_down{reason=" in told
            assert b'penstock_errors_total{error="quota_unavailable"} 1.0' in told

            server.start()
            await eventually(lambda: store.ledger.health.up, within_s=30)
            assert (await ask(client)).status_code == 200
            assert any("is back after" in line for line in said)
            assert b"penstock_store_up 1.0" in gateway.metrics.exposition()


async def test_while_redis_is_away_a_replica_holds_its_share_and_says_so(tmp_path: Path, upstream: Upstream) -> None:
    with RedisServer(tmp_path) as server:
        async with serving(store_at(server, [], replicas=3), upstream, OnFailure.LOCAL) as (gateway, client):
            first = await ask(client)
            assert "x-penstock-degraded" not in first.headers
            assert first.headers["x-ratelimit-limit-requests"] == "30"
            server.kill()
            answers = [await ask(client) for _ in range(12)]

            assert {answer.headers["x-penstock-degraded"] for answer in answers} == {"quota"}
            assert answers[0].headers["x-ratelimit-limit-requests"] == "10"
            assert [answer.status_code for answer in answers].count(200) in (10, 11)
            await eventually(lambda: len(gateway.records) == 13)
            assert gateway.records[-1].quota is not None
            assert gateway.records[-1].quota.degraded


async def test_a_redis_that_is_not_there_at_the_start_is_found_when_it_comes(
    tmp_path: Path, upstream: Upstream
) -> None:
    said: list[str] = []
    server = RedisServer(tmp_path)
    store = store_at(server, said)
    async with serving(store, upstream, OnFailure.CLOSED) as (_, client):
        assert len(said) == 1
        assert (await ask(client)).status_code == 503

        with server:
            await eventually(lambda: store.ledger.health.up, within_s=30)
            assert (await ask(client)).status_code == 200
            await eventually(lambda: not store.ledger.tasks)  # settled before the server goes


async def test_a_redis_that_may_evict_quotas_is_refused_or_complained_of(tmp_path: Path) -> None:
    with RedisServer(tmp_path, "--maxmemory-policy", "allkeys-lru") as server:
        refusing = store_at(server, [])
        with pytest.raises(UnfitStore, match="allkeys-lru"):
            await refusing.open()
        await refusing.aclose()
        said: list[str] = []
        async with opened(store_at(server, said, eviction="warn")):
            assert len(said) == 1
            assert "allkeys-lru" in said[0]


async def test_one_that_may_evict_is_complained_of_when_it_comes_late(tmp_path: Path) -> None:
    said: list[str] = []
    server = RedisServer(tmp_path, "--maxmemory-policy", "allkeys-lru")
    async with opened(store_at(server, said)):
        with server:
            await eventually(lambda: any("allkeys-lru" in line for line in said), within_s=30)


async def test_a_password_comes_by_reference(tmp_path: Path) -> None:
    said: list[str] = []
    with RedisServer(tmp_path) as server:
        server.ask("CONFIG", "SET", "requirepass", "s3cret")
        async with opened(store_at(server, said)) as store:
            assert store.state().reason == "noauth"
        async with opened(store_at(server, said, password=Secret("env", "REDIS"))) as store:
            assert store.state().up
            assert "s3cret" not in "".join(said)


async def test_a_redis_that_lost_its_memory_is_told_anew_and_it_is_counted(tmp_path: Path) -> None:
    said: list[str] = []
    with RedisServer(tmp_path) as server:
        async with opened(store_at(server, said)) as store:
            server.kill()
            server.start()
            await store.ledger.look(limited(requests_a_minute(1)).terms("m").account)

            assert store.state().forgotten == 1
            metrics = Metrics("test")
            metrics.quota.store = store.state
            assert b"penstock_store_forgotten_total 1.0" in metrics.exposition()


async def test_a_redis_behind_tls_is_checked_against_its_own_roots(tmp_path: Path) -> None:
    authority = trustme.CA()
    roots, server_file = tmp_path / "roots.pem", tmp_path / "server.pem"
    authority.cert_pem.write_to_path(str(roots))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(server_file))
    port = free_port()
    files = ("--tls-cert-file", str(server_file), "--tls-key-file", str(server_file), "--tls-ca-cert-file", str(roots))
    said: list[str] = []
    config = StoreConfig(url=f"rediss://127.0.0.1:{port}", **PATIENCE)
    with RedisServer(tmp_path, "--tls-port", str(port), "--tls-auth-clients", "no", *files):
        async with opened(QuotaStore(config, {}, say=said.append, ca_file=str(roots))) as store:
            assert store.state().up
            assert said == []
        async with opened(QuotaStore(config, {}, say=said.append)) as store:
            assert store.state().reason == "connect"  # a certificate that nobody vouches for


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
