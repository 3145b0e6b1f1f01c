"""A tenant sees its own calls under way and ends them; nobody else's are there for it."""

import asyncio
import json
from typing import Any

import pytest

from cache.embedded import EmbeddedStore
from cache.ledger import Ledger
from engine.load import LoadedModel, LoadOptions, load
from gateway.call import Event
from gateway.identity.keyring import ApiKey
from gateway.telemetry.record import Ending
from gateway.upstreams import http
from gateway.upstreams.engine import EngineUpstream
from tests.gateway.conftest import Gateway, http_upstream, model, running
from tests.gateway.test_answers import PROMPTS
from tests.rig.in_process import WORDS, InProcess
from tests.rig.limited import at_a_time, limited, tokens_a_minute
from tests.rig.plain_client import Answer, PlainClient
from tests.rig.upstream import Upstream
from tests.tiny_model import tiny_model_dir

CHAT = "/v1/chat/completions"
KEYS = [ApiKey("alice", "alice-key"), ApiKey("bob", "bob-key")]
ALICE, BOB = {"authorization": "Bearer alice-key"}, {"authorization": "Bearer bob-key"}


def asked(*, stream: bool = False, **further: Any) -> dict[str, Any]:
    return {"model": "m", "stream": stream, "messages": [{"role": "user", "content": "a secret"}], **further}


async def listed(client: PlainClient, headers: dict[str, str] | None = None) -> list[dict[str, Any]]:
    data: list[dict[str, Any]] = json.loads((await client.ask("GET", "/v1/requests", headers=headers)).body)["data"]
    return data


async def cancel(client: PlainClient, call_id: str, headers: dict[str, str] | None = None) -> Answer:
    return await client.ask("POST", f"/v1/requests/{call_id}/cancel", headers=headers)


async def until_listed(
    client: PlainClient, *, tokens: int = 0, headers: dict[str, str] | None = None
) -> dict[str, Any]:
    while not (found := await listed(client, headers)) or (found[0]["completion_tokens"] or 0) < tokens:
        await asyncio.sleep(0.002)
    return found[0]


def held(**settings: Any) -> InProcess:
    return InProcess(hold=asyncio.Event(), takes_ids=True, **settings)


class Paused(InProcess):
    """Gives two words, and stops before the end."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(takes_ids=True, **settings)
        self.reached = asyncio.Event()

    async def _events(self):  # type: ignore[no-untyped-def]
        self.running += 1
        try:
            for word in WORDS:
                yield word
            self.reached.set()
            await asyncio.Event().wait()
            yield Event()
        finally:
            self.running -= 1


def settled(gateway: Gateway, upstream: InProcess) -> tuple[int, int, int, int]:
    return upstream.leased, upstream.running, gateway.metrics.in_flight, len(list(gateway.app.calls.of("anybody")))


async def test_a_call_under_way_is_listed_without_its_prompt() -> None:
    upstream = Paused()
    async with (
        running(model("m", upstream, encoder=PROMPTS)) as gateway,
        PlainClient(gateway.port) as caller,
        PlainClient(gateway.port) as client,
    ):
        await caller.send("POST", CHAT, asked(stream=True), {"x-request-id": "mine-1"})
        told = await until_listed(client, tokens=2)
        created = told.pop("created")
        await cancel(client, "mine-1")
        await caller.receive()
        after = await listed(client)

    assert created > 1_700_000_000
    assert told.pop("bytes") > 0
    assert told == {
        "id": "mine-1",
        "object": "request",
        "model": "m",
        "operation": "chat",
        "stream": True,
        "stage": "running",
        "prompt_tokens": told["prompt_tokens"],
        "completion_tokens": 2,
    }
    assert after == []


async def test_who_waits_for_room_is_listed_as_waiting_and_can_be_cancelled() -> None:
    upstream = held(slots=0)
    async with (
        running(model("m", upstream, encoder=PROMPTS)) as gateway,
        PlainClient(gateway.port) as caller,
        PlainClient(gateway.port) as client,
    ):
        await caller.send("POST", CHAT, asked(), {"x-request-id": "w"})
        told = await until_listed(client)
        answer = await cancel(client, "w")
        end = await caller.receive()

    assert (told["stage"], told["completion_tokens"]) == ("waiting", 0)
    assert (answer.status, json.loads(answer.body)["status"]) == (200, "cancelled")
    assert (end.status, json.loads(end.body)["error"]["code"], end.closes) == (499, "request_cancelled", False)
    assert settled(gateway, upstream) == (0, 0, 0, 0)
    assert [(record.status, record.ending, record.error) for record in gateway.records if record.model] == [
        (499, Ending.LEFT, "cancelled")
    ]


async def test_a_call_whose_answer_has_begun_ends_with_one_error_event_and_its_connection_goes_on() -> None:
    upstream = Paused()
    async with (
        running(model("m", upstream, encoder=PROMPTS)) as gateway,
        PlainClient(gateway.port) as caller,
        PlainClient(gateway.port) as client,
    ):
        await caller.send("POST", CHAT, asked(stream=True), {"x-request-id": "s"})
        await until_listed(client, tokens=2)
        await cancel(client, "s")
        end = await caller.receive()
        models = await caller.ask("GET", "/v1/models")

    assert end.body.count(b'"code":"request_cancelled"') == 1
    assert b"[DONE]" not in end.body
    assert (models.status, caller.opened) == (200, 1)
    assert settled(gateway, upstream) == (0, 0, 0, 0)
    [record] = [record for record in gateway.records if record.model]
    assert (record.ending, record.error, record.usage.completion) == (Ending.LEFT, "cancelled", 2)


async def test_a_cancelled_call_closes_its_http_upstream(upstream: Upstream) -> None:
    async with (
        running(model("m", http_upstream(upstream.url))) as gateway,
        PlainClient(gateway.port) as caller,
        PlainClient(gateway.port) as client,
    ):
        await caller.send("POST", CHAT, asked(stream=True, script={"hang_at": 2}), {"x-request-id": "h"})
        await until_listed(client)
        while not upstream.seen:
            await asyncio.sleep(0.002)
        await cancel(client, "h")
        end = await caller.receive()
        await upstream.seen[0].ended.wait()

    assert upstream.seen[0].ending == "left"
    assert b"request_cancelled" in end.body


async def test_a_call_whose_caller_has_the_whole_answer_is_over(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "SETTLE_S", 60.0)
    async with (
        running(model("m", http_upstream(upstream.url))) as gateway,
        PlainClient(gateway.port) as caller,
        PlainClient(gateway.port) as client,
    ):
        answer = await caller.ask("POST", CHAT, asked(stream=True, script={"linger": True}), {"x-request-id": "late"})
        ended = await cancel(client, "late")
        for writer in upstream.connections:
            writer.transport.abort()

    assert (answer.status, ended.status) == (200, 404)
    assert answer.body.endswith(b"data: [DONE]\n\n")
    [record] = [record for record in gateway.records if record.id == "late"]
    assert (record.status, record.ending) == (200, Ending.OK)


async def test_foreign_and_unknown_ids_are_answered_alike_and_end_nothing() -> None:
    upstream = Paused()
    async with (
        running(model("m", upstream, encoder=PROMPTS), keys=KEYS) as gateway,
        PlainClient(gateway.port) as caller,
        PlainClient(gateway.port) as client,
    ):
        await caller.send("POST", CHAT, asked(stream=True), {**ALICE, "x-request-id": "alices"})
        await until_listed(client, tokens=2, headers=ALICE)
        foreign, unknown = await cancel(client, "alices", BOB), await cancel(client, "nobodys", BOB)
        seen = await listed(client, BOB)
        still = await listed(client, ALICE)
        own = await cancel(client, "alices", ALICE)
        await caller.receive()
        gone = await cancel(client, "alices", ALICE)

    assert (foreign.status, unknown.status, gone.status, own.status) == (404, 404, 404, 200)
    assert foreign.body.replace(b"alices", b"nobodys") == unknown.body
    assert (seen, [each["id"] for each in still]) == ([], ["alices"])


async def test_calls_of_one_name_are_cancelled_together() -> None:
    upstream = held()
    async with (
        running(model("m", upstream, encoder=PROMPTS)) as gateway,
        PlainClient(gateway.port) as first,
        PlainClient(gateway.port) as second,
        PlainClient(gateway.port) as client,
    ):
        for caller in (first, second):
            await caller.send("POST", CHAT, asked(), {"x-request-id": "twin"})
        while len(await listed(client)) < 2:
            await asyncio.sleep(0.002)
        await cancel(client, "twin")
        ends = [await caller.receive() for caller in (first, second)]

    assert [end.status for end in ends] == [499, 499]
    assert settled(gateway, upstream) == (0, 0, 0, 0)


async def test_a_name_with_a_slash_can_be_cancelled() -> None:
    upstream = held()
    async with (
        running(model("m", upstream, encoder=PROMPTS)) as gateway,
        PlainClient(gateway.port) as caller,
        PlainClient(gateway.port) as client,
    ):
        await caller.send("POST", CHAT, asked(), {"x-request-id": "a/b/cancel"})
        await until_listed(client)
        answer = await cancel(client, "a/b/cancel")
        end = await caller.receive()

    assert (answer.status, end.status) == (200, 499)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    path = tiny_model_dir(tmp_path_factory.mktemp("engine"), hidden_size=32, max_positions=512)
    return load(path, LoadOptions(num_blocks=64, threads=1))


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_an_engine_s_cancelled_call_frees_its_blocks_and_is_charged_what_it_produced(
    loaded: LoadedModel, stream: bool
) -> None:
    tenant, store = limited(tokens_a_minute(10_000), at_a_time(3)), EmbeddedStore()
    engine = EngineUpstream("local", loaded)
    served = model("m", engine, encoder=engine.prompts, max_context=engine.max_context)
    async with (
        Ledger(store) as ledger,
        running(served, tenants={"k": tenant}, ledger=ledger) as gateway,
        PlainClient(gateway.port) as caller,
        PlainClient(gateway.port) as client,
    ):
        mine = {"authorization": "Bearer k"}
        body = {"model": "m", "prompt": "The", "max_tokens": 450, "ignore_eos": True, "stream": stream}
        await caller.send("POST", "/v1/completions", body, {**mine, "x-request-id": "billed"})
        seen = (await until_listed(client, tokens=3, headers=mine))["completion_tokens"]
        answer = await cancel(client, "billed", mine)
        end = await caller.receive()
        stats = engine.stats()
        standings = list(await ledger.look(tenant.terms("m").account))
        engine._engine.scheduler.pool.check_integrity()

    [record] = [record for record in gateway.records if record.model]
    assert (answer.status, end.status, b"request_cancelled" in end.body) == (200, 200 if stream else 499, True)
    assert (stats["running"], stats["waiting"], stats["aborts"]) == (0, 0, 1)
    assert stats["free_blocks"] + stats["cached_blocks"] == stats["total_blocks"]
    assert seen <= record.usage.completion == stats["generated_tokens"] < 450
    charged = {standing.limit.key: standing.limit.capacity - standing.free for standing in standings}
    assert charged["acme/concurrency"] == 0
    assert charged["acme/tokens"] in range(record.usage.prompt + record.usage.completion + 1)


async def test_the_registry_is_left_by_every_call(upstream: Upstream) -> None:
    async with (
        running(model("m", http_upstream(upstream.url)), keys=[ApiKey(f"t{n}", f"k{n}") for n in range(5)]) as gateway,
        PlainClient(gateway.port) as caller,
    ):
        for number in range(5):
            await caller.ask("POST", CHAT, asked(), {"authorization": f"Bearer k{number}"})
            await caller.ask("POST", CHAT, asked(script={"status": 500}), {"authorization": f"Bearer k{number}"})

        assert gateway.app.calls.tenants == 0
