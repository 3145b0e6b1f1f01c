"""Limits over HTTP: what a caller is told, that it is true, and that no way leads around them."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from cache.embedded import EmbeddedStore
from cache.ledger import Ledger
from gateway.app import App
from gateway.dry_run.explain import Explain
from gateway.edge import CallEndpoint
from gateway.endpoints import Exposition, Models, Probe, Tokens
from gateway.requests_endpoint import RequestsUnderWay
from gateway.telemetry.log_line import LineWriter
from policies.bucket import Limit
from policies.compile import Source, compile_policy
from policies.holder import Measure, Rule
from policies.tenant import Tenant
from tests.gateway.conftest import Gateway, http_upstream, model, running
from tests.rig.limited import MINUTE_US, Clock, at_a_time, limited, requests_a_minute, tokens_a_minute
from tests.rig.upstream import Upstream, eventually

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


@pytest.mark.fault_row(44)
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


async def test_a_limit_on_tokens_refuses_until_just_when_it_said(upstream: Upstream, clock: Clock) -> None:
    tenant = limited(tokens_a_minute(7000, "acme tokens/min"))
    async with limiting(upstream, tenant, clock) as (gateway, client):
        usage = {"prompt_tokens": 6990, "completion_tokens": 0}
        body = {"choices": [{"index": 0, "message": {"content": ""}, "finish_reason": "stop"}], "usage": usage}
        spending = await client.post("/v1/chat/completions", json={**CHAT, "script": {"body": json.dumps(body)}})
        assert spending.status_code == 200
        await eventually(lambda: len(gateway.records) == 1)
        refused = await client.post("/v1/chat/completions", json=CHAT)

        assert refused.status_code == 429
        assert refused.headers["x-penstock-limit"] == "acme tokens/min"
        assert refused.headers["x-ratelimit-remaining-tokens"] == "10"
        estimate = int(refused.headers["x-penstock-input-tokens"].removesuffix(";estimate"))
        missing = estimate + 1 - 10  # a first token as well, and less what is left
        wait_us = -(-missing * 60_000_000 // 7000)
        assert refused.headers["retry-after-ms"] == str(-(-wait_us // 1000))

        clock.now += wait_us - 1
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 429

        clock.now += 1
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200


async def test_every_answer_of_a_limited_tenant_says_how_it_stands(upstream: Upstream, clock: Clock) -> None:
    tenant = limited(requests_a_minute(10), tokens_a_minute(100_000))
    async with limiting(upstream, tenant, clock, max_output=100) as (_, client):
        whole = await client.post("/v1/chat/completions", json=CHAT)
        stream = await client.post("/v1/chat/completions", json={**CHAT, "stream": True})
        failed = await client.post("/v1/chat/completions", json={**CHAT, "script": {"status": 500}})
        refused = await client.post("/v1/chat/completions", json={**CHAT, "max_tokens": 10**9})
        other = await client.post("/v1/completions", json={"model": "m", "prompt": "x"})

        assert [answer.status_code for answer in (whole, stream, failed, refused, other)] == [200, 200, 500, 400, 200]
        for index, answer in enumerate((whole, stream, failed, refused, other)):
            assert answer.headers["x-ratelimit-remaining-requests"] == str(9 - index)
            assert answer.headers["ratelimit"].startswith('"acme/requests";r=')
            if answer is not refused:  # before its tokens were counted
                assert int(answer.headers["x-ratelimit-remaining-tokens"]) < 100_000
                assert answer.headers["x-penstock-input-tokens"].endswith(";estimate")


async def test_who_has_no_limit_is_told_of_none(upstream: Upstream, clock: Clock) -> None:
    async with limiting(upstream, Tenant("free"), clock) as (gateway, client):
        answer = await client.post("/v1/chat/completions", json=CHAT)
        await eventually(lambda: len(gateway.records) == 1)

        assert not [name for name in answer.headers if "ratelimit" in name or "penstock" in name]
        assert gateway.records[0].quota is None


async def test_callers_who_name_their_requests_alike_are_charged_each(upstream: Upstream, clock: Clock) -> None:
    async with limiting(upstream, limited(requests_a_minute(2)), clock) as (_, client):
        named = {"x-request-id": "mine"}
        statuses = [(await client.post("/v1/chat/completions", json=CHAT, headers=named)).status_code for _ in range(3)]

        assert statuses == [200, 200, 429]


async def test_concurrency_is_held_while_answers_run(upstream: Upstream, clock: Clock) -> None:
    async with limiting(upstream, limited(at_a_time(2)), clock) as (_, client):
        body = {**CHAT, "stream": True, "script": {"hang_at": 2}}
        async with (
            client.stream("POST", "/v1/chat/completions", json=body) as one,
            client.stream("POST", "/v1/chat/completions", json=body) as two,
        ):
            assert (one.status_code, two.status_code) == (200, 200)
            refused = await client.post("/v1/chat/completions", json=CHAT)
            assert refused.status_code == 429
            assert refused.headers["x-should-retry"] == "true"
        await eventually(lambda: upstream.active == 0)
        await asyncio.sleep(0)
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200


async def test_shadows_are_counted_and_logged_and_refuse_nobody(upstream: Upstream, clock: Clock) -> None:
    shadow = Rule(Limit.bucket("acme/web requests/min", 1, MINUTE_US, shadow=True), call=1, measure=Measure.REQUESTS)
    async with limiting(upstream, limited(shadow), clock) as (gateway, client):
        for _ in range(3):
            assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
        await eventually(lambda: len(gateway.records) == 3)

        told = gateway.metrics.exposition()
        assert b'penstock_quota_shadow_refusals_total{measure="requests",scope="tenant"} 2.0' in told
        assert gateway.records[-1].quota is not None
        line = json.loads(LineWriter().write(gateway.records[-1]))
        assert line["quota"]["shadowed"] == ["acme/web requests/min"]


async def test_a_refusal_is_counted_and_logged(upstream: Upstream, clock: Clock) -> None:
    async with limiting(upstream, limited(requests_a_minute(1, "acme/web#k requests/min")), clock) as (gateway, client):
        for _ in range(2):
            await client.post("/v1/chat/completions", json={**CHAT, "max_tokens": 9})
        await eventually(lambda: len(gateway.records) == 2)

        told = gateway.metrics.exposition()
        assert b'penstock_quota_refusals_total{measure="requests",scope="key"} 1.0' in told
        assert b'penstock_errors_total{error="rate_limited"} 1.0' in told
        line = json.loads(LineWriter().write(gateway.records[1]))
        assert line["quota"]["refused"] == "acme/web#k requests/min"
        assert (line["tenant"], line["organisation"], line["key"]) == ("acme/web", "acme", "key-1")
        assert line["asked_output"] == 9


# No way leads around


def entrances(app: App) -> list[tuple[str, CallEndpoint]]:
    """Walk the table of routes: every endpoint makes calls, or is known to make none."""
    found = []
    for route in app.routes:
        endpoint = getattr(route.endpoint, "__self__", route.endpoint)
        if isinstance(endpoint, CallEndpoint):
            assert route.method == "POST"
            found.append((route.path, endpoint))
        else:
            silent = Models | Tokens | Explain | RequestsUnderWay | Probe | Exposition
            assert isinstance(endpoint, silent), "does it make calls?"
    return found


async def test_every_route_that_makes_calls_goes_through_the_one_handler(upstream: Upstream, clock: Clock) -> None:
    everything = {**CHAT, "prompt": "hi", "input": "hi"}
    async with limiting(upstream, limited(requests_a_minute(1)), clock) as (gateway, client):
        doors = entrances(gateway.app)
        assert {path for path, _ in doors} >= {"/v1/chat/completions", "/v1/completions"}
        assert len({id(endpoint._handler) for _, endpoint in doors}) == 1

        for path, _ in doors:
            clock.now += MINUTE_US
            assert (await client.post(path, json=everything)).status_code == 200
            for other, _ in doors:
                for stream in (False, True):
                    refused = await client.post(other, json={**everything, "stream": stream})
                    assert refused.status_code == 429, other
                    assert refused.headers["x-penstock-limit"] == "acme/requests"


@pytest.mark.parametrize("named", [False, True])
async def test_concurrent_first_requests_of_an_unknown_tenant_are_held_to_the_default(
    upstream: Upstream, clock: Clock, named: bool
) -> None:
    text = """
    defaults: {limits: [{requests: 5/min}]}
    organisations: {acme: {}}
    """
    policy = compile_policy([Source("policy.yaml", text)], served=["m"])
    stranger = policy.find("acme", "search" if named else None, "never-seen", None)
    assert stranger is not None
    async with limiting(upstream, stranger, clock) as (_, client):
        answers = await asyncio.gather(*[client.post("/v1/chat/completions", json=CHAT) for _ in range(60)])
        statuses = [answer.status_code for answer in answers]

        assert (statuses.count(200), statuses.count(429)) == (5, 55)
