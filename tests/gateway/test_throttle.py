"""Throttle alone: who is let in, for how long, and that who has no limit pays nothing for those of others."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import pytest

from cache.embedded import EmbeddedStore
from cache.ledger import Ledger
from gateway.call import Call, ChatPrompt, Event, Operation, Reply, Request
from gateway.errors import BadRequest, QuotaUnavailable, RateLimited
from gateway.scope import Scope
from gateway.stages.throttle import Throttle
from policies.account import Account
from policies.bucket import Limit
from policies.holder import Measure, Rule
from policies.reservation import Answer, Step, Verdict
from policies.tenant import UNLIMITED, Terms
from tests.rig.limited import MINUTE_US, Clock, account, at_a_time, requests_a_minute


class Counted(EmbeddedStore):
    """An embedded store that counts its steps."""

    steps = 0

    def take(self, organisation: str, step: Step, now: int | None = None) -> Answer:
        self.steps += 1
        return super().take(organisation, step, now)


class Late:
    """A store whose every answer is that the step came too late."""

    async def apply(self, organisation: str, step: Step, now: int | None = None) -> Answer:
        return Answer(Verdict.LATE, 1)

    def clock(self, organisation: str) -> int:
        return 0

    async def probe(self) -> None: ...

    async def aclose(self) -> None: ...


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> Counted:
    return Counted(clock)


@pytest.fixture
def throttle(store: Counted, clock: Clock) -> Throttle:
    return Throttle(Ledger(store, clock=clock))


async def empty() -> AsyncGenerator[Event, None]:
    return
    yield


async def answer(call: Call) -> Reply:
    return Reply(200, {"x-inner": "1"}, empty())


def call(held: Account, name: str = "the caller's own name") -> Call:
    request = Request(Operation.CHAT, "m", ChatPrompt([{"role": "user", "content": "hi"}]))
    asked = Call(name, "/v1/chat/completions", 0.0, b"{}", {}, request, 1e9, Scope())
    asked.terms = replace(UNLIMITED, account=held)
    return asked


async def test_without_limits_nothing_is_asked_and_nothing_is_made(throttle: Throttle, store: Counted) -> None:
    asked = call(Terms(Account("free")).account)
    reply = await throttle(asked, answer)

    assert store.steps == 0
    assert asked.quota is None
    assert reply.headers == {"x-inner": "1"}


async def test_a_place_is_kept_until_the_call_is_over(throttle: Throttle) -> None:
    held = account(at_a_time(1))
    first = call(held)
    async with first.scope:
        await throttle(first, answer)
        with pytest.raises(RateLimited, match="1 requests at the same time, 0 left"):
            await throttle(call(held), answer)
    async with (second := call(held)).scope:
        await throttle(second, answer)


@pytest.mark.parametrize("error", [BadRequest("no"), asyncio.CancelledError()])
async def test_a_place_is_given_back_however_the_call_ends(throttle: Throttle, error: BaseException) -> None:
    async def fail(call: Call) -> Reply:
        raise error

    held = account(at_a_time(1))
    for _ in range(3):
        asked = call(held)
        with pytest.raises(type(error)):
            async with asked.scope:
                await throttle(asked, fail)


async def test_an_error_behind_it_bears_the_headers_too(throttle: Throttle) -> None:
    async def fail(call: Call) -> Reply:
        raise BadRequest("no", headers={"x-inner": "1"})

    asked = call(account(requests_a_minute(5)))
    with pytest.raises(BadRequest) as caught:
        async with asked.scope:
            await throttle(asked, fail)

    assert caught.value.headers["x-ratelimit-remaining-requests"] == "4"
    assert caught.value.headers["x-inner"] == "1"


async def test_two_calls_of_one_name_are_two_calls(throttle: Throttle) -> None:
    held = account(requests_a_minute(2))
    for _ in range(2):
        async with (asked := call(held, "same")).scope:
            await throttle(asked, answer)
    with pytest.raises(RateLimited):
        async with (asked := call(held, "same")).scope:
            await throttle(asked, answer)


async def test_a_refused_call_costs_nothing_on_any_limit(throttle: Throttle, clock: Clock) -> None:
    both = account(requests_a_minute(100, "wide"), requests_a_minute(1, "narrow"))
    async with (asked := call(both)).scope:
        await throttle(asked, answer)
    for _ in range(5):
        with pytest.raises(RateLimited) as caught:
            async with (asked := call(both)).scope:
                await throttle(asked, answer)

        assert asked.quota is not None
        assert asked.quota.refused is both.entry[1]
        assert caught.value.headers["x-penstock-limit"] == "narrow"
        assert caught.value.headers["x-ratelimit-remaining-requests"] == "0"
        [wide, _] = await throttle._ledger.look(both)
        assert wide.free == 99


async def test_a_shadow_limit_refuses_nobody_and_is_noted(throttle: Throttle) -> None:
    shadow = Rule(Limit.bucket("shadow", 1, MINUTE_US, shadow=True), call=1, measure=Measure.REQUESTS)
    held = account(shadow)
    noted: list[Any] = []
    for _ in range(3):
        async with (asked := call(held)).scope:
            await throttle(asked, answer)
        assert asked.quota is not None
        noted.append(asked.quota.shadowed)

    assert noted == [(), (shadow.limit,), (shadow.limit,)]


async def test_a_store_that_cannot_say_is_a_503_that_says_when_to_come_again() -> None:
    async with Ledger(Late()) as ledger:
        asked = call(account(requests_a_minute(5)))
        with pytest.raises(QuotaUnavailable) as caught:
            async with asked.scope:
                await Throttle(ledger)(asked, answer)

    assert (caught.value.status, caught.value.code) == (503, "quota_unavailable")
    assert caught.value.headers["retry-after"] == "1"
