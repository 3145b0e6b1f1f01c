"""The outage of `test_outage.py` over real sockets and in real time: a minute and a half. `make prove-resilience`."""

import asyncio
import time
from random import Random

import httpx
import pytest

from gateway.attempts.recovery import Recovery
from policies.breaker import BreakerTerms
from tests.gateway.conftest import http_upstream, model, running
from tests.rig.upstream import scripted_upstream

RATE, DOWN_S, HEALED_S, OVER_S = 30, 10.0, 70.0, 90.0
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
WORDS = ["a", "b", "c"]


@pytest.mark.fault_row(17)
@pytest.mark.slow
@pytest.mark.parametrize("fault", [{"status": 503}, {"reset_at": "accept"}, {"error_at": 0}])
async def test_a_minute_of_outage_over_sockets(fault: dict[str, object]) -> None:
    begun = time.monotonic()
    sent: list[float] = []
    answers: list[tuple[float, int]] = []  # when a call was due, and its status

    def plan(number: int) -> dict[str, object]:
        sent.append(time.monotonic() - begun)
        return fault if DOWN_S <= sent[-1] < HEALED_S else {"words": WORDS, "chunk_delay_s": 0.01}

    async with scripted_upstream() as server:
        server.plan = plan
        upstream = http_upstream(server.url)
        recovery = Recovery((upstream,), breakers={upstream: BreakerTerms()}, rng=Random(1))
        async with running(model("m", upstream, recovery=recovery)) as gateway:
            limits = httpx.Limits(max_connections=None)
            async with httpx.AsyncClient(base_url=gateway.url, timeout=30, limits=limits) as client:

                async def ask(due_s: float) -> None:
                    response = await client.post("/v1/chat/completions", json=BODY)
                    whole = response.text.endswith("data: [DONE]\n\n")
                    answers.append((due_s, response.status_code if whole or response.status_code != 200 else 0))

                async with asyncio.TaskGroup() as calls:
                    for number in range(int(RATE * OVER_S)):
                        due_s = number / RATE
                        await asyncio.sleep(max(0.0, begun + due_s - time.monotonic()))
                        calls.create_task(ask(due_s))

    def attempts(since: float, until: float) -> int:
        return sum(since <= at < until for at in sent)

    def good(since: float, until: float) -> float:
        told = [status for due_s, status in answers if since <= due_s < until]
        return sum(status == 200 for status in told) / len(told)

    print(
        f"{fault}: {attempts(DOWN_S, HEALED_S)} attempts in the outage, {RATE * 60} calls; "
        f"{attempts(DOWN_S + 2, HEALED_S)} from its third second on; "
        f"{good(HEALED_S, HEALED_S + 5):.1%} good in the 5 s after it, {good(HEALED_S + 5, OVER_S):.1%} then"
    )
    assert attempts(DOWN_S, HEALED_S) <= 1.2 * RATE * 60 + 3 * 60
    assert attempts(DOWN_S + 2, HEALED_S) <= 60
    assert good(HEALED_S + 5, OVER_S) >= 0.95
    assert good(0.0, DOWN_S - 1) == 1.0
    assert all(status for _, status in answers)
