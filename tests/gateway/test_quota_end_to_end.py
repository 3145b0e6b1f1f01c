"""Limits over HTTP: what a caller is told, that it is true, and that no way leads around them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from cache.embedded import EmbeddedStore
from cache.ledger import Ledger
from policies.tenant import Tenant
from tests.gateway.conftest import Gateway, http_upstream, model, running
from tests.rig.limited import Clock, limited, requests_a_minute
from tests.rig.upstream import Upstream

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
KEY = {"authorization": "Bearer k"}


@asynccontextmanager
async def limiting(
    upstream: Upstream, tenant: Tenant, clock: Clock, **settings: Any
) -> AsyncIterator[tuple[Gateway, httpx.AsyncClient]]:
    """A gateway with one tenant, whose limits live in virtual time."""
    async with (
        Ledger(EmbeddedStore(clock), clock=clock) as ledger,
        running(model("m", http_upstream(upstream.url), **settings), tenants={"k": tenant}, ledger=ledger) as gateway,
        httpx.AsyncClient(base_url=gateway.url, headers=KEY, timeout=30) as client,
    ):
        yield gateway, client


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def test_a_limit_on_requests_refuses_and_says_truly_when_to_come_back(upstream: Upstream, clock: Clock) -> None:
    async with limiting(upstream, limited(requests_a_minute(7)), clock) as (_, client):
        for _ in range(7):
            assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
        refused = await client.post("/v1/chat/completions", json=CHAT)

        assert refused.status_code == 429
        error = refused.json()["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
        assert "`acme/requests`" in error["message"]
        assert "7 requests, 0 left" in error["message"]
        assert "try again in 8.572s" in error["message"]  # 60 s / 7, rounded up
        assert refused.headers["x-penstock-limit"] == "acme/requests"
        assert refused.headers["retry-after"] == "9"
        assert refused.headers["retry-after-ms"] == "8572"
        assert refused.headers["x-should-retry"] == "true"

        clock.now += 8_571_428
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 429

        clock.now += 1
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
