"""What headers say of limits: the form, which limit is told, and that nothing is told that is not so."""

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cache.embedded import EmbeddedStore
from cache.ledger import Ledger
from cache.reservation import LimitExceeded, Standing
from gateway.call import Call, ChatPrompt, Operation, Request, TokenCount
from gateway.quotas.error import go_duration, header_text, refusal
from gateway.quotas.headers import MAX_KNOWN, LimitHeaders, reset_us
from gateway.quotas.quota import Quota, level_of
from gateway.scope import Scope
from policies.account import Account
from policies.bucket import Kind, Level, Limit
from policies.holder import Measure, Rule
from tests.rig.limited import MINUTE_US, Clock, account, at_a_time, output_a_minute, requests_a_minute, tokens_a_minute

HOUR_US = 60 * MINUTE_US


def call() -> Call:
    request = Request(Operation.CHAT, "m", ChatPrompt([{"role": "user", "content": "hi"}]))
    return Call("id", "/v1/chat/completions", 0.0, b"{}", {}, request, 1e9, Scope())


async def told(account: Account, *, input_tokens: int = 0, max_output: int = 0) -> dict[str, str]:
    """Give the headers of one call that was let in."""
    clock = Clock()
    ledger = Ledger(EmbeddedStore(clock), clock=clock)
    quota = Quota(account)
    quota.entry = ledger.allow(account, "a")
    quota.tokens = ledger.reserve(account, "a", input_tokens=input_tokens, max_output=max_output)
    async with quota.entry, quota.tokens:
        return LimitHeaders().of(call(), quota, {})


@pytest.mark.parametrize(
    ("us", "expected"),
    [
        (0, "0s"),
        (1, "1ms"),
        (12_000, "12ms"),
        (12_001, "13ms"),
        (999_999, "1s"),
        (1_000_000, "1s"),
        (1_500_000, "1.5s"),
        (8_640_000, "8.64s"),
        (59_999_001, "1m0s"),
        (360_000_000, "6m0s"),
        (72_500_000, "1m12.5s"),
        (HOUR_US, "1h0m0s"),
        (25 * HOUR_US + 61_000_000, "25h1m1s"),
    ],
)
def test_durations_are_written_as_go_does_and_never_too_short(us: int, expected: str) -> None:
    assert go_duration(us) == expected


async def test_requests_and_tokens_are_told_as_they_stand_behind_the_reservation() -> None:
    headers = await told(account(requests_a_minute(60), tokens_a_minute(6000)), input_tokens=400, max_output=100)

    assert headers == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "6000",
        "x-ratelimit-remaining-tokens": "5500",
        "x-ratelimit-reset-tokens": "5s",  # what is held counts as used
        "ratelimit-policy": '"acme/requests";q=60;qu="requests";w=60, "acme/tokens";q=6000;qu="tokens";w=60',
        "ratelimit": '"acme/requests";r=59;t=1, "acme/tokens";r=5500;t=5',
    }


async def test_of_several_limits_the_one_with_the_least_left_is_told() -> None:
    wide, narrow = requests_a_minute(1000, "acme requests/min"), requests_a_minute(5, "acme/web requests/min")
    headers = await told(account(wide, narrow, tokens_a_minute(900, "acme tokens/min"), output_a_minute(50, "o")))

    assert headers["x-ratelimit-limit-requests"] == "5"
    assert headers["x-ratelimit-limit-tokens"] == "50"
    assert headers["ratelimit"].startswith('"acme/web requests/min";r=4;t=12, "acme tokens/min"')


async def test_neither_concurrency_nor_costs_are_tokens() -> None:
    cost = Rule(Limit.budget("acme cost/month", Kind.MONTH, 10**9), input=1, measure=Measure.COST)
    headers = await told(account(at_a_time(3), cost))

    assert not [name for name in headers if name.startswith("x-ratelimit-")]
    assert headers["ratelimit-policy"] == (
        '"acme/concurrency";q=3;qu="concurrent-requests", "acme cost/month";q=1000000000;qu="nano-usd"'
    )
    assert headers["ratelimit"].startswith('"acme/concurrency";r=2, "acme cost/month";r=1000000000;t=')


async def test_a_shadow_limit_is_not_told() -> None:
    shadow = Rule(Limit.bucket("s", 1, MINUTE_US, shadow=True), call=1, measure=Measure.REQUESTS)

    assert await told(account(shadow)) == {}


async def test_a_day_is_a_window_and_a_month_is_none_of_fixed_length() -> None:
    day = Rule(Limit.budget("d", Kind.DAY, 100), input=1)
    month = Rule(Limit.budget("m", Kind.MONTH, 1000), output=1, measure=Measure.OUTPUT)
    headers = await told(account(day, month))

    assert headers["ratelimit-policy"] == '"d";q=100;qu="tokens";w=86400, "m";q=1000;qu="output-tokens"'


async def test_a_name_cannot_break_out_of_its_header() -> None:
    rule = requests_a_minute(5, 'a"\\\r\nx: y\u2028ü')
    headers = await told(account(rule))

    assert headers["ratelimit"].startswith('"a\\"\\\\%0D%0Ax: y%E2%80%A8%C3%BC";r=4')
    assert header_text("plain name/*") == "plain name/*"


@pytest.mark.parametrize(("exact", "expected"), [(True, "12"), (False, "12;estimate")])
async def test_an_estimated_input_is_marked(exact: bool, expected: str) -> None:
    asked = call()
    asked.tokens = TokenCount(12, exact)
    headers = LimitHeaders().of(asked, Quota(account()), {"x-other": "kept"})

    assert headers == {"x-penstock-input-tokens": expected, "x-other": "kept"}


async def test_what_is_remembered_of_limits_is_bounded_and_follows_a_reload() -> None:
    writer, clock = LimitHeaders(), Clock()
    ledger = Ledger(EmbeddedStore(clock), clock=clock)

    async def say(rule: Rule) -> dict[str, str]:
        quota = Quota(account(rule))
        quota.entry = ledger.allow(quota.account, f"call-{rule.limit.key}-{rule.limit.capacity}")
        async with quota.entry:
            return writer.of(call(), quota, {})

    for number in range(MAX_KNOWN + 10):
        await say(requests_a_minute(5, f"limit-{number}"))
    assert len(writer._known) <= MAX_KNOWN
    assert "q=5" in (await say(requests_a_minute(5, "same")))["ratelimit-policy"]
    assert "q=7" in (await say(requests_a_minute(7, "same")))["ratelimit-policy"]


# 429


async def refused(rule: Rule, **asked: Any) -> tuple[str, dict[str, str], str | None]:
    """Use a limit up and ask once more."""
    clock = Clock()
    ledger = Ledger(EmbeddedStore(clock), clock=clock)
    quota = Quota(account(rule))
    first = ledger.reserve(quota.account, "a", input_tokens=rule.limit.capacity, max_output=0)
    async with first:
        pass
    with pytest.raises(LimitExceeded) as caught:
        async with ledger.reserve(quota.account, "b", **({"input_tokens": 1, "max_output": 0} | asked)):
            pass
    error = refusal(caught.value, quota)
    assert quota.refused is rule
    return error.message, dict(error.headers), error.code


async def test_a_refusal_says_when_to_come_back_rounded_up() -> None:
    message, headers, code = await refused(Rule(Limit.bucket("acme tokens/min", 7, MINUTE_US), input=1))

    assert message == "Limit `acme tokens/min` reached: 7 tokens, 0 left. Please try again in 8.572s."
    assert headers == {
        "x-penstock-limit": "acme tokens/min",
        "retry-after": "9",
        "retry-after-ms": "8572",
        "x-should-retry": "true",
    }
    assert code == "rate_limit_exceeded"


async def test_what_can_never_fit_is_not_to_be_tried_again() -> None:
    message, headers, _ = await refused(Rule(Limit.bucket("t", 7, MINUTE_US), input=1), input_tokens=8)

    assert message == "Limit `t` reached: 7 tokens, 0 left. This request needs more than the limit ever allows."
    assert headers == {"x-penstock-limit": "t", "x-should-retry": "false"}


async def test_a_budget_is_not_worth_waiting_for() -> None:
    rule = Rule(Limit.budget("acme cost/day", Kind.DAY, 1_250_000_000), input=1, measure=Measure.COST)
    message, headers, code = await refused(rule)

    assert message.startswith(
        "Limit `acme cost/day` reached: 1.25 US dollars for the day, 0 left. Please try again in "
    )
    assert headers["x-should-retry"] == "false"
    assert int(headers["retry-after"]) > 60
    assert code == "insufficient_quota"


@pytest.mark.parametrize(
    ("key", "level"),
    [
        ("acme requests/min", "organisation"),
        ("acme/search/* tokens/day", "team"),
        ("acme/search/web tokens/min demo/x", "tenant"),
        ("acme/web#key-1 requests/min", "key"),
    ],
)
def test_a_limits_name_tells_the_level_of_its_scope(key: str, level: str) -> None:
    assert level_of(key) == level


@given(
    amount=st.integers(1, 5000),
    period_us=st.sampled_from([1_000_000, 7_000_000, MINUTE_US, HOUR_US]),
    spent=st.integers(0, 6000),
    held=st.integers(0, 6000),
    later_us=st.integers(0, 2_000_000),
)
@example(amount=23, period_us=1_000_000, spent=1, held=22, later_us=0)
def test_a_reset_is_never_told_too_early_and_hardly_too_late(
    amount: int, period_us: int, spent: int, held: int, later_us: int
) -> None:
    limit = Limit.bucket("l", amount, period_us)
    level, now = Level(limit, 0), later_us
    level.spent, level.held = spent * limit.unit, held
    level.advance(now)
    standing = Standing(limit, level.free(), level.reset_us(now))
    level.spent, level.held = level.spent + held * limit.unit, 0
    really = level.reset_us(now)

    assert really <= reset_us(standing) <= really + limit.tick_us
