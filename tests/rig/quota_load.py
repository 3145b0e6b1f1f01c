"""Many callers with tight limits, all at once, who leave when they like: the load of the proofs of quotas.

One organisation with a team and several tenants calls two models, one that runs in the gateway and one behind HTTP. Its
own limits are so wide that they refuse nobody: they are there as witnesses, because what a month's budget has lost is
what was charged, to the token. Everybody's limits come out of the compiled policy: what is judged is what is in force.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from policies.account import Account
from policies.compile import Source, compile_policy
from policies.key import kept, new_key
from policies.policy import Policy
from tests.rig.chat_client import Ask, ChatClient, Told

ORGANISATION = "acme"
ENGINE, REMOTE = "tiny", "remote"
SLICE = 16
BEARERS = ("web-1", "web-2", "batch", "lab", "free", "judge")
CALLERS = BEARERS[:-1]  # the judge asks afterwards
HUNG_S = 60.0
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "lazy", "dogs", "and", "reads", "what", "engines", "write")

POLICY = """\
prices:
  tiny: {{input: 0.10, cached_input: 0.05, output: 0.40}}
  remote: {{input: 1.25, output: 10}}
organisations:
  acme:
    limits:
      - {{requests: 1_000_000_000/month}}
      - {{input_tokens: 1_000_000_000/month, model: "*"}}
      - {{output_tokens: 1_000_000_000/month, model: "*"}}
      - {{cost: 1_000_000/month}}
    defaults: {{slice_tokens: {slice}, on_store_failure: {on_failure}}}
    teams:
      search:
        limits: [{{output_tokens: 300/s, burst: 900}}]
    tenants:
      web:
        team: search
        limits: [{{output_tokens: 120/s, burst: 240}}, {{concurrency: 24}}, {{requests: 80/s, burst: 60}}]
        keys:
          web-1: {{hash: "{web_1}", limits: [{{tokens: 400/s, burst: 700}}]}}
          web-2: {{hash: "{web_2}"}}
      batch:
        team: search
        limits: [{{tokens: 900/s, burst: 1800}}, {{input_tokens: 500/s, burst: 900, cached: free}}]
        max_output_tokens: {{default: 32}}
        keys: {{batch: {{hash: "{batch}"}}}}
      lab:
        limits: [{{output_tokens: {lab_day}/day}}, {{concurrency: 40}}]
        keys: {{lab: {{hash: "{lab}"}}}}
      free:
        limits: [{{output_tokens: 50/s, burst: 400, shadow: true}}]
        keys: {{free: {{hash: "{free}"}}}}
      judge:
        keys: {{judge: {{hash: "{judge}"}}}}
"""


def key_of(bearer: str) -> str:
    """Give a bearer's key: the same each time, so that what runs can be started again."""
    return new_key(bearer, lambda size: bearer.encode().ljust(size, b"."))


def policy_text(*, lab_day: int = 3000, on_failure: str = "closed") -> str:
    """Write the policy file. `lab_day` is the budget that runs out."""
    hashes = {bearer.replace("-", "_"): kept(key_of(bearer)) for bearer in BEARERS}
    return POLICY.format(slice=SLICE, lab_day=lab_day, on_failure=on_failure, **hashes)


def policy_of(text: str) -> Policy:
    """Compile it as the gateways do."""
    return compile_policy([Source("policy.yaml", text)], served=(ENGINE, REMOTE))


def account_of(policy: Policy, bearer: str, model: str) -> Account:
    """Give the limits of a bearer's calls to a model."""
    return policy.keys[bearer].tenant.terms(model).account


@dataclass(frozen=True, slots=True)
class Load:
    """So many callers for so long. The seed decides what they ask and when they leave, the machine the rest."""

    callers: int = 200
    seconds: float = 60.0
    seed: int = 1
    models: tuple[str, ...] = (ENGINE, ENGINE, REMOTE)


async def run_load(load: Load, ports: Sequence[int]) -> list[Told]:
    """Run the callers over the gateways; gives everything that they were told. Raises `TimeoutError` for who hangs."""
    until = asyncio.get_running_loop().time() + load.seconds
    told: list[Told] = []
    async with asyncio.TaskGroup() as tasks:
        for number in range(load.callers):
            client = ChatClient(ports[number % len(ports)])
            tasks.create_task(_caller(load, number, client, until, told))
    return told


async def _caller(load: Load, number: int, client: ChatClient, until: float, told: list[Told]) -> None:
    rng, now = Random(f"{load.seed}-{number}"), asyncio.get_running_loop().time
    count = 0
    try:
        while now() < until:
            async with asyncio.timeout(HUNG_S):
                answer = await client.ask(draw(rng, f"{load.seed}.{number}.{count}", load.models))
            told.append(answer)
            count += 1
            if answer.status != 200 and answer.ending == "whole":
                retry_s = int(answer.headers.get("retry-after-ms", "200")) / 1000
                await asyncio.sleep(min(retry_s, 0.4) * rng.uniform(0.3, 1.2))
            elif answer.ending == "unheard":
                await asyncio.sleep(0.1)
    finally:
        client.hang_up()


def draw(rng: Random, name: str, models: Sequence[str]) -> Ask:
    """Draw what a caller asks, and whether it leaves before the end."""
    bearer, model, stream = rng.choice(CALLERS), rng.choice(models), rng.random() < 0.6
    max_tokens = rng.choice((1, 7, 24, 24, 60, None))
    ask = Ask(name, key_of(bearer), model, " ".join(rng.choices(WORDS, k=rng.randrange(1, 30))), max_tokens, stream)
    if model == REMOTE:
        words = [f" {word}" for word in rng.choices(WORDS, k=rng.randrange(1, 40))]
        pace_s = rng.choice((0.0, 0.001, 0.005)) if stream else 0.0
        head_s = rng.choice((0.0, 0.02))
        ask.extra = {"script": {"words": words, "chunk_delay_s": pace_s, "head_delay_s": head_s, "obey": True}}
    else:
        ask.extra = {"ignore_eos": True}
    if (chance := rng.random()) < 0.12:
        ask.leave_after, ask.linger_s = 0, rng.choice((0.0, rng.uniform(0, 0.03), rng.uniform(0, 0.3)))
    elif chance < 0.30 and stream:
        ask.leave_after = rng.randrange(1, 24)
    return ask
