"""A recorded log under another policy: the refusals that happened, those of an oracle, and logs as they really are."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from cache.embedded import EmbeddedStore
from cache.ledger import Ledger
from gateway.call import Model
from gateway.cli import main
from gateway.configuration.config import EngineModel
from gateway.dry_run.replay_command import Report, replayed
from gateway.dry_run.replay_log import LogReader, by_arrival
from gateway.telemetry.log_line import LineWriter
from gateway.telemetry.record import RequestRecord
from gateway.upstreams.engine import EngineUpstream
from policies.compile import Source, compile_policy
from policies.policy import Policy
from tests.gateway.conftest import Gateway, http_upstream, model, running
from tests.rig.in_process import InProcess
from tests.rig.upstream import Upstream, eventually
from tests.tiny_model import tiny_model_dir

HASH = "blake2b:KjHNpKUIUTA2lqfLTXU_pTFBdzXl83H_fVxrUFH50vw"
START = datetime(2026, 9, 21, 14, 0, tzinfo=UTC)
Answers = Sequence[tuple[str, str, str, int]]  # tenant, refused or cut, by what, how often


def policy_of(limits: str, *, slice_tokens: int = 16, further: str = "") -> Policy:
    """One tenant with limits that do not come back while a test runs."""
    text = f"""
prices: {{"*": {{input: 2.5, cached_input: 1, output: 10}}}}
organisations:
  acme:
    slice_tokens: {slice_tokens}
    tenants:
      web: {{limits: [{limits}], {further} keys: {{web-1: {{hash: "{HASH}"}}}}}}
      other: {{keys: {{other-1: {{hash: "{HASH}"}}}}}}
"""
    return compile_policy([Source("new.yaml", text)], pepper=None)


def told(report: Report) -> Answers:
    return [(hit.tenant, hit.what, hit.by, hit.times) for hit in report.hits]


def happened(records: Iterable[RequestRecord]) -> Answers:
    """Count what limits did, from the records themselves."""
    found: Counter[tuple[str, str, str]] = Counter()
    for record in records:
        quota = record.quota
        if quota is not None and record.tenant is not None:
            hits = [("refused", quota.refused), ("cut", quota.ended), *(("shadow", hit) for hit in quota.shadowed)]
            found.update((record.tenant, what, hit.key) for what, hit in hits if hit is not None)
    return [(*key, times) for key, times in sorted(found.items())]


def log_of(records: Iterable[RequestRecord]) -> list[bytes]:
    writer = LineWriter()
    return [writer.write(record) + b"\n" for record in records]


# Logs that a real gateway wrote


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_dir(tmp_path_factory.mktemp("model") / "tiny", hidden_size=32, num_layers=1, max_positions=512)


@asynccontextmanager
async def serving(policy: Policy, *models: Model) -> AsyncIterator[tuple[Gateway, httpx.AsyncClient]]:
    tenant = policy.keys["web-1"].tenant
    async with (
        Ledger(EmbeddedStore()) as ledger,
        running(*models, tenants={"k": tenant}, ledger=ledger) as gateway,
        httpx.AsyncClient(base_url=gateway.url, headers={"authorization": "Bearer k"}, timeout=60) as client,
    ):
        yield gateway, client


async def recorded(gateway: Gateway, calls: int) -> None:
    await eventually(lambda: len(gateway.records) == calls)


async def running_at(upstream: InProcess, calls: int) -> None:
    await eventually(lambda: upstream.running == calls)


async def test_the_same_policy_gives_the_refusals_that_happened(directory: Path, upstream: Upstream) -> None:
    policy = policy_of(
        "{requests: 60/744h}, {tokens: 2200/744h}, {output_tokens: 700/744h}, {cost: 0.1/744h},"
        "{input_tokens: 300/744h, model: remote}, {output_tokens: 100/744h, model: tiny, shadow: true}"
    )
    settings = EngineModel(path=str(directory), device="cpu", threads=1, num_blocks=256)
    engine = await EngineUpstream.open("tiny", settings, directory)
    tiny = model("tiny", engine, encoder=engine.prompts, max_context=engine.max_context)
    remote = model("remote", http_upstream(upstream.url), max_output=60)
    rng = random.Random(5)
    async with serving(policy, tiny, remote) as (gateway, client):
        for number in range(80):
            said = {"role": "user", "content": "fox " * rng.randint(1, 20)}
            body: dict[str, Any] = {"model": rng.choice(["tiny", "tiny", "remote"]), "messages": [said]}
            body["stream"] = rng.random() < 0.5
            if rng.random() < 0.8:
                body["max_tokens"] = rng.choice([3, 20, 50])
            if body["model"] == "tiny":
                body["ignore_eos"] = True
                body["max_tokens"] = body.get("max_tokens", 200)
            if rng.random() < 0.05:
                body["max_tokens"] = 10_000
            await client.post("/v1/chat/completions", json=body)
            await recorded(gateway, number + 1)
    records = gateway.records
    report = await asyncio.to_thread(replayed, log_of(records), policy)

    assert told(report) == happened(records)
    assert {what for _, what, _, _ in told(report)} == {"refused", "cut", "shadow"}
    [total] = report.tenants
    assert total.calls == 80
    assert total.refused == total.refused_then == sum(record.status == 429 for record in records)
    assert total.let_in == 0
    assert total.completion_tokens == sum(record.usage.completion for record in records)
    assert total.cost_nano_usd == sum(record.cost or 0 for record in records)


async def test_places_are_taken_and_given_back_as_they_were(upstream: Upstream) -> None:
    policy = policy_of("{concurrency: 2}")
    gate = asyncio.Event()
    held = InProcess(hold=gate)
    async with serving(policy, model("m", held)) as (gateway, client):
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        for _ in range(3):
            gate.clear()
            calls: list[asyncio.Task[httpx.Response]] = []
            before = len(gateway.records)
            for _ in range(2):
                calls.append(asyncio.create_task(client.post("/v1/chat/completions", json=body)))
                await running_at(held, len(calls))
            for _ in range(3):
                assert (await client.post("/v1/chat/completions", json=body)).status_code == 429
            gate.set()
            await asyncio.gather(*calls)
            await recorded(gateway, before + 5)
    report = await asyncio.to_thread(replayed, log_of(gateway.records), policy)

    assert told(report) == happened(gateway.records) == [("acme/web", "refused", "acme/web concurrency", 9)]

    tighter = await asyncio.to_thread(replayed, log_of(gateway.records), policy_of("{concurrency: 1}"))
    assert told(tighter) == [("acme/web", "refused", "acme/web concurrency", 12)]


# Logs that are made up


def line(at_s: float, **fields: Any) -> dict[str, Any]:
    time = (START + timedelta(seconds=at_s)).isoformat()
    known = {"id": "x", "path": "/v1/chat/completions", "status": 200, "ending": "ok", "ms": 1000.0, "model": "m"}
    who = {"tenant": "acme/web", "organisation": "acme", "key": "web-1", "engine": True, "first_event_ms": 100.0}
    return {"time": time, **known, **who, **fields}


def lines(*told: dict[str, Any]) -> list[bytes]:
    return [json.dumps(each).encode() + b"\n" for each in told]


def answer(at_s: float, prompt: int, completion: int, **fields: Any) -> dict[str, Any]:
    used = {"prompt_tokens": prompt, "input_tokens": prompt, "completion_tokens": completion}
    return line(at_s, **{"max_output": 1000, **used, **fields})


@pytest.mark.parametrize("engine", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_a_tighter_policy_gives_the_refusals_of_an_oracle(seed: int, engine: bool) -> None:
    """Calls one after another, under limits that do not come back: who fits is plain arithmetic."""
    rng = random.Random(seed)
    requests, tokens = rng.randint(5, 60), rng.randint(100, 4000)
    calls = [(rng.randint(1, 80), rng.randint(0, 120)) for _ in range(60)]
    log = [answer(2 * n, *call, engine=engine, stream=True) for n, call in enumerate(calls)]
    expected: Counter[tuple[str, str]] = Counter()
    entered = used = brought = 0
    for prompt, completion in calls:
        if entered == requests:
            expected["refused", "acme/web requests/744h"] += 1
            continue
        entered += 1
        room = tokens - used - prompt
        if room < 1:
            expected["refused", "acme/web tokens/744h"] += 1
            continue
        came = min(room, completion)
        used += prompt + came
        brought += came
        if came < completion:
            expected["cut", "acme/web tokens/744h"] += 1
    report = replayed(lines(*log), policy_of(f"{{requests: {requests}/744h}}, {{tokens: {tokens}/744h}}"))

    assert {(what, by): times for _, what, by, times in told(report)} == expected
    assert report.tenants[0].completion_tokens == brought


def test_limits_refill_in_the_time_of_the_log() -> None:
    log = lines(*[answer(10 * n, 5, 5) for n in range(60)])
    report = replayed(log, policy_of("{requests: 3/min}"))

    # Three at once and then one each 20 s: of the six of each minute, three.
    [(_, what, _, times)] = told(report)
    assert (what, times) == ("refused", 60 - 3 - 29)


def test_an_answer_is_cut_when_its_tokens_run_out_and_not_at_its_end() -> None:
    log = lines(answer(0, 10, 400, ms=4100.0, stream=True))
    report = replayed(log, policy_of("{output_tokens: 100/744h}"))

    [hit] = report.hits
    assert (hit.what, hit.times) == ("cut", 1)
    assert abs((hit.first - START).total_seconds() - 1.1) < 0.02  # a quarter of the way from 0.1 s to 4.1 s
    assert report.tenants[0].completion_tokens == 100


def test_tokens_of_long_answers_flow_back_while_they_run() -> None:
    """20 tokens a second under a limit of 20 a second and 200 at once: it is never in the way."""
    slow = answer(0, 10, 2400, ms=120_000.0, max_output=2400, stream=True)
    assert told(replayed(lines(slow), policy_of("{output_tokens: 20/s, burst: 200}"))) == []

    fast = answer(0, 10, 4800, ms=120_000.0, max_output=4800, stream=True)
    [(_, what, _, _)] = told(replayed(lines(fast), policy_of("{output_tokens: 20/s, burst: 200}")))
    assert what == "cut"


def test_a_whole_answer_of_an_upstream_reserves_all_that_it_may_bring() -> None:
    asked = [answer(n / 100, 10, 20, engine=False, asked_output=100, max_output=100) for n in range(5)]
    report = replayed(lines(*asked), policy_of("{output_tokens: 250/744h}"))

    # Two have all of theirs, the third is told to bring 50, which is more than it brought.
    assert told(report) == [("acme/web", "refused", "acme/web output_tokens/744h", 2)]


def test_caps_of_the_new_policy_refuse_and_cut() -> None:
    policy = policy_of(
        "", further="max_input_tokens: 50, models: [m], max_output_tokens: {default: 30, cap: 100, over: refuse},"
    )
    log = lines(
        answer(0, 51, 5),
        answer(1, 50, 40, stream=True),
        answer(2, 5, 5, asked_output=101),
        answer(3, 5, 5, asked_output=100),
        answer(4, 5, 5, model="another"),
    )
    report = replayed(log, policy)

    assert told(report) == [
        ("acme/web", "cut", "max_output_tokens", 1),
        ("acme/web", "refused", "input_too_long", 1),
        ("acme/web", "refused", "model_not_allowed", 1),
        ("acme/web", "refused", "output_too_long", 1),
    ]
    assert report.tenants[0].completion_tokens == 35


def test_who_was_refused_then_and_is_not_now_is_counted_apart() -> None:
    refused = line(0, status=429, ms=1.0, first_event_ms=None, bytes_in=400, quota={"refused": "acme/web requests/min"})
    report = replayed(lines(refused, {**refused, "input_tokens": 30}), policy_of("{input_tokens: 100/744h}"))

    [total] = report.tenants
    assert (total.refused, total.refused_then, total.let_in, total.prompt_tokens) == (1, 2, 1, 100)


def test_what_never_came_to_an_end_goes_on_like_the_others() -> None:
    ran = [answer(0, 5, 10), answer(1, 5, 30)]
    refused = line(
        10, status=429, ms=1.0, first_event_ms=None, input_tokens=7, quota={"refused": "acme/web requests/min"}
    )
    cut = answer(20, 5, 4, stream=True, quota={"ended": "acme/web output_tokens/day"})
    report = replayed(lines(*ran, refused, cut), policy_of(""))

    [total] = report.tenants
    assert (total.let_in, total.prompt_tokens) == (1, 5 + 5 + 7 + 5)
    assert total.completion_tokens == 10 + 30 + 20 + 20

    [hit] = replayed(lines(*ran, refused, cut), policy_of("{output_tokens: 64/744h}")).hits
    assert (hit.what, hit.times) == ("cut", 1)
    assert (hit.first - START).total_seconds() > 20


def test_lines_that_are_wrong_are_named_and_those_of_nobody_told() -> None:
    good = answer(0, 5, 5)
    log = [
        *lines(good),
        b"not json\n",
        b"\n",
        b'{"time": "yesterday"}\n',
        b"\xff\xfe\n",
        *lines(
            {**good, "key": "gone-1", "tenant": "acme/gone"},
            {"time": good["time"], "path": "/v1/models", "status": 200, "ms": 1},
        ),
        *lines({**good, "ms": -1}),
        *lines(good)[:1],
    ]
    report = replayed(log, policy_of("{requests: 5/min}"))

    assert [broken.line for broken in report.broken_lines] == [2, 4, 5, 8]
    assert (report.lines, report.broken, report.others, report.unknown) == (9, 4, 2, {"acme/gone": 1})
    assert report.tenants[0].calls == 2


def test_the_subject_of_a_token_is_found_by_its_names() -> None:
    issuer = """
issuers:
  "https://id.example": {organisation: acme, audiences: [penstock], jwks: "https://id.example/keys"}
organisations:
  acme: {defaults: {limits: [{requests: 1/744h}]}, tenants: {}}
"""
    policy = compile_policy([Source("new.yaml", issuer)], pepper=None)
    log = lines(*[answer(n, 5, 5, key="google|7 /x", tenant="acme/google|7%20%2Fx") for n in range(3)])

    assert told(replayed(log, policy)) == [("acme/google|7%20%2Fx", "refused", "acme/google|7%20%2Fx requests/744h", 2)]


def test_calls_are_sorted_by_arrival_in_pieces_that_fit() -> None:
    rng = random.Random(3)
    log = [answer(rng.uniform(0, 100), 5, 5, ms=float(rng.randint(1, 60_000))) for _ in range(500)]
    log.sort(key=lambda each: datetime.fromisoformat(each["time"]).timestamp() + each["ms"] / 1e3)
    entries = list(by_arrival(LogReader().entries(lines(*log)), piece=37))

    assert len(entries) == 500
    assert entries == sorted(entries, key=lambda entry: (entry.arrived, entry.number))
    assert entries == list(by_arrival(LogReader().entries(lines(*log))))


def test_the_command_prints_a_table_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, policy, prices = tmp_path / "access.log", tmp_path / "new.yaml", tmp_path / "prices.yaml"
    log.write_bytes(b"".join(lines(*[answer(n, 5, 5) for n in range(4)])))
    web = f'{{limits: [{{requests: 3/744h}}], keys: {{web-1: {{hash: "{HASH}"}}}}}}'
    policy.write_text(f"organisations: {{acme: {{tenants: {{web: {web}}}}}}}")
    prices.write_text('prices: {"*": {input: 1, output: 2}}')
    command = ["replay", str(log), "--policy", str(policy), "--policy", str(prices)]

    assert main(command) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[3].split() == ["acme/web", "4", "1", "0", "0", "0", "15", "15", "$0.000045"]
    assert shown[-1].split() == [
        "acme/web",
        "refused",
        "acme/web",
        "requests/744h",
        "1",
        *["2026-09-21", "14:00:03"] * 2,
    ]

    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["hits"][0]["times"] == 1

    assert main(["replay", str(tmp_path / "none"), "--policy", str(policy)]) == 2
    assert main(["replay", str(log), "--policy", str(log)]) == 2
    assert "access.log:" in capsys.readouterr().err
