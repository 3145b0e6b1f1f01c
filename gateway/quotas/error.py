"""How a caller is told that a limit refuses it, or that nobody can say whether one does."""

from cache.errors import StoreError
from cache.reservation import LimitExceeded
from gateway.errors import QuotaUnavailable, RateLimited
from gateway.quotas.quota import Quota, rule_of
from policies.bucket import Kind
from policies.holder import Measure, Rule

WORTH_WAITING_US = 60_000_000  # OpenAI's clients wait no longer for a Retry-After, and then try at once
UNAVAILABLE = {"retry-after": "1"}
PERIODS = {Kind.DAY: "the day", Kind.MONTH: "the month"}
UNITS = {
    Measure.REQUESTS: "requests",
    Measure.CONCURRENCY: "requests at the same time",
    Measure.INPUT: "input tokens",
    Measure.OUTPUT: "output tokens",
    Measure.TOKENS: "tokens",
    Measure.COST: "US dollars",
}


def refusal(exceeded: LimitExceeded, quota: Quota) -> RateLimited:
    """Make the 429 of a limit, and note in `quota` which one it was.

    `retry-after-ms` is when the same request would be let in if nobody else came, to the millisecond and never too
    early; `retry-after` is the same in whole seconds. Neither is told where waiting is of no use.
    """
    rule = quota.refused = rule_of(quota.account, exceeded.limit.key)
    assert rule is not None, "only a limit of the account refuses"
    wait_us = exceeded.wait_us
    headers = {"x-penstock-limit": header_text(exceeded.limit.key)}
    if wait_us is not None:
        headers["retry-after"] = str(-(-wait_us // 1_000_000))
        headers["retry-after-ms"] = str(-(-wait_us // 1_000))
    headers["x-should-retry"] = "true" if wait_us is not None and wait_us <= WORTH_WAITING_US else "false"
    budget = exceeded.limit.kind in PERIODS
    return RateLimited(
        describe(exceeded, rule), code="insufficient_quota" if budget else "rate_limit_exceeded", headers=headers
    )


def describe(exceeded: LimitExceeded, rule: Rule) -> str:
    """Say which limit it is, its value, what is left and when to come back."""
    limit, unit = exceeded.limit, UNITS[rule.measure]
    what = f"Limit `{limit.key}` reached: {amount(limit.capacity, rule.measure)} {unit}"
    if limit.kind in PERIODS:
        what += f" for {PERIODS[limit.kind]}"
    what += f", {amount(max(0, exceeded.free), rule.measure)} left."
    if exceeded.wait_us is None:
        return f"{what} This request needs more than the limit ever allows."
    return f"{what} Please try again in {go_duration(exceeded.wait_us)}."


def amount(number: int, measure: Measure) -> str:
    """Write a number of what a limit counts; costs in dollars."""
    if measure is not Measure.COST:
        return str(number)
    dollars, nano = divmod(number, 1_000_000_000)
    return f"{dollars}.{nano:09}".rstrip("0").rstrip(".")


def unavailable(error: StoreError) -> QuotaUnavailable:
    """Make the 503 of a store that cannot say what is left."""
    message = "The gateway cannot reach the store of its limits, and this key's policy lets nobody in without it."
    return QuotaUnavailable(message, code="quota_unavailable", headers=UNAVAILABLE)


def go_duration(us: int) -> str:
    """Write a stretch of time as Go does and OpenAI's headers: `12ms`, `1.5s`, `6m0s`; rounded up to milliseconds."""
    ms = -(-us // 1_000)
    if 0 < ms < 1_000:
        return f"{ms}ms"
    minutes, ms = divmod(ms, 60_000)
    seconds = f"{ms / 1_000:.3f}".rstrip("0").rstrip(".") + "s"
    if not minutes:
        return seconds
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{seconds}" if hours else f"{minutes}m{seconds}"


def header_text(text: str) -> str:
    """Give a name as it may stand in a header: what is not printable ASCII is percent-encoded."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char if char.isascii() and char.isprintable() else "".join(f"%{byte:02X}" for byte in char.encode())
        for char in text
    )
