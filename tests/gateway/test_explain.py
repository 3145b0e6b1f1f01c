"""What is explained is what happens: every number, header and refusal, tried over random policies and requests."""

import asyncio
import json
import random
import re
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from cache.embedded import EmbeddedStore
from cache.ledger import Ledger
from cache.redis_address import Address, Door
from cache.redis_link import Patience
from cache.redis_store import RedisStore
from cache.redis_topology import Single
from cache.reservation import LimitExceeded
from cache.store import Store
from gateway.app import Bounds
from gateway.call import Model
from gateway.cli import main
from gateway.configuration.config import EngineModel
from gateway.errors import BadRequest
from gateway.upstreams.engine import EngineUpstream
from policies.account import OnFailure
from policies.bucket import NEVER
from policies.compile import Source, compile_policy
from policies.policy import Policy
from policies.reservation import Answer, Step, Verdict
from policies.tenant import Tenant
from tests.gateway.conftest import Gateway, http_upstream, model, running
from tests.rig.in_process import InProcess
from tests.rig.limited import Clock, at_a_time, limited, requests_a_minute, tokens_a_minute
from tests.rig.redis_server import RedisServer
from tests.rig.upstream import Upstream, eventually
from tests.tiny_model import tiny_model_dir

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
PATIENT = Bounds(explained_per_minute=1_000_000)
NOT_OF_LIMITS = {"server", "date", "content-length", "x-request-id", "connection", "transfer-encoding"}
HASH = "blake2b:KjHNpKUIUTA2lqfLTXU_pTFBdzXl83H_fVxrUFH50vw"
POLICIES, REQUESTS = 40, 8


# Random worlds


Heard = list[tuple[Step, Answer]]  # of real calls' first steps


class HeldBooks(EmbeddedStore):
    """The store in memory, which tells what it said."""

    def __init__(self, clock: Clock, heard: Heard) -> None:
        super().__init__(clock)
        self.heard = heard

    def take(self, organisation: str, step: Step, now: int | None = None) -> Answer:
        answer = super().take(organisation, step, now)
        if step.seq == 1 and step.lease_us and not step.rehearsal:
            self.heard.append((step, answer))
        return answer


class HeldRedis(RedisStore):
    """A real Redis in virtual time, which tells what it said."""

    clock_us: Clock
    heard: Heard

    async def apply(self, organisation: str, step: Step, now: int | None = None) -> Answer:
        answer = await super().apply(organisation, step, self.clock_us.now)
        if step.seq == 1 and step.lease_us and not step.rehearsal:
            self.heard.append((step, answer))
        return answer

    def clock(self, organisation: str) -> int:
        return self.clock_us.now


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@asynccontextmanager
async def held_redis(server: RedisServer, clock: Clock, heard: Heard) -> AsyncIterator[HeldRedis]:
    calm = Patience(connect_s=10.0, reply_s=10.0)
    store = HeldRedis(lambda forgot: Single.at(Address(path=str(server.path)), Door(), calm, forgot))
    store.clock_us, store.heard = clock, heard
    await store.open()
    try:
        yield store
    finally:
        await store.aclose()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_dir(tmp_path_factory.mktemp("model") / "tiny", hidden_size=32, num_layers=1, max_positions=512)


@pytest.fixture
async def engine(directory: Path) -> EngineUpstream:
    settings = EngineModel(path=str(directory), device="cpu", threads=1, num_blocks=256, max_waiting=64)
    return await EngineUpstream.open("local", settings, directory)


def random_limits(rng: random.Random) -> list[str]:
    found = []
    for measure in rng.sample(["requests", "concurrency", "input_tokens", "output_tokens", "tokens", "cost"], k=3):
        period = rng.choice(["s", "10s", "min", "h", "day", "month"])
        value = {
            "requests": f"{rng.randint(1, 6)}/{period}",
            "concurrency": str(rng.randint(1, 2)),
            "input_tokens": f"{rng.randint(20, 400)}/{period}",
            "output_tokens": f"{rng.randint(5, 90)}/{period}",
            "tokens": f"{rng.randint(40, 600)}/{period}",
            "cost": f"0.{rng.randint(1, 40):04}/{period}",
        }[measure]
        further = ", shadow: true" if rng.random() < 0.25 else ""
        further += rng.choice(["", "", ', model: "*"', ", model: local"])
        if measure in ("input_tokens", "tokens") and rng.random() < 0.3:
            further += ", cached: free"
        found.append(f"{{{measure}: {value}{further}}}")
    return found


def random_settings(rng: random.Random, indent: str) -> str:
    lines = []
    if rng.random() < 0.7:
        lines += ["limits:", *[f"  - {limit}" for limit in random_limits(rng)]]
    if rng.random() < 0.25:
        lines.append(f"max_input_tokens: {rng.choice([5, 30, 60, 200])}")
    if rng.random() < 0.5:
        default, cap = rng.choice([3, 9, 20]), rng.choice([4, 12, 24])
        said = rng.choice([f"default: {default}", f"cap: {cap}", f"default: {min(default, cap)}, cap: {cap}"])
        lines.append(f"max_output_tokens: {{{said}, over: {rng.choice(['clamp', 'refuse'])}}}")
    if rng.random() < 0.1:
        lines.append("models: [local, remote]")
    if rng.random() < 0.3:
        lines.append(f"priority: {rng.choice(['high', 'normal', 'low'])}")
    if rng.random() < 0.3:
        lines.append(f"queue_deadline_s: {rng.choice([1, 2.5, 60])}")
    return "".join(f"{indent}{line}\n" for line in lines)


def random_policy(rng: random.Random, organisation: str) -> Policy:
    text = (
        f'prices:\n  "*": {{input: 2.5, cached_input: 0.25, output: 10}}\norganisations:\n  {organisation}:\n'
        + random_settings(rng, "    ")
        + f"    slice_tokens: {rng.choice([64, 256])}\n    teams:\n      search:\n        prefix_cache: tenant\n"
        + random_settings(rng, "        ")
        + "    tenants:\n      web:\n        team: search\n"
        + random_settings(rng, "        ")
        + f'        keys:\n          {organisation}-1:\n            hash: "{HASH}"\n'
        + random_settings(rng, "            ")
    )
    return compile_policy([Source("policy.yaml", text)], pepper=None)


def random_request(rng: random.Random) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": rng.choice(
            ["local", "remote", "counted", "unheard-of"] if rng.random() < 0.2 else ["local", "remote", "counted"]
        )
    }
    words = " ".join(rng.choice(["the", "quick", "brown", "fox", "jumps"]) for _ in range(rng.choice([1, 3, 10, 40])))
    if rng.random() < 0.6:
        body["messages"] = [{"role": "user", "content": words}]
    else:
        ids = [rng.randint(0, 200) for _ in range(rng.randint(1, 30))]
        body["prompt"] = rng.choice([words, [words, "and"], ids, [ids, ids[:3] or [1]]])
    if rng.random() < 0.8:
        body["max_tokens"] = rng.choice([1, 2, 5, 10, 24, 24, 400, 100_000] if rng.random() < 0.2 else [1, 5, 10, 24])
    if rng.random() < 0.3:
        body["n"] = rng.randint(1, 3)
    if rng.random() < 0.4:
        body["stream"] = True
    if rng.random() < 0.05:
        body["logit_bias"] = {"99999": 1}
    if rng.random() < 0.05:
        body["temperature"] = "warm"
    if rng.random() < 0.05:
        body["response_format" if "messages" in body else "suffix"] = (
            {"type": "json_object"} if "messages" in body else "end"
        )
    if "messages" in body and rng.random() < 0.03:
        body["messages"] = []
    return body


def resets_of(value: str) -> str:
    """Leave the times of a header open."""
    return re.sub(r";t=\d+|^[\dhms.]+s$", "", value)


def seconds_of(headers: Mapping[str, str]) -> list[int]:
    """Give the times after which limits are whole again."""
    return [int(seconds) for seconds in re.findall(r";t=(\d+)", headers.get("ratelimit", ""))]


@dataclass
class Pair:
    """A request explained and then made: what was foretold, and what came."""

    told: dict[str, Any]
    real: httpx.Response
    record: Any
    heard: Heard

    def check(self) -> None:
        """Compare every number that both know."""
        told, real, record = self.told, self.real, self.record
        verdict = told["verdict"]
        assert verdict["status"] == real.status_code
        assert verdict["admitted"] == (real.status_code == 200)
        headers = {name: value for name, value in real.headers.items() if name not in NOT_OF_LIMITS}
        if record.engine and told["reservation"] and told["reservation"]["cut_by"]:
            # It asked for more before its first byte, and had none: what it holds and has spent is told apart anew.
            assert {name: resets_of(value) for name, value in told["headers"].items()} == {
                name: resets_of(value) for name, value in headers.items()
            }
            for one, other in zip(seconds_of(told["headers"]), seconds_of(headers), strict=True):
                assert abs(one - other) <= 1  # whole seconds, of times that differ by a tick
        else:
            assert told["headers"] == headers
        if not verdict["admitted"]:
            assert verdict["error"] == real.json()
            assert verdict["retry_after_ms"] == (
                int(real.headers["retry-after-ms"]) if "retry-after-ms" in real.headers else None
            )
        if record.model is None:
            return
        assert told["caller"] == {
            "organisation": record.organisation,
            "team": record.team,
            "tenant": record.tenant,
            "key": record.key,
        }
        assert told["model"]["name"] == record.model
        assert told["request"]["choices"] == record.choices
        if record.input_tokens is not None:
            assert told["input"]["tokens"] == record.input_tokens
            assert told["output"]["each"] == record.max_output
        quota = record.quota
        if quota is None:
            assert told["limits"] == []
            return
        assert verdict["limit"] == (quota.refused and quota.refused.key)
        if quota.reserved is not None:
            promised = told["reservation"]
            if record.usage.completion <= promised["output"] // 4 or promised["output"] == promised["output_at_most"]:
                assert promised["tokens"] == quota.reserved
            else:  # it went on, and had further slices
                assert promised["tokens"] <= quota.reserved
        if verdict["admitted"]:
            shadows = {hit.key for hit in quota.shadowed}
            would = {limit["limit"] for limit in told["limits"] if limit["shadow"] and not limit["fits"]}
            assert would <= shadows
            assert all(limit["fits"] or limit["shadow"] for limit in told["limits"])
            if record.engine:  # which, unlike the scripted upstream, brings no more than it may
                assert record.cost <= told["cost"]["at_most_nano_usd"]
        self.check_limits()

    def check_limits(self) -> None:
        """Compare, limit by limit, with what the store said to the real call."""
        told = {limit["limit"]: limit for limit in self.told["limits"]}
        for step, answer in self.heard:
            for index, (claim, (free, _)) in enumerate(zip(step.claims, answer.standings, strict=True)):
                limit = told[claim.limit.key]
                assert limit["capacity"] == claim.limit.capacity
                assert limit["shadow"] == claim.limit.shadow
                if answer.verdict is Verdict.GRANTED:
                    assert limit["takes"] == claim.used + claim.base + answer.granted * claim.per
                    assert (limit["free"], limit["remains"]) == (free + limit["takes"], free)
                else:
                    assert limit["free"] == free
                    assert index != answer.limit or not limit["fits"]
                    wait_ms = None if answer.wait_us == NEVER else -(-answer.wait_us // 1000)
                    assert index != answer.limit or limit["wait_ms"] == wait_ms


async def held(rng: random.Random, ledger: Ledger, tenant: Tenant, stack: AsyncExitStack) -> None:
    """Somebody else's call, which holds a part of what there is."""
    account = tenant.terms(rng.choice(["local", "remote"])).account
    promises = [ledger.allow(account, f"held-{rng.random()}")]
    promises.append(ledger.reserve(account, f"held-{rng.random()}", input_tokens=rng.randint(0, 50), max_output=20))
    for promise in promises:
        try:
            await stack.enter_async_context(promise)
        except LimitExceeded:
            return


@pytest.mark.parametrize("kind", ["embedded", "redis"])
async def test_what_is_explained_is_what_happens(
    kind: str, engine: EngineUpstream, upstream: Upstream, redis_server: RedisServer
) -> None:
    rng, clock, heard = random.Random(f"explain {kind}"), Clock(), Heard()
    policies = [random_policy(rng, f"o{number}") for number in range(POLICIES)]
    tenants = {f"k{number}": policy.keys[f"o{number}-1"].tenant for number, policy in enumerate(policies)}
    remote = http_upstream(upstream.url)
    served = (
        model("local", engine, encoder=engine.prompts, max_context=engine.max_context),
        model("remote", remote, max_output=64),
        model("counted", http_upstream(upstream.url), encoder=engine.prompts, max_context=300, max_output=64),
    )
    statuses: dict[str, int] = {}
    async with AsyncExitStack() as stack:
        store: Store = HeldBooks(clock, heard)
        if kind == "redis":
            store = await stack.enter_async_context(held_redis(redis_server, clock, heard))
        ledger = await stack.enter_async_context(Ledger(store, clock=clock))
        gateway = await stack.enter_async_context(running(*served, tenants=tenants, ledger=ledger, bounds=PATIENT))
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=gateway.url, timeout=30))
        for number in range(POLICIES):
            key = {"authorization": f"Bearer k{number}"}
            async with AsyncExitStack() as others:
                for _ in range(REQUESTS):
                    clock.now += rng.choice([0, 0, 1, 777_777, 5_000_000])
                    if rng.random() < 0.2:
                        await held(rng, ledger, tenants[f"k{number}"], others)
                    heard.clear()
                    pair = await explained_and_made(gateway, client, ledger, key, random_request(rng))
                    pair.heard.extend(heard)
                    try:
                        pair.check()
                    except AssertionError:
                        print(
                            json.dumps(pair.told, indent=1),
                            pair.real.status_code,
                            pair.real.headers,
                            pair.real.text,
                            pair.record,
                        )
                        raise
                    assert pair.told["policy"] == policies[number].version
                    outcome = f"{pair.real.status_code} {pair.told['verdict']['limit'] is not None}"
                    statuses[outcome] = statuses.get(outcome, 0) + 1

    assert set(statuses) >= {"200 False", "400 False", "404 False", "429 True"}, statuses
    assert min(statuses["200 False"], statuses["429 True"]) > 40, statuses


async def explained_and_made(
    gateway: Gateway, client: httpx.AsyncClient, ledger: Ledger, key: dict[str, str], body: dict[str, Any]
) -> Pair:
    """Have a request explained, make it, and wait until it is settled and recorded."""
    told = await client.post("/v1/explain", json=body, headers=key)
    assert told.status_code == 200, told.text
    path, count = told.json()["request"]["path"], len(gateway.records)
    real = await client.post(path, json=body, headers=key)
    await eventually(lambda: len(gateway.records) > count and not ledger.tasks)
    return Pair(told.json(), real, gateway.records[-1], [])


async def test_while_time_passes_it_differs_by_what_flowed_back(upstream: Upstream, redis_server: RedisServer) -> None:
    calm = Patience(connect_s=10.0, reply_s=10.0)
    store = RedisStore(lambda forgot: Single.at(Address(path=str(redis_server.path)), Door(), calm, forgot))
    tenant = limited(requests_a_minute(600), tokens_a_minute(60_000))  # 10 and 1,000 flow back each second
    async with (
        Ledger(store) as ledger,
        running(
            model("m", http_upstream(upstream.url), max_output=64), tenants={"k": tenant}, ledger=ledger
        ) as gateway,
        httpx.AsyncClient(base_url=gateway.url, headers={"authorization": "Bearer k"}, timeout=30) as client,
    ):
        for _ in range(10):
            began = time.monotonic()
            pair = await explained_and_made(gateway, client, ledger, {}, CHAT)
            passed_s = time.monotonic() - began

            assert pair.real.status_code == pair.told["verdict"]["status"] == 200
            assert pair.told["headers"].keys() == pair.real.headers.keys() - NOT_OF_LIMITS
            for of, rate in (("requests", 10), ("tokens", 1000)):
                name = f"x-ratelimit-remaining-{of}"
                gained = int(pair.real.headers[name]) - int(pair.told["headers"][name])
                assert 0 <= gained <= rate * passed_s + 1
    await store.aclose()


# A single gateway, in virtual time


@dataclass
class Asking:
    """A gateway whose one tenant asks for explanations."""

    gateway: Gateway
    client: httpx.AsyncClient
    ledger: Ledger
    tenant: Tenant

    async def explain(self, **fields: Any) -> Any:
        answer = await self.client.post("/v1/explain", json={**CHAT, **fields})
        assert answer.status_code == 200, answer.text
        return answer.json()


@asynccontextmanager
async def asking(
    served: Model, tenant: Tenant, *, store: Store | None = None, bounds: Bounds = PATIENT, clock: Clock | None = None
) -> AsyncIterator[Asking]:
    clock = clock or Clock()
    async with (
        Ledger(store or EmbeddedStore(clock), clock=clock, replicas=4) as ledger,
        running(served, tenants={"secret-key": tenant}, ledger=ledger, bounds=bounds) as gateway,
        httpx.AsyncClient(base_url=gateway.url, headers={"authorization": "Bearer secret-key"}, timeout=30) as client,
    ):
        yield Asking(gateway, client, ledger, tenant)


async def test_explaining_leaves_no_trace_and_runs_nothing() -> None:
    upstream, tenant = InProcess(), limited(requests_a_minute(2), at_a_time(1), tokens_a_minute(100))
    async with asking(model("m", upstream, max_output=50), tenant) as caller:
        before = await caller.ledger.look(tenant.terms("m").account)
        explained = [await caller.explain(stream=stream) for stream in (True, False) * 10]

        assert await caller.ledger.look(tenant.terms("m").account) == before
        assert upstream.calls == []
        assert not caller.ledger._open
        assert all(told["verdict"]["admitted"] for told in explained)
        assert explained[0]["headers"]["content-type"].startswith("text/event-stream")
        assert [limit["free"] for limit in explained[-1]["limits"]] == [2, 1, 100]


async def test_no_secret_is_told() -> None:
    async with asking(model("m", InProcess()), limited(requests_a_minute(2))) as caller:
        told = await caller.client.post("/v1/explain", json=CHAT)

        assert "secret-key" not in told.text
        assert told.json()["caller"] == {"organisation": "acme", "team": None, "tenant": "acme/web", "key": "key-1"}


async def test_behind_a_refusal_at_the_door_the_rest_is_told_all_the_same() -> None:
    tenant = limited(requests_a_minute(1), tokens_a_minute(1000))
    async with asking(model("m", InProcess(), max_output=50), tenant) as caller:
        assert (await caller.client.post("/v1/chat/completions", json=CHAT)).status_code == 200
        await eventually(lambda: len(caller.gateway.records) == 1)
        told = await caller.explain()

        assert (told["verdict"]["status"], told["verdict"]["limit"]) == (429, "acme/requests")
        assert told["verdict"]["retry_after_ms"] == 60_000
        assert [limit["fits"] for limit in told["limits"]] == [False, True]
        assert told["reservation"]["tokens"] == told["input"]["tokens"] + 50
        assert "x-penstock-input-tokens" not in told["headers"]  # as on the call's own 429


async def test_where_a_cap_refuses_the_limits_are_told_as_they_stand() -> None:
    tenant = limited(requests_a_minute(5), tokens_a_minute(1000))
    async with asking(model("m", InProcess(), max_output=50), tenant) as caller:
        told = await caller.explain(max_tokens=51)

        assert told["verdict"]["status"] == 400
        assert told["verdict"]["error"]["error"]["param"] == "max_tokens"
        assert [(limit["free"], limit["takes"]) for limit in told["limits"]] == [(5, 1), (1000, None)]
        assert told["reservation"] is None


async def test_a_limit_on_costs_is_told_in_dollars_too() -> None:
    text = f"""
prices: {{m: {{input: 2.5, output: 10}}}}
organisations:
  acme:
    limits: [{{cost: 5/month}}]
    tenants: {{web: {{keys: {{web-1: {{hash: "{HASH}"}}}}}}}}
"""
    policy = compile_policy([Source("policy.yaml", text)], pepper=None)
    async with asking(model("m", InProcess(), max_output=100), policy.keys["web-1"].tenant) as caller:
        told = await caller.explain()
        tokens = told["input"]["tokens"]

        assert told["policy"] == policy.version
        assert told["cost"]["input_nano_usd"] == tokens * 2500
        assert told["cost"]["at_most_nano_usd"] == tokens * 2500 + 100 * 10_000
        assert told["cost"]["at_most_usd"] == "0.0010375"
        (limit,) = told["limits"]
        assert (limit["level"], limit["kind"], limit["takes"]) == ("organisation", "month", tokens * 2500 + 1_000_000)


async def test_the_route_tells_room_and_who_refuses() -> None:
    refusal = BadRequest("No answers in verse.")
    upstreams = InProcess(name="a", refusal=refusal), InProcess(name="b", slots=0), InProcess(name="c", slots=3)
    async with asking(model("m", *upstreams), limited(requests_a_minute(5))) as caller:
        told = await caller.explain()

        assert told["route"] == [
            {"upstream": "a", "room": None, "refuses": "No answers in verse."},
            {"upstream": "b", "room": 0, "refuses": None},
            {"upstream": "c", "room": 3, "refuses": None},
        ]
        assert not told["verdict"]["waits"]

    full = InProcess(slots=0)
    async with asking(model("m", full), limited(requests_a_minute(5))) as caller:
        told = await caller.explain()
        assert (told["verdict"]["admitted"], told["verdict"]["waits"]) == (True, True)
        assert told["verdict"]["max_wait_s"] == PATIENT.max_wait_s

        caller.gateway.app.drain()
        told = await caller.explain()
        assert (told["verdict"]["status"], told["verdict"]["error"]["error"]["code"]) == (503, "draining")


async def test_what_is_no_request_is_not_explained() -> None:
    async with asking(model("m", InProcess()), Tenant("free")) as caller:
        for body in (b"{", b"[]", b'{"model": "m"}'):
            answer = await caller.client.post("/v1/explain", content=body, headers={"content-type": "application/json"})
            assert answer.status_code == 400
        text = await caller.client.post("/v1/explain", content=b"{}", headers={"content-type": "text/plain"})
        assert text.status_code == 415

        told = await caller.explain(temperature="warm")
        assert (told["verdict"]["status"], told["verdict"]["error"]["error"]["param"]) == (400, "temperature")


async def test_explaining_is_limited_for_each_tenant_and_says_when_to_come_back() -> None:
    bounds = Bounds(explained_per_minute=3)
    async with asking(model("m", InProcess()), limited(requests_a_minute(5)), bounds=bounds) as caller:
        for _ in range(3):
            told = await caller.explain()
        refused = await caller.client.post("/v1/explain", json=CHAT)

        assert refused.status_code == 429
        assert refused.headers["x-penstock-limit"] == "acme/web explain/min"
        assert 0 < int(refused.headers["retry-after-ms"]) <= 20_000
        assert told["limits"][0]["free"] == 5
        assert (await caller.client.post("/v1/chat/completions", json=CHAT)).status_code == 200


@pytest.mark.parametrize("on_failure", OnFailure)
async def test_without_the_store_it_tells_what_the_policy_says_then(on_failure: OnFailure, tmp_path: Path) -> None:
    nowhere = Address(path=str(tmp_path / "nobody.sock"))
    store = RedisStore(lambda forgot: Single.at(nowhere, Door(), Patience(1.0, 1.0), forgot))
    tenant = limited(requests_a_minute(8), tokens_a_minute(4000), on_failure=on_failure)
    async with asking(model("m", InProcess(), max_output=50), tenant, store=store) as caller:
        told = await caller.explain()
        real = await caller.client.post("/v1/chat/completions", json=CHAT)

        assert told["verdict"]["status"] == real.status_code == (503 if on_failure is OnFailure.CLOSED else 200)
        assert told["headers"] == {name: value for name, value in real.headers.items() if name not in NOT_OF_LIMITS}
        assert told["degraded"] == (on_failure is OnFailure.LOCAL)
        if told["degraded"]:
            assert [limit["capacity"] for limit in told["limits"]] == [2, 1000]
    await store.aclose()


# On the command line


async def test_the_command_prints_what_the_gateway_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "request.json"
    path.write_text(json.dumps(CHAT, separators=(",", ":")))
    monkeypatch.setenv("KEY", "secret-key")
    tenant = limited(requests_a_minute(1), tokens_a_minute(1000))
    async with asking(model("m", InProcess(), max_output=50), tenant) as caller:
        command = ["explain", str(path), "--url", caller.gateway.url, "--key", "env:KEY"]
        assert await asyncio.to_thread(main, command) == 0
        shown = capsys.readouterr().out
        assert shown.startswith("admitted\n")
        assert "caller    acme/web, key key-1, policy -\n" in shown
        assert "x-ratelimit-remaining-requests: 0\n" in shown
        [row] = [line for line in shown.splitlines() if line.startswith("acme/tokens")]
        assert row.split() == ["acme/tokens", "1000", "1000", "65", "65", "935", "3.9s", "yes"]

        assert await asyncio.to_thread(main, [*command, "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == await caller.explain()

        assert (await caller.client.post("/v1/chat/completions", json=CHAT)).status_code == 200
        assert await asyncio.to_thread(main, command) == 1
        shown = capsys.readouterr().out
        assert shown.startswith("refused with 429: Limit `acme/requests` reached")
        assert " in 1m0s\n" in shown


async def test_the_command_says_what_is_wrong_and_shows_no_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "request.json"
    path.write_text(json.dumps(CHAT))
    monkeypatch.setenv("KEY", "wrong-key")
    async with asking(model("m", InProcess()), Tenant("free")) as caller:
        for wrong in (
            [str(path), "--url", caller.gateway.url],
            [str(path), "--url", caller.gateway.url, "--key", "env:KEY"],
            [str(path), "--url", caller.gateway.url, "--key", "wrong-key"],
            [str(path), "--url", caller.gateway.url, "--key", "env:NONE"],
            [str(path), "--url", "http://127.0.0.1:1"],
            [str(path), "--url", "file:///etc/passwd"],
            [str(tmp_path / "none.json"), "--url", caller.gateway.url],
        ):
            assert await asyncio.to_thread(main, ["explain", *wrong]) == 2
            told = capsys.readouterr()
            assert told.err.startswith("penstock: ")
            assert "wrong-key" not in told.err + told.out
