"""A limit that is found out learns from what attempts really meet, over a socket."""

import asyncio
from typing import Any

import httpx
import pytest

from gateway.attempts.recovery import Recovery
from gateway.upstreams.http import HttpUpstream
from policies.concurrency import AimdLimit, AimdTerms, ConcurrencyLimiter, Gradient2Limit, Limit
from policies.retry import RetryTerms
from tests.gateway.conftest import http_upstream, model, running
from tests.rig.upstream import Upstream, eventually

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def limited(upstream: Upstream, limit: Limit) -> HttpUpstream:
    served = http_upstream(upstream.url)
    served.limiter = ConcurrencyLimiter(limit)
    return served


async def ask(
    served: HttpUpstream, times: int, *, at_once: bool = False, stream: bool = True, **script: Any
) -> list[int]:
    """Send so many requests, without retries; give the statuses."""
    recovery = Recovery((served,), retry=RetryTerms(max_attempts=1))
    async with (
        running(model("m", served, recovery=recovery)) as gateway,
        httpx.AsyncClient(base_url=gateway.url, timeout=30) as client,
    ):

        async def once() -> int:
            body = CHAT | {"stream": stream, "script": script}
            return (await client.post("/v1/chat/completions", json=body)).status_code

        if at_once:
            return await asyncio.gather(*[once() for _ in range(times)])
        return [await once() for _ in range(times)]


@pytest.mark.parametrize("limit", [AimdLimit, Gradient2Limit])
async def test_an_upstream_that_refuses_is_given_fewer(upstream: Upstream, limit: type[AimdLimit]) -> None:
    served = limited(upstream, limit())

    assert await ask(served, 6, status=429) == [429] * 6
    assert served.limiter is not None
    told = served.limiter.snapshot()
    assert told.limit < 20
    assert (told.dropped, told.in_flight) == (6, 0)


async def test_what_the_caller_did_wrong_says_nothing(upstream: Upstream) -> None:
    served = limited(upstream, AimdLimit())

    assert await ask(served, 6, status=400) == [400] * 6
    assert served.limiter is not None
    assert (served.limiter.snapshot().limit, served.limiter.snapshot().dropped) == (20, 0)


@pytest.mark.parametrize("stream", [True, False])
async def test_an_upstream_that_serves_all_it_gets_is_given_more(upstream: Upstream, stream: bool) -> None:
    served = limited(upstream, AimdLimit(AimdTerms(initial=2, least=1)))

    statuses = await ask(served, 60, at_once=True, stream=stream, words=["a"], chunk_delay_s=0.001)

    assert statuses == [200] * 60
    assert served.limiter is not None
    assert served.limiter.snapshot().limit >= 6
    await eventually(lambda: served.in_flight == 0)


async def test_no_more_are_at_the_upstream_than_the_limit_says(upstream: Upstream) -> None:
    served = http_upstream(upstream.url, slots=3)
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, upstream.active)
            await asyncio.sleep(0.001)

    watching = asyncio.ensure_future(watch())
    statuses = await ask(served, 30, at_once=True, words=["a", "b"], chunk_delay_s=0.002)
    watching.cancel()

    assert statuses == [200] * 30
    assert 1 <= most <= 3 + 1  # one that has ended may still be on its way out of the rig
