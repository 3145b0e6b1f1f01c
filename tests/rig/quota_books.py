"""What came of a load, from three sides: what callers were told, what gateways logged, what the ledger was charged."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from policies.bucket import Kind, Limit
from policies.holder import Measure, Rule
from policies.policy import Policy
from tests.rig.chat_client import Told
from tests.rig.quota_checker import Excess, Use, worst_excess
from tests.rig.quota_load import BEARERS, ENGINE, REMOTE, account_of

MS = 1_000


@dataclass(frozen=True, slots=True)
class Answered:
    """One call that some limit let in, from its line in the access log, and what its caller saw of it."""

    told: Told | None  # None for calls that are not the load's
    bearer: str
    model: str
    since: int
    until: int
    fresh: int  # input tokens that no cache knew
    cached: int
    completion: int
    overshoot: int  # of the completion: what an HTTP upstream had brought past the edge, charged and reported
    entered: bool | None  # past the limits that count calls; None where its caller left before that was known

    def charge(self, rule: Rule) -> int:
        """Give what it surely costs a limit, gauges apart."""
        if rule.measure is Measure.REQUESTS:
            return rule.call if self.entered else 0
        return self.fresh * rule.input + self.cached * rule.cached + self.completion * rule.output


def answered(lines: Iterable[Mapping[str, Any]], told: Sequence[Told], policy: Policy) -> list[Answered]:
    """Join the gateways' logs with what callers were told."""
    by_id = {each.ask.id: each for each in told}
    calls = []
    for line in lines:
        bearer, model = line.get("key"), line.get("model")
        if bearer is None or model is None:
            continue
        counted = "input_tokens" in line  # which happens behind the limits that count calls
        prompt, cached = line.get("prompt_tokens", 0), line.get("cached_tokens", 0)
        arrived = round(datetime.fromisoformat(line["time"]).timestamp() * 1e6)
        caller = by_id.get(line["id"])
        since = arrived - MS if caller is None else min(caller.sent, arrived)
        calls.append(
            Answered(
                caller,
                bearer,
                model,
                since,
                arrived + round(line["ms"] * MS) + MS,
                prompt - cached,
                cached,
                line.get("completion_tokens", 0),
                line.get("quota", {}).get("overshoot_tokens", 0),
                entered=counted or (None if line["status"] == 499 else False),
            )
        )
    return calls


def limits_of(policy: Policy) -> dict[str, Limit]:
    """Give every limit that somebody's calls count against, by its name."""
    found: dict[str, Limit] = {}
    for bearer in BEARERS:
        for model in (ENGINE, REMOTE):
            account = account_of(policy, bearer, model)
            found |= {rule.limit.key: rule.limit for rule in (*account.entry, *account.tokens)}
    return found


def charges(calls: Iterable[Answered], policy: Policy) -> Counter[str]:
    """Sum what calls cost each limit, gauges apart."""
    total: Counter[str] = Counter()
    for call in calls:
        account = account_of(policy, call.bearer, call.model)
        for rule in (*account.entry, *account.tokens):
            total[rule.limit.key] += call.charge(rule)
    return total


def excesses(calls: Sequence[Answered], policy: Policy, *, models: Sequence[str] = (ENGINE, REMOTE)) -> list[Excess]:
    """Judge every limit that refuses, over every window. Empty is what is wished for."""
    uses: dict[str, list[Use]] = {}
    for call in calls:
        account = account_of(policy, call.bearer, call.model)
        for rule in (*account.entry, *account.tokens):
            if call.model in models:
                uses.setdefault(rule.limit.key, []).extend(uses_of(call, rule))
    judged = [worst_excess(limit, uses.get(key, ())) for key, limit in limits_of(policy).items() if not limit.shadow]
    return [excess for excess in judged if excess is not None]


def uses_of(call: Answered, rule: Rule) -> Iterator[Use]:
    """Say what a call used of a limit, and between which moments."""
    heard = call.told.heard if call.told is not None else []
    first = heard[0] if heard else call.until
    if rule.limit.kind is Kind.GAUGE:
        if len(heard) > 1:
            yield Use(heard[0], heard[-1], rule.call)
        return
    if rule.measure is Measure.REQUESTS:
        yield Use(call.since, first, call.charge(rule))
        return
    if entry := call.fresh * rule.input + call.cached * rule.cached:
        yield Use(call.since, first, entry)
    if rule.output and call.completion:
        admitted = call.completion - call.overshoot
        surely = heard[:admitted]  # an event with content is one token at least
        for moment in surely:
            yield Use(call.since, moment, rule.output)
        yield Use(call.since, call.until, (admitted - len(surely)) * rule.output)
