"""Hundreds of callers over several gateways and one Redis: nothing is let in too much, and the books are right.

The whole proof, a minute each: `make prove-quotas`.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from cache.ledger import Ledger
from policies.bucket import Kind
from policies.policy import Policy
from tests.cache.conftest import CALM, redis_store_at
from tests.rig.chat_client import Ask, ChatClient, Told
from tests.rig.gateways import Gateway, eventually, gateways
from tests.rig.quota_books import Answered, answered, charges, excesses, limits_of
from tests.rig.quota_load import (
    ENGINE,
    ORGANISATION,
    REMOTE,
    Load,
    account_of,
    key_of,
    policy_of,
    policy_text,
    run_load,
)
from tests.rig.redis_server import RedisServer
from tests.rig.upstream import scripted_upstream

CONFIG = """\
listen: {{port: 0}}
policies: [./policy.yaml]
{store}
models:
  tiny: {{engine: {{path: {model}, threads: 1, num_blocks: 2048, max_sequences: 64}}, max_output: 64}}
  remote: {{upstreams: [scripted], max_output: 64}}
upstreams: {{scripted: {{url: "{upstream}"}}}}
telemetry: {{access_log: ./access.log}}
"""
MODELS = (ENGINE, REMOTE)
REQUESTS = f"{ORGANISATION} requests/month"
LAB_DAY = f"{ORGANISATION}/lab output_tokens/day"


@dataclass
class Outcome:
    """What came of a load, with everybody gone and every gateway ended."""

    policy: Policy
    told: list[Told]
    calls: list[Answered]
    charged: Counter[str]  # by limit, as the ledger says
    generated: int  # by the gateways' engines, as they count themselves
    said: list[str]

    def figures(self) -> str:
        """Give what is worth printing."""
        statuses = Counter(told.status for told in self.told if told.status)
        endings = Counter(told.ending for told in self.told)
        cut = Counter(told.limit for told in self.told if told.limit is not None)
        tokens = {model: sum(call.completion for call in self.calls if call.model == model) for model in MODELS}
        return (
            f"{len(self.told)} calls, {dict(endings)}, statuses {dict(statuses)}; tokens {tokens}; "
            f"cut short by {dict(cut)}; engines generated {self.generated}; "
            f"upstreams overshot by {sum(call.overshoot for call in self.calls)}"
        )


async def outcome_of(folder: Path, model: Path, load: Load, *, servers: int, redis: RedisServer | None) -> Outcome:
    """Run a load and gather what came of it."""
    text = policy_text()
    policy = policy_of(text)
    async with scripted_upstream() as upstream:
        store = "" if redis is None else f"store: {{url: 'unix://{redis.path}', replicas: {servers}, timeout_ms: 5000}}"
        config = CONFIG.format(store=store, model=model, upstream=upstream.url)
        for number in range(servers):
            (folder / str(number)).mkdir()
            (folder / str(number) / "policy.yaml").write_text(text)
        with gateways(folder, [config] * servers) as running:
            told = await run_load(load, [gateway.port for gateway in running])
            for gateway in running:
                gateway.quiet()
            generated = round(sum(gateway.total("penstock_engine_generated_tokens_total") for gateway in running))
            if redis is None:
                charged = await judged(running[0], policy)
            else:
                eventually(lambda: redis.ask("ZCARD", f"penstock:{{{ORGANISATION}}}:leases") == b":0\r\n")
                charged = await looked_up(redis, policy)
            statuses = [gateway.stop() for gateway in running]
            lines = [line for gateway in running for line in gateway.access_log() if line.get("key") != "judge"]
            said = [line for gateway in running for line in gateway.said]
    assert statuses == [0] * servers
    return Outcome(policy, told, answered(lines, told, policy), charged, generated, said)


async def looked_up(redis: RedisServer, policy: Policy) -> Counter[str]:
    """Look into Redis what the month's budgets have lost."""
    charged: Counter[str] = Counter()
    store = redis_store_at(redis, CALM)
    async with Ledger(store) as ledger:
        for model in MODELS:
            for standing in await ledger.look(account_of(policy, "judge", model)):
                charged[standing.limit.key] = standing.limit.capacity - standing.free
    await store.aclose()
    return charged


async def judged(gateway: Gateway, policy: Policy) -> Counter[str]:
    """Ask a call of each model, and conclude from its headers what the budgets had lost before it."""
    charged: Counter[str] = Counter()
    client = ChatClient(gateway.port)
    for number, model in enumerate(MODELS):
        told = await client.ask(Ask(f"judge-{model}", key_of("judge"), model, max_tokens=1, stream=False))
        assert told.status == 200, told
        left = {key: int(free) for key, free in re.findall(r'"([^"]+)";r=(\d+)', told.headers["ratelimit"])}
        fresh = int(told.headers["x-penstock-input-tokens"].partition(";")[0])
        account = account_of(policy, "judge", model)
        for rule in (*account.entry, *account.tokens):
            if rule.limit.kind is Kind.MONTH and rule.limit.key in left and "cost" not in rule.limit.key:
                own = rule.call * (number + 1) + fresh * rule.input + rule.output
                charged[rule.limit.key] = rule.limit.capacity - left[rule.limit.key] - own
    client.hang_up()
    return charged


def check(outcome: Outcome) -> None:
    """Hold an outcome against everything that was promised."""
    print(f"\n{outcome.figures()}")
    assert broken(outcome.told) == []
    assert [call for call in outcome.calls if call.model == ENGINE and call.overshoot] == []
    assert [str(excess) for excess in excesses(outcome.calls, outcome.policy)] == []
    due = charges(outcome.calls, outcome.policy)
    unknown = sum(call.entered is None for call in outcome.calls)
    assert 0 <= outcome.charged[REQUESTS] - due[REQUESTS] <= unknown
    assert {key: due[key] for key in outcome.charged if key != REQUESTS} == tokens_of(outcome.charged)
    assert outcome.generated == sum(call.completion for call in outcome.calls if call.model == ENGINE)
    wrong = wrongly_ended(outcome.told, outcome.policy)
    assert not wrong, "\n".join(map(str, wrong))
    assert [line for line in outcome.said if "Traceback" in line or "ERROR" in line] == []


def tokens_of(charged: Counter[str]) -> dict[str, int]:
    """Leave out what counts calls: who leaves before the limits have answered may have been counted or not."""
    return {key: value for key, value in charged.items() if key != REQUESTS}


def broken(told: Sequence[Told]) -> list[Told]:
    """Give the calls that were not answered as they should: neither whole nor left by the caller, or with an error."""
    return [
        each
        for each in told
        if each.ending not in ("whole", "left")
        or (each.ending == "whole" and each.status not in (200, 429))
        or (each.status == 200 and each.error is not None)
    ]


def wrongly_ended(told: Sequence[Told], policy: Policy) -> list[Told]:
    """Give whole answers whose end does not say what ended them: a limit, and then which, or their length."""
    wrong, known = [], limits_of(policy)
    for each in told:
        if each.ending != "whole" or each.status != 200:
            continue
        most = each.ask.max_tokens or (32 if each.ask.key == key_of("batch") else 64)
        short = each.completion < most and each.finish == "length"
        told_right = not short if each.limit is None else each.limit in known and each.finish == "length"
        if each.completion > most or not told_right:
            wrong.append(each)
    return wrong


async def test_three_gateways_over_one_redis_let_in_no_token_too_many(
    tmp_path: Path, model: Path, redis_server: RedisServer
) -> None:
    check(await outcome_of(tmp_path, model, Load(callers=60, seconds=4.0), servers=3, redis=redis_server))


async def test_one_gateway_with_its_own_books_lets_in_no_token_too_many(tmp_path: Path, model: Path) -> None:
    check(await outcome_of(tmp_path, model, Load(callers=40, seconds=2.0), servers=1, redis=None))


async def test_gateways_that_do_not_share_their_books_are_found_out(tmp_path: Path, model: Path) -> None:
    outcome = await outcome_of(tmp_path, model, Load(callers=60, seconds=2.0), servers=3, redis=None)

    assert excesses(outcome.calls, outcome.policy) != []


def exhausted(outcome: Outcome) -> bool:
    """Tell whether the day's budget was used up: not one token early, and past it only overshoot."""
    past = sum(call.overshoot for call in outcome.calls if call.bearer == "lab")
    used, capacity = charges(outcome.calls, outcome.policy)[LAB_DAY], limits_of(outcome.policy)[LAB_DAY].capacity
    return capacity <= used <= capacity + past


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_minute_of_two_hundred_callers_over_three_gateways(
    tmp_path: Path, model: Path, redis_server: RedisServer
) -> None:
    check(outcome := await outcome_of(tmp_path, model, Load(seed=2), servers=3, redis=redis_server))
    assert exhausted(outcome)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_minute_of_two_hundred_callers_of_one_gateway(tmp_path: Path, model: Path) -> None:
    check(outcome := await outcome_of(tmp_path, model, Load(seed=3), servers=1, redis=None))
    assert exhausted(outcome)
