"""Gateways killed at any moment of reserving and streaming: nothing is lost for longer than the lease, nor paid back.

Each crash has an organisation of its own, so its books are read apart. Redis stands behind a few milliseconds, so that
many a step is under way when its gateway dies. 200 crashes: `make prove-quotas`.
"""

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from cache.ledger import Ledger
from cache.redis_store import RedisStore
from policies.compile import Source, compile_policy
from policies.key import kept, new_key
from policies.policy import Policy
from tests.cache.conftest import CALM, redis_store_at
from tests.rig.chat_client import Ask, ChatClient, Told
from tests.rig.fault_proxy import FaultProxy
from tests.rig.gateways import Gateway
from tests.rig.redis_server import RedisServer
from tests.rig.toxics import Direction, Latency
from tests.rig.upstream import scripted_upstream

LEASE_S = 1.0
SLICE = 8
GROWN = 2 * SLICE  # what a call may hold at most: half a slice is left when the next one is asked for
MAX_TOKENS = 60
CALLS = 6
CONCURRENCY = 50
PARALLEL = 6
CONFIG = """\
listen: {{port: 0}}
policies: [../policy.yaml]
store: {{url: "redis://127.0.0.1:{port}", lease_s: {lease_s}, timeout_ms: 5000, connect_timeout_ms: 5000}}
models: {{{models}}}
upstreams: {{scripted: {{url: "{upstream}"}}}}
telemetry: {{access_log: off}}
"""
REMOTE = "remote: {upstreams: [scripted], max_output: 64}"
TINY = "tiny: {{engine: {{path: {model}, threads: 1, num_blocks: 256}}, max_output: 64}}"
ORGANISATION = """\
  {name}:
    limits:
      - {{requests: 1_000_000/month}}
      - {{output_tokens: 1_000_000/month}}
      - {{concurrency: {concurrency}}}
    defaults: {{slice_tokens: {slice}}}
    tenants: {{app: {{keys: {{{name}: {{hash: "{hash}"}}}}}}}}
"""


@dataclass
class Crash:
    """One gateway's life: its callers, and what its organisation's books said after its death and after the lease."""

    seed: int
    model: str
    told: list[Told] = field(default_factory=list)
    dead: bool = False
    in_hand: int = 0  # calls that had tokens promised when it was dead
    lease_s: float = 0.0  # how long the last lease still ran then
    after_death: dict[str, int] = field(default_factory=dict)
    after_lease: dict[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"crash{self.seed}"

    @property
    def key(self) -> str:
        return key_of(self.name)

    @property
    def heard(self) -> int:
        """Tokens of answers, as far as they came."""
        return sum(max(told.completion, told.listed, len(told.heard)) for told in self.told)

    @property
    def slices(self) -> int:
        """What its calls may have had in hand at most: those that were broken off, and others not yet settled."""
        broken = [bound(told.ask) for told in self.told if told.ending != "whole"]
        return sum(broken) + max(0, self.in_hand - len(broken)) * MAX_TOKENS


def bound(ask: Ask) -> int:
    """Give what a call is charged at most beyond what was heard: its slice, and what only its gateway has heard.

    A whole answer is heard at once, and so is a stream whose upstream does not pause.
    """
    assert ask.max_tokens is not None
    paced = ask.stream and ask.extra.get("script", {"chunk_delay_s": 1})["chunk_delay_s"] > 0
    return GROWN if paced else ask.max_tokens


def key_of(name: str) -> str:
    return new_key(name, lambda size: name.encode().ljust(size, b"."))


def policy_text(crashes: list[Crash]) -> str:
    organisations = [
        ORGANISATION.format(name=crash.name, concurrency=CONCURRENCY, slice=SLICE, hash=kept(crash.key))
        for crash in crashes
    ]
    return "organisations:\n" + "".join(organisations)


async def crash_all(folder: Path, model: Path, redis: RedisServer, crashes: list[Crash]) -> Policy:
    """Live and die, several at a time, and read the books."""
    text = policy_text(crashes)
    (folder / "policy.yaml").write_text(text)
    policy = compile_policy([Source("policy.yaml", text)], served=("remote", "tiny"))
    turns = asyncio.Semaphore(PARALLEL)
    async with scripted_upstream() as upstream, asyncio.TaskGroup() as tasks:
        for crash in crashes:
            models = REMOTE if crash.model == "remote" else TINY.format(model=model)
            config = CONFIG.format(port="{port}", lease_s=LEASE_S, models=models, upstream=upstream.url)
            tasks.create_task(live(crash, folder / crash.name, config, turns, redis, policy))
    return policy


async def live(
    crash: Crash, folder: Path, config: str, turns: asyncio.Semaphore, redis: RedisServer, policy: Policy
) -> None:
    """Start a gateway, let callers call, kill it at a moment that the seed says, and read its books, twice."""
    rng = Random(crash.seed)
    store = redis_store_at(redis, CALM)
    async with turns:
        with FaultProxy(redis.path) as network:
            network.add(Latency(2, 2), Direction.UP)
            network.add(Latency(2, 2), Direction.DOWN)
            assert not isinstance(network.place, Path)
            with started(folder, config.replace("{port}", str(network.place[1]))) as gateway:
                await asyncio.to_thread(gateway.wait)
                async with asyncio.TaskGroup() as calls:
                    for number in range(CALLS):
                        calls.create_task(call(crash, gateway.port, number, Random(f"{crash.seed}-{number}")))
                    await asyncio.sleep(rng.uniform(0.0, 0.25))
                    if crash.seed % 2:
                        gateway.crash()
                    else:
                        gateway.kill()
                    crash.dead = True
            while network.open:  # what was sent arrives behind its sender's death
                await asyncio.sleep(0.005)
        ends = await leases(store, crash.name)
        crash.in_hand = sum(not name.endswith(b":a") for name in ends)  # others only count as a call
        crash.after_death = await charged(store, policy, crash)
        crash.lease_s = max((end - redis_now(redis) for end in ends.values()), default=0) / 1e6
    while redis_now(redis) <= max(ends.values(), default=0):
        await asyncio.sleep(0.02)
    crash.after_lease = await charged(store, policy, crash)
    await store.aclose()


@contextmanager
def started(folder: Path, config: str) -> Iterator[Gateway]:
    gateway = Gateway(folder, config, {})
    try:
        yield gateway
    finally:
        gateway.process.end()


async def call(crash: Crash, port: int, number: int, rng: Random) -> None:
    """Ask one call after another, until nobody is there any more."""
    client = ChatClient(port)
    try:
        for count in range(100):
            tokens = rng.randrange(1, MAX_TOKENS)
            extra: dict[str, object] = {
                "script": {"words": [" word"] * tokens, "chunk_delay_s": rng.choice((0.0, 0.002, 0.006))}
            }
            if crash.model == "tiny":
                extra = {"ignore_eos": True, "logprobs": True}  # an event may hold several tokens: these count them
            name = f"{crash.name}.{number}.{count}"
            ask = Ask(name, crash.key, crash.model, max_tokens=tokens, stream=rng.random() < 0.8, extra=extra)
            async with asyncio.timeout(60):
                told = await client.ask(ask)
            crash.told.append(told)
            if told.ending != "whole" or crash.dead:
                return
    finally:
        client.hang_up()


async def leases(store: RedisStore, organisation: str) -> dict[bytes, int]:
    """Give the open leases by their names, with their ends in µs."""
    [link] = store.topology.links()
    told = await link.call("ZRANGE", f"penstock:{{{organisation}}}:leases", 0, -1, "WITHSCORES")
    assert isinstance(told, list)
    words = [word for word in told if isinstance(word, bytes)]
    return {name: int(end) for name, end in zip(words[::2], words[1::2], strict=True)}


async def charged(store: RedisStore, policy: Policy, crash: Crash) -> dict[str, int]:
    """Give what is spent or held of each of an organisation's limits."""
    account = policy.keys[crash.name].tenant.terms(crash.model).account
    async with Ledger(store) as ledger:
        standings = await ledger.look(account)
    return {standing.limit.key.partition(" ")[2]: standing.limit.capacity - standing.free for standing in standings}


def redis_now(redis: RedisServer) -> int:
    seconds, micros = re.findall(rb"\r\n(\d+)", redis.ask("TIME"))[-2:]
    return int(seconds) * 1_000_000 + int(micros)


def loading(told: Told) -> bool:
    """Whether the next worker, which the supervisor has started, said that it is not ready yet."""
    return told.status == 503 and told.error is not None and told.error["code"] == "loading"


def check(crashes: list[Crash]) -> None:
    """Hold every crash against what was promised."""
    for crash in crashes:
        heard = crash.heard
        answers = sum(told.status == 200 for told in crash.told)
        interrupted = sum(told.ending != "whole" for told in crash.told)
        first, last = crash.after_death, crash.after_lease
        story = f"{crash.name} ({crash.model}): heard {heard}, {crash.in_hand} in hand, {first} and then {last}"
        assert not [told for told in crash.told if told.status not in (0, 200) and not loading(told)], story
        assert crash.lease_s <= LEASE_S, story
        assert last["concurrency"] == 0, f"a place is lost: {story}"
        assert last["output_tokens/month"] == first["output_tokens/month"], f"paid back, or charged anew: {story}"
        assert last["requests/month"] == first["requests/month"], story
        assert 0 <= last["output_tokens/month"] - heard <= crash.slices, story
        assert answers <= last["requests/month"] <= answers + interrupted, story
    held = sum(crash.in_hand > 0 for crash in crashes)
    lost = [crash.after_lease["output_tokens/month"] - crash.heard for crash in crashes]
    print(
        f"\n{len(crashes)} crashes, {sum(len(crash.told) for crash in crashes)} calls, "
        f"{sum(told.ending != 'whole' for crash in crashes for told in crash.told)} broken off; "
        f"{held} died with tokens in hand, of {sum(crash.in_hand for crash in crashes)} calls in all; "
        f"charged beyond what was heard: {sum(lost)} tokens, {max(lost)} at most in one crash"
    )
    assert held > 0


async def test_what_a_killed_gateway_had_in_hand_is_charged_once_its_lease_has_run_out(
    tmp_path: Path, model: Path, redis_server: RedisServer
) -> None:
    crashes = [Crash(seed, "tiny" if seed % 5 == 4 else "remote") for seed in range(10)]
    await crash_all(tmp_path, model, redis_server, crashes)
    check(crashes)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_two_hundred_crashes(tmp_path: Path, model: Path, redis_server: RedisServer) -> None:
    crashes = [Crash(seed, "tiny" if seed % 4 == 3 else "remote") for seed in range(1000, 1200)]
    await crash_all(tmp_path, model, redis_server, crashes)
    check(crashes)
