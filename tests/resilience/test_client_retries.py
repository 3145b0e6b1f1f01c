"""The official client with its own retries before a gateway with its own: what an upstream gets of both."""

import asyncio
from random import Random

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam

from gateway.attempts import dispatch
from gateway.attempts.attempt import Failed
from gateway.attempts.recovery import Recovery
from gateway.call import Call
from gateway.errors import GatewayError
from policies.retry_budget import BudgetTerms
from tests.gateway.conftest import http_upstream, model, running
from tests.rig.upstream import scripted_upstream

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]
CALLS, AT_A_TIME = 500, 50


async def attempts_per_call(budget: BudgetTerms | None) -> tuple[float, float]:
    """Half of all attempts fail. Give the upstream's attempts and the answers for each call of the client's user."""
    rng = Random(5)
    async with scripted_upstream() as server:
        server.plan = lambda _: {"status": 503} if rng.random() < 0.5 else {}
        upstream = http_upstream(server.url)
        served = model("m", upstream, recovery=Recovery((upstream,), budget=budget, rng=Random(1)))
        async with running(served) as gateway:
            places, answered = asyncio.Semaphore(AT_A_TIME), 0
            async with AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="unused", timeout=60) as client:

                async def ask() -> int:
                    async with places:
                        try:
                            await client.chat.completions.create(model="m", messages=MESSAGES)
                        except openai.APIStatusError:
                            return 0
                        return 1

                answered = sum(await asyncio.gather(*(ask() for _ in range(CALLS))))
            return len(server.seen) / CALLS, answered / CALLS


@pytest.mark.fault_row(18)
async def test_with_half_of_all_attempts_failing_an_upstream_gets_one_and_a_half_for_each_call_at_most() -> None:
    attempts, answered = await attempts_per_call(None)
    print(f"{attempts:.2f} attempts a call, {answered:.1%} answered")

    assert attempts <= 1.5
    assert answered > 0.45


@pytest.mark.fault_row(18, removed=True)
async def test_without_a_budget_and_a_word_to_the_client_both_multiply(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control arm: three attempts here for each of three there."""

    def silent(failed: Failed, attempts_left: int, *, budget_spent: bool) -> GatewayError:
        return failed.error

    def unheard(call: Call) -> int:
        return 0

    monkeypatch.setattr(dispatch, "told", silent)
    monkeypatch.setattr(dispatch, "client_retries", unheard)
    attempts, answered = await attempts_per_call(BudgetTerms(ratio=1000.0, floor_per_s=10_000.0))
    print(f"control: {attempts:.2f} attempts a call, {answered:.1%} answered")

    assert attempts > 1.8
    assert answered > 0.98
