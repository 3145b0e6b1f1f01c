"""What a call is charged, however it ends, and where an upstream's answer is stopped: over HTTP, in virtual time."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from cache.embedded import EmbeddedStore
from cache.errors import StoreUnavailable
from cache.ledger import Ledger
from gateway.app import Bounds
from gateway.upstreams.base import Upstream as GatewayUpstream
from policies.account import Account, OnFailure
from policies.bucket import Limit
from policies.holder import Measure, Rule
from policies.reservation import Answer, Step
from tests.gateway.conftest import Gateway, http_upstream, model, running
from tests.rig.in_process import InProcess
from tests.rig.limited import Clock, limited, output_a_minute, tokens_a_minute
from tests.rig.upstream import Upstream, eventually

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
LIMIT = 1000


@dataclass
class Metered:
    """A gateway under one tenant's limits."""

    gateway: Gateway
    client: httpx.AsyncClient
    ledger: Ledger
    account: Account
    clock: Clock

    async def ask(self, path: str = "/v1/chat/completions", **fields: Any) -> httpx.Response:
        return await self.client.post(path, json={**CHAT, **fields})

    async def spent(self) -> list[int]:
        """Tell how much of each limit is gone; time stands still."""
        return [standing.limit.capacity - standing.free for standing in await self.ledger.look(self.account)]

    async def over(self, requests: int = 1) -> None:
        """Wait until that many requests are reported."""
        await eventually(lambda: len(self.gateway.records) == requests)

    def quota(self, index: int = -1) -> Any:
        return self.gateway.records[index].quota


@asynccontextmanager
async def metered(
    upstream: GatewayUpstream, *rules: Rule, step: int = 256, bounds: Bounds | None = None, **settings: Any
) -> AsyncIterator[Metered]:
    clock, tenant = Clock(), limited(*rules, step=step)
    async with (
        Ledger(EmbeddedStore(clock), clock=clock) as ledger,
        running(model("m", upstream, **settings), tenants={"k": tenant}, ledger=ledger, bounds=bounds) as gateway,
        httpx.AsyncClient(base_url=gateway.url, headers={"authorization": "Bearer k"}, timeout=30) as client,
    ):
        yield Metered(gateway, client, ledger, tenant.terms("m").account, clock)


def words(count: int) -> list[str]:
    return [f"w{index} " for index in range(count)]


def chunks(body: str) -> list[dict[str, Any]]:
    """Decode a stream's events, and see that it ends as streams end."""
    events = [line.removeprefix("data: ") for line in body.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]]


def said(events: list[dict[str, Any]]) -> list[str]:
    """Give the pieces of text that a stream brought."""
    pieces = [choice["delta"].get("content") for event in events for choice in event["choices"]]
    return [piece for piece in pieces if piece]


# What is charged


async def test_a_whole_answer_is_charged_what_its_upstream_says(upstream: Upstream) -> None:
    async with metered(http_upstream(upstream.url), tokens_a_minute(LIMIT), output_a_minute(LIMIT)) as limits:
        assert (await limits.ask(max_tokens=50)).status_code == 200
        await limits.over()

        assert await limits.spent() == [7 + 5, 5]
        assert not limits.quota().exact
        assert limits.quota().overshoot == 0


@pytest.mark.parametrize("told", [True, False])
async def test_a_stream_is_charged_like_a_whole_answer(upstream: Upstream, told: bool) -> None:
    async with metered(http_upstream(upstream.url), tokens_a_minute(LIMIT), output_a_minute(LIMIT)) as limits:
        body = {"stream": True, "script": {"words": words(20)}}
        answer = await limits.ask(**body, **({"stream_options": {"include_usage": True}} if told else {}))
        await limits.over()
        record = limits.gateway.records[0]

        assert len(said(chunks(answer.text))) == 20
        assert record.usage.completion == 20  # counted where it was not told
        assert await limits.spent() == [record.usage.prompt + 20, 20]
        assert record.usage.prompt == (7 if told else record.input_tokens)


@pytest.mark.parametrize(
    "script",
    [
        {"status": 500},
        {"status": 429},
        {"status": 400},
        {"body": '{"error": {"message": "in band", "code": 500}}'},
    ],
)
async def test_an_answer_that_an_upstream_refused_costs_nothing(upstream: Upstream, script: dict[str, Any]) -> None:
    async with metered(http_upstream(upstream.url), tokens_a_minute(LIMIT)) as limits:
        assert (await limits.ask(script=script)).status_code >= 400
        await limits.over()

        assert await limits.spent() == [0]


async def test_a_call_that_never_reached_an_upstream_costs_nothing() -> None:
    async with metered(http_upstream("http://127.0.0.1:1/v1"), tokens_a_minute(LIMIT)) as limits:
        answer = await limits.ask()
        await limits.over()

        assert answer.status_code == 502
        assert await limits.spent() == [0]
        assert answer.headers["x-ratelimit-limit-tokens"] == str(LIMIT)


async def test_a_call_that_found_no_room_costs_nothing() -> None:
    bounds = Bounds(max_wait_s=0.01)
    async with metered(InProcess(slots=0), tokens_a_minute(LIMIT), bounds=bounds) as limits:
        answer = await limits.ask()
        await limits.over()

        assert answer.status_code == 503
        assert await limits.spent() == [0]


async def test_an_answer_that_breaks_off_is_charged_its_input_and_what_came(upstream: Upstream) -> None:
    async with metered(http_upstream(upstream.url), output_a_minute(LIMIT), tokens_a_minute(LIMIT)) as limits:
        answer = await limits.ask(stream=True, script={"words": words(20), "reset_at": 8})  # a role, and seven words
        await limits.over()

        assert '"code":"upstream_reset"' in answer.text
        assert await limits.spent() == [7, limits.gateway.records[0].input_tokens + 7]  # type: ignore[operator]


async def test_who_leaves_pays_for_what_was_produced(upstream: Upstream) -> None:
    async with metered(http_upstream(upstream.url), output_a_minute(LIMIT)) as limits:
        body = {**CHAT, "stream": True, "script": {"words": words(20), "hang_at": 11}}
        async with limits.client.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = 0
            async for line in answer.aiter_lines():
                lines += bool(line)
                if lines == 11:  # a role, and ten words
                    break
        await limits.over()
        await upstream.seen[0].ended.wait()

        assert await limits.spent() == [10]
        assert upstream.seen[0].ending == "left"


# Where an upstream is stopped


@pytest.mark.parametrize("cut_bytes", [None, 17, 4096])
async def test_a_stream_stops_at_the_edge_and_names_the_limit(upstream: Upstream, cut_bytes: int | None) -> None:
    async with metered(http_upstream(upstream.url), output_a_minute(30), step=8) as limits:
        script = {"words": words(500), "cut_bytes": cut_bytes, "chunk_delay_s": 0.0005}
        answer = await limits.ask(stream=True, stream_options={"include_usage": True}, script=script)
        await limits.over()
        *events, last, usage = chunks(answer.text)

        assert said(events) == words(30)
        assert last["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}]
        assert last["penstock"] == {"limit": "acme/output"}
        assert (last["id"], last["model"], last["object"]) == ("scripted-1", "m", "chat.completion.chunk")
        assert usage["choices"] == []
        charged = usage["usage"]["completion_tokens"]
        assert await limits.spent() == [charged]
        assert limits.quota().ended.key == "acme/output"
        assert limits.quota().overshoot == charged - 30 > 0
        await upstream.seen[0].ended.wait()
        assert upstream.seen[0].ending == "left"


async def test_a_completion_is_cut_in_its_own_words(upstream: Upstream) -> None:
    async with metered(http_upstream(upstream.url), output_a_minute(3)) as limits:
        body = {"model": "m", "prompt": "x", "stream": True, "script": {"words": words(9), "chunk_delay_s": 0.001}}
        answer = await limits.client.post("/v1/completions", json=body)
        *events, last = chunks(answer.text)

        assert [event["choices"][0]["text"] for event in events] == words(3)
        assert last["choices"] == [{"index": 0, "text": "", "logprobs": None, "finish_reason": "length"}]
        assert last["penstock"] == {"limit": "acme/output"}


async def test_every_choice_that_still_runs_is_ended(upstream: Upstream) -> None:
    async with metered(http_upstream(upstream.url), output_a_minute(8)) as limits:
        answer = await limits.ask(stream=True, n=3, script={"words": words(9), "chunk_delay_s": 0.001})
        ends = [choice for event in chunks(answer.text) for choice in event["choices"] if choice["finish_reason"]]

        assert [(end["index"], end["finish_reason"]) for end in ends] == [(0, "length"), (1, "length"), (2, "length")]


async def test_what_comes_together_is_taken_apart_at_the_edge(upstream: Upstream) -> None:
    def chunk(index: int, text: str, finish: str | None = None) -> str:
        choice = {"index": index, "delta": {"content": text}, "finish_reason": finish}
        return f"data: {json.dumps({'choices': [choice]})}\n\n"

    together = chunk(0, "a") + chunk(1, "b", "stop") + chunk(0, "c") + chunk(0, "d") + chunk(0, "e", "stop")
    async with metered(http_upstream(upstream.url), output_a_minute(3)) as limits:
        answer = await limits.ask(stream=True, n=2, script={"pieces": [together, "data: [DONE]\n\n"]})
        await limits.over()
        *events, last = chunks(answer.text)

        assert said(events) == ["a", "b", "c"]
        assert (last["choices"][0]["index"], last["choices"][0]["finish_reason"]) == (0, "length")
        assert await limits.spent() == [5]
        assert limits.quota().overshoot == 2


async def test_an_answer_that_ends_just_at_the_edge_ends_by_itself(upstream: Upstream) -> None:
    async with metered(http_upstream(upstream.url), output_a_minute(5)) as limits:
        answer = await limits.ask(stream=True, script={"words": words(5)})
        await limits.over()
        last = chunks(answer.text)[-1]

        assert last["choices"][0]["finish_reason"] == "stop"
        assert "penstock" not in last
        assert await limits.spent() == [5]
        assert limits.quota().ended is None
        refused = await limits.ask(stream=True)
        assert refused.status_code == 429
        assert refused.headers["x-penstock-limit"] == "acme/output"


async def test_a_long_answer_takes_slice_after_slice(upstream: Upstream) -> None:
    async with metered(http_upstream(upstream.url), output_a_minute(1000), step=4) as limits:
        answer = await limits.ask(stream=True, script={"words": words(300)})
        await limits.over()

        assert len(said(chunks(answer.text))) == 300
        assert await limits.spent() == [300]


async def test_bytes_pass_untouched_where_the_quota_suffices(upstream: Upstream) -> None:
    script = {"words": words(40), "cut_bytes": 23}
    async with running(model("m", http_upstream(upstream.url))) as free, httpx.AsyncClient() as client:
        body = {**CHAT, "stream": True, "script": script}
        plain = await client.post(f"{free.url}/v1/chat/completions", json=body)
    async with metered(http_upstream(upstream.url), output_a_minute(40), tokens_a_minute(LIMIT), step=3) as limits:
        answer = await limits.ask(stream=True, script=script)

        assert answer.content == plain.content


async def test_log_probabilities_count_tokens(upstream: Upstream) -> None:
    entries = [{"token": "a", "logprob": -1.0}] * 4
    chunk = {"choices": [{"index": 0, "delta": {"content": "aaaa"}, "logprobs": {"content": entries}}]}
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    pieces = [f"data: {json.dumps(each)}\n\n" for each in (chunk, chunk, end)] + ["data: [DONE]\n\n"]
    async with metered(http_upstream(upstream.url), output_a_minute(LIMIT)) as limits:
        await limits.ask(stream=True, script={"pieces": pieces})
        await limits.over()

        assert await limits.spent() == [8]


async def test_usage_in_every_event_is_believed(upstream: Upstream) -> None:
    def chunk(completion: int, finish: str | None = None) -> str:
        usage = {"prompt_tokens": 2, "completion_tokens": completion}
        told = {"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": finish}], "usage": usage}
        return f"data: {json.dumps(told)}\n\n"

    pieces = [chunk(3), chunk(9), chunk(14, "stop"), "data: [DONE]\n\n"]
    async with metered(http_upstream(upstream.url), output_a_minute(LIMIT), tokens_a_minute(LIMIT)) as limits:
        await limits.ask(stream=True, script={"pieces": pieces})
        await limits.over()

        assert await limits.spent() == [14, 16]


class Losable:
    """A store that answers until it is `lost`."""

    def __init__(self) -> None:
        self.lost = False
        self._books = EmbeddedStore()
        self.clock = self._books.clock
        self.aclose = self._books.aclose

    async def probe(self) -> None:
        if self.lost:
            raise StoreUnavailable("gone", reason="lost")

    async def apply(self, organisation: str, step: Step, now: int | None = None) -> Answer:
        await self.probe()
        return await self._books.apply(organisation, step, now)


@pytest.mark.parametrize("on_failure", OnFailure)
async def test_a_stream_whose_store_is_lost_ends_or_goes_on_as_the_policy_says(
    upstream: Upstream, on_failure: OnFailure
) -> None:
    store, tenant = Losable(), limited(output_a_minute(10_000), step=8, on_failure=on_failure)
    async with (
        Ledger(store, close_s=0.01) as ledger,
        running(model("m", http_upstream(upstream.url)), tenants={"k": tenant}, ledger=ledger) as gateway,
        httpx.AsyncClient(base_url=gateway.url, headers={"authorization": "Bearer k"}, timeout=30) as client,
    ):
        body = {**CHAT, "stream": True, "script": {"words": words(200), "chunk_delay_s": 0.001}}
        async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            store.lost = True
            text = "\n".join([line async for line in lines]).strip()
        last = chunks(text)[-1]
        await eventually(lambda: len(gateway.records) == 1)
        quota = gateway.records[0].quota

        assert quota is not None
        if on_failure is OnFailure.CLOSED:
            assert last["choices"][0]["finish_reason"] == "length"
            assert last["penstock"] == {"limit": "store"}
            assert quota.ended is not None
            assert quota.ended.level == "store"
        else:
            assert last["choices"][0]["finish_reason"] == "stop"
            assert len(said(chunks(text))) == 200
            assert quota.degraded


# Whole answers


async def test_a_whole_answer_reserves_all_that_it_may_bring(upstream: Upstream) -> None:
    async with metered(http_upstream(upstream.url), output_a_minute(900), step=16) as limits:
        asking = asyncio.ensure_future(limits.ask(max_tokens=800, script={"hang_at": "head"}))
        await eventually(lambda: bool(upstream.seen))

        assert await limits.spent() == [800]
        asking.cancel()
        await limits.over()


async def test_an_upstream_that_ignores_its_bound_is_charged_and_reported(upstream: Upstream) -> None:
    async with metered(http_upstream(upstream.url), output_a_minute(20)) as limits:
        answer = await limits.ask(max_tokens=10, script={"words": words(50)})
        await limits.over()

        assert answer.status_code == 200
        assert "penstock" not in answer.json()  # it did not end for want of tokens
        assert await limits.spent() == [50]
        assert limits.quota().overshoot == 40
        assert b'penstock_quota_overshoot_tokens_total{model="m"} 40.0' in limits.gateway.metrics.exposition()


async def test_a_whole_answer_may_bring_what_remains_and_names_the_limit(upstream: Upstream) -> None:
    choice = {"index": 0, "message": {"content": "x"}, "finish_reason": "length"}
    body = {"choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 30}}
    async with metered(http_upstream(upstream.url), output_a_minute(30)) as limits:
        answer = await limits.ask(max_tokens=100, script={"body": json.dumps(body)})
        await limits.over()

        assert upstream.seen[0].fields["max_tokens"] == 30
        assert answer.json()["penstock"] == {"limit": "acme/output"}
        assert limits.quota().ended.key == "acme/output"
        assert await limits.spent() == [30]


async def test_a_whole_answer_names_its_limit_also_where_more_has_flowed_back_meanwhile(upstream: Upstream) -> None:
    choice = {"index": 0, "message": {"content": "x"}, "finish_reason": "length"}
    body = {"choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 20}}
    async with metered(http_upstream(upstream.url), output_a_minute(30)) as limits:
        await limits.ask(max_tokens=10, script={"words": words(10)})
        await limits.over()
        asking = asyncio.ensure_future(
            limits.ask(max_tokens=100, script={"body": json.dumps(body), "head_delay_s": 0.1})
        )
        await eventually(lambda: len(upstream.seen) == 2)
        limits.clock.now += 10_000_000

        assert (await asking).json()["penstock"] == {"limit": "acme/output"}
        await limits.over(2)


async def test_a_whole_answer_needs_a_token_for_each_choice(upstream: Upstream) -> None:
    async with metered(http_upstream(upstream.url), output_a_minute(3)) as limits:
        assert (await limits.ask(max_tokens=100, n=4)).status_code == 429
        assert (await limits.ask(max_tokens=100, n=3)).status_code == 200
        assert upstream.seen[0].fields["max_tokens"] == 1


async def test_a_whole_answer_without_usage_is_estimated_by_its_length(upstream: Upstream) -> None:
    body = {"choices": [{"index": 0, "message": {"content": "x" * 400}, "finish_reason": "stop"}]}
    async with metered(http_upstream(upstream.url), output_a_minute(LIMIT)) as limits:
        await limits.ask(script={"body": json.dumps(body)})
        await limits.over()

        assert await limits.spent() == [100]


# Costs, cached input, and what is not counted at all


async def test_costs_are_charged_by_price_with_cached_input_apart(upstream: Upstream) -> None:
    cost = Rule(Limit.bucket("acme cost/h", 10**9, 3_600_000_000), input=300, cached=30, output=1200)
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": 60}}
    body = {"choices": [{"index": 0, "message": {"content": "x"}, "finish_reason": "stop"}], "usage": usage}
    async with metered(http_upstream(upstream.url), cost) as limits:
        await limits.ask(script={"body": json.dumps(body)})
        await limits.over()

        assert await limits.spent() == [40 * 300 + 60 * 30 + 10 * 1200]


async def test_a_limit_on_input_alone_leaves_the_events_alone(upstream: Upstream) -> None:
    limit = Rule(Limit.bucket("acme/input", 100_000, 60_000_000), input=1, cached=1, measure=Measure.INPUT)
    async with metered(http_upstream(upstream.url), limit) as limits:
        answer = await limits.ask(stream=True, stream_options={"include_usage": True}, script={"words": words(3000)})
        await limits.over()

        assert len(said(chunks(answer.text))) == 3000
        assert await limits.spent() == [7]
        assert limits.quota().overshoot == 0
