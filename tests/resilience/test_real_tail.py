"""The tail of `test_tail.py` over real sockets and in real time. `make prove-resilience`."""

import asyncio
import time
from random import Random

import httpx
import pytest

from gateway.attempts.recovery import Recovery
from gateway.telemetry.record import RequestRecord
from policies.hedge import HedgeTerms
from tests.gateway.conftest import http_upstream, model, running
from tests.rig.upstream import Upstream, scripted_upstream

RATE, SECONDS, LEARNT_S = 30, 40, 5.0
SLOW_S, USUAL_S = 1.0, 0.03
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}


async def tail(hedge: HedgeTerms | None, first: Upstream, second: Upstream) -> list[RequestRecord]:
    """Offer calls at a steady rate; give what is told of those that came once the quantile was known."""
    first.plan = lambda number: {"head_delay_s": SLOW_S if number % 20 == 7 else USUAL_S}
    second.plan = lambda number: {"head_delay_s": SLOW_S if number % 20 == 3 else USUAL_S}
    route = [http_upstream(server.url, str(number)) for number, server in enumerate((first, second))]
    recovery = Recovery(route, hedge=hedge, rng=Random(1))
    async with running(model("m", *route, recovery=recovery)) as gateway:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=gateway.url, timeout=30, limits=limits) as client:
            begun = time.monotonic()

            async def ask() -> None:
                response = await client.post("/v1/chat/completions", json=BODY)
                assert response.text.endswith("data: [DONE]\n\n")

            async with asyncio.TaskGroup() as calls:
                for number in range(RATE * SECONDS):
                    await asyncio.sleep(max(0.0, begun + number / RATE - time.monotonic()))
                    calls.create_task(ask())
        assert sum(upstream.in_flight for upstream in route) == 0
        return gateway.records


def quantile(records: list[RequestRecord], share: float) -> float:
    begun = records[0].time
    firsts = sorted(
        each.first_event_s for each in records if each.first_event_s is not None and each.time > begun + LEARNT_S
    )
    return firsts[int(share * len(firsts))]


def let_go_s(records: list[RequestRecord], *servers: Upstream) -> list[float]:
    """How long after the winner's first event each loser's server saw its connection closed."""
    begun = {each.id: attempt.first_event for each in records for attempt in each.attempts if not attempt.lost}
    left = [seen for server in servers for seen in server.seen if seen.ending == "left"]
    return sorted(seen.ended_at - (begun[seen.headers["x-request-id"]] or 0.0) for seen in left)


@pytest.mark.fault_row(20)
@pytest.mark.slow
async def test_hedges_halve_the_tail_over_sockets() -> None:
    async with scripted_upstream() as one, scripted_upstream() as other:
        plain = await tail(None, one, other)
    async with scripted_upstream() as first, scripted_upstream() as second:
        hedged = await tail(HedgeTerms(), first, second)

    extra = len(second.seen) / len(first.seen)
    lost = let_go_s(hedged, first, second)
    print(
        f"p50, p99 to the first event: {quantile(plain, 0.5):.3f}, {quantile(plain, 0.99):.3f} s; "
        f"hedged {quantile(hedged, 0.5):.3f}, {quantile(hedged, 0.99):.3f} s; {extra:.1%} more attempts; "
        f"{len(lost)} losers let go within {lost[len(lost) // 2] * 1e3:.1f} ms (median), {lost[-1] * 1e3:.1f} ms (most)"
    )
    assert quantile(hedged, 0.99) <= quantile(plain, 0.99) / 2
    assert len(second.seen) <= 0.05 * len(first.seen) + 10
    assert lost[int(0.9 * len(lost))] <= 0.05  # all but what a busy machine holds up
    assert all(sum(not attempt.lost for attempt in each.attempts) == 1 for each in hedged)
