"""A tenant that asks for twenty times what it may, beside one that asks for little: what each is told, over HTTP."""

import asyncio

import httpx
import pytest

from cache.embedded import EmbeddedStore
from cache.ledger import Ledger
from gateway.app import Bounds
from policies.account import Account
from policies.tenant import Tenant, Terms
from tests.gateway.conftest import http_upstream, model, running
from tests.rig.limited import Clock, account, requests_a_minute
from tests.rig.upstream import scripted_upstream

SHARE, TIMES, QUIET = 10, 20, 20
SLOTS, SERVICE_S = 2, 0.02
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "script": {"head_delay_s": SERVICE_S}}


def tenant(name: str, terms: Account) -> Tenant:
    told = Terms(terms)
    return Tenant(name, organisation=name, key=name, decide=lambda model: told)


@pytest.mark.fault_row(44)
@pytest.mark.parametrize("defended", [True, False])
async def test_the_noisy_one_is_told_its_limit_and_the_quiet_one_is_never_refused(defended: bool) -> None:
    """Without the limit, and without anything that tells them apart: one tenant, and a room for as many as come."""
    clock = Clock()
    limit = account(requests_a_minute(SHARE, "noisy/requests"), organisation="noisy")
    noisy = tenant("noisy", limit if defended else Account("noisy"))
    tenants = {"noisy": noisy, "quiet": tenant("quiet", Account("quiet")) if defended else noisy}
    bounds = Bounds(max_waiting=3, max_wait_s=5.0)
    async with (
        scripted_upstream() as server,
        Ledger(EmbeddedStore(clock), clock=clock) as ledger,
        running(
            model("m", http_upstream(server.url, slots=SLOTS)), tenants=tenants, ledger=ledger, bounds=bounds
        ) as gateway,
        httpx.AsyncClient(base_url=gateway.url, timeout=60, limits=httpx.Limits(max_connections=None)) as client,
    ):

        async def ask(who: str) -> httpx.Response:
            return await client.post("/v1/chat/completions", json=CHAT, headers={"authorization": f"Bearer {who}"})

        async def quietly() -> list[httpx.Response]:
            return [await ask("quiet") for _ in range(QUIET)]

        async def noisily() -> list[httpx.Response]:
            return [await ask("noisy") for _ in range(SHARE)]

        quiet, *loud = await asyncio.gather(quietly(), *(noisily() for _ in range(TIMES)))

    refused = [answer for each in loud for answer in each if answer.status_code == 429]
    assert (len(refused) >= (TIMES - 1) * SHARE) is defended
    for answer in refused:
        assert answer.headers["x-ratelimit-limit-requests"] == str(SHARE)
        assert answer.headers["x-ratelimit-remaining-requests"] == "0"
        assert answer.headers["x-ratelimit-reset-requests"]
        assert 0 < int(answer.headers["retry-after-ms"]) <= 6_000  # a minute by ten
        assert answer.json()["error"]["type"] == "rate_limit_error"
    assert ([answer.status_code for answer in quiet] == [200] * QUIET) is defended
