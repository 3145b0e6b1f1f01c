"""Upstreams that fail in every way, over real sockets: what the caller gets, and what the upstream is left with.

Each promise is looked at twice: as the gateway stands, and with the defence taken out that it rests on.
"""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

import httpx
import pytest

from cache.embedded import EmbeddedStore
from cache.ledger import Ledger
from gateway.attempts.attempt import Running
from gateway.attempts.recovery import Recovery
from gateway.call import Event
from gateway.errors import GatewayError
from gateway.upstreams.http import Clocks, HttpUpstream
from policies.breaker import BreakerTerms
from policies.hedge import HedgeTerms
from policies.retry import RetryTerms
from policies.retry_budget import BudgetTerms
from tests.gateway.conftest import Gateway, http_upstream, model, running
from tests.rig.limited import limited, tokens_a_minute
from tests.rig.upstream import Upstream, eventually, scripted_upstream

CHAT = "/v1/chat/completions"
ONCE = RetryTerms(max_attempts=1)
QUICK = Clocks(connect_s=1.0, first_chunk_s=0.15, between_s=0.15, total_s=5.0)
PATIENT = Clocks(connect_s=1.0, first_chunk_s=60.0, between_s=60.0, total_s=60.0)
CLOSED_PORT = "http://127.0.0.1:1/v1"  # nobody listens there


@dataclass
class Site:
    """A gateway before scripted upstreams, and a caller."""

    gateway: Gateway
    client: httpx.AsyncClient
    servers: list[Upstream]
    upstreams: list[HttpUpstream]

    async def ask(self, script: Mapping[str, Any] | None = None, **fields: Any) -> httpx.Response:
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "script": script or {}} | fields
        return await self.client.post(CHAT, json=body)

    @property
    def attempts(self) -> int:
        return sum(len(server.seen) for server in self.servers)


@asynccontextmanager
async def site(
    *,
    retry: RetryTerms | None = None,
    budget: BudgetTerms | None = None,
    breaker: BreakerTerms | None = None,
    hedge: HedgeTerms | None = None,
    clocks: Clocks | None = None,
    servers: int = 1,
    before: tuple[str, ...] = (),
    **settings: Any,
) -> AsyncIterator[Site]:
    """Serve the model `m` from upstreams at the URLs `before`, then from so many scripted servers."""
    async with asyncio.timeout(30):
        running_servers = [scripted_upstream() for _ in range(servers)]
        started = [await server.__aenter__() for server in running_servers]
        try:
            urls = [*before, *(server.url for server in started)]
            upstreams = [http_upstream(url, str(number), clocks=clocks) for number, url in enumerate(urls)]
            recovery = Recovery(
                upstreams,
                retry=retry or RetryTerms(base_s=0.001),
                budget=budget,
                breakers=dict.fromkeys(upstreams, breaker) if breaker else {},
                hedge=hedge,
                rng=Random(1),
            )
            async with (
                running(model("m", *upstreams, recovery=recovery), **settings) as gateway,
                httpx.AsyncClient(base_url=gateway.url, timeout=10, headers={"authorization": "Bearer k"}) as client,
            ):
                yield Site(gateway, client, started, upstreams)
                await eventually(lambda: not any(upstream.in_flight for upstream in upstreams))
        finally:
            for server in running_servers:
                await server.__aexit__(None, None, None)


def events_of(response: httpx.Response) -> list[Any]:
    """The data of each event, `[DONE]` left as it is."""
    data = [block.removeprefix("data: ") for block in response.text.split("\n\n") if block]
    return [each if each == "[DONE]" else json.loads(each) for each in data]


def words_of(events: list[Any]) -> list[str]:
    deltas = [event["choices"][0]["delta"] for event in events if event != "[DONE]" and event.get("choices")]
    return [delta["content"] for delta in deltas if delta.get("content")]


def finishes_of(events: list[Any]) -> list[str]:
    choices = [choice for event in events if event != "[DONE]" for choice in event.get("choices", ())]
    return [choice["finish_reason"] for choice in choices if choice["finish_reason"]]


def first_fails(script: dict[str, Any]) -> Callable[[int], dict[str, Any]]:
    return lambda number: script if number == 0 else {}


# Before the first event.


@pytest.mark.fault_row(10)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("defended", [True, False])
async def test_an_upstream_that_refuses_connections_is_passed_over(defended: bool, stream: bool) -> None:
    async with site(before=(CLOSED_PORT,), retry=None if defended else ONCE) as it:
        response = await it.ask(stream=stream)

    assert response.status_code == (200 if defended else 502)


@pytest.mark.fault_row(11)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("defended", [True, False])
@pytest.mark.parametrize(
    "script",
    [
        {"reset_at": "accept"},
        {"close_at": "accept"},
        {"reset_at": "head"},
        {"status": 500},
        {"status": 503, "headers": {"retry-after": "0"}},
        {"status": 429, "headers": {"retry-after-ms": "1"}},
        {"status": 408},
        {"status": 502, "body": "<html>", "content_type": "text/html"},
    ],
)
async def test_what_fails_before_the_first_event_is_tried_again(
    script: dict[str, Any], defended: bool, stream: bool
) -> None:
    async with site(retry=None if defended else ONCE) as it:
        it.servers[0].plan = first_fails(script)
        response = await it.ask(stream=stream)

        assert (response.status_code == 200) is defended
        assert it.attempts == (2 if defended else 1)
        assert it.servers[0].seen[0].body == it.servers[0].seen[-1].body


@pytest.mark.fault_row(15)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("defended", [True, False])
@pytest.mark.parametrize(
    "script",
    [
        {"status": 401},
        {"status": 200, "body": "<html>", "content_type": "text/html"},
        {"pieces": ["data: {\n\n"]},
        {"pieces": ["data: " + "x" * 2_000_000]},
        {"pieces": [gzip.compress(b"data: {}\n\n").decode("latin-1")], "headers": {"content-encoding": "gzip"}},
        {"hang_at": "accept"},
        {"hang_at": "head"},
    ],
    ids=["credentials", "html", "malformed", "oversized", "gzip", "silent", "stalled"],
)
async def test_what_an_upstream_would_do_again_is_tried_elsewhere(
    script: dict[str, Any], defended: bool, stream: bool
) -> None:
    clocks = QUICK if stream else Clocks(connect_s=1.0, first_chunk_s=0.15, between_s=0.15, total_s=0.3)
    async with site(retry=None if defended else ONCE, servers=2, clocks=clocks) as it:
        it.servers[0].plan = lambda _: script
        response = await it.ask(stream=stream)

    hung = "hang_at" in script and not stream
    assert (response.status_code == 200) is (defended and not hung)  # a whole answer's clock is the last one
    assert len(it.servers[0].seen) == 1
    assert it.servers[0].seen[0].ending != "whole" or "hang_at" not in script


@pytest.mark.parametrize("defended", [True, False])
async def test_an_error_inside_a_200_before_anything_else_is_tried_again(defended: bool) -> None:
    async with site(retry=None if defended else ONCE) as it:
        it.servers[0].plan = first_fails({"error_at": 0})
        response = await it.ask(stream=True)

    assert (response.status_code == 200) is defended
    assert defended or response.status_code == 502


# After it.


class Blind:
    """Takes out that an upstream's failure is one: what breaks off has ended."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sees = Running.__anext__

        async def blind(running: Running) -> Event:
            try:
                return await sees(running)
            except GatewayError:
                raise StopAsyncIteration from None

        monkeypatch.setattr(Running, "__anext__", blind)


@pytest.mark.fault_row(12)
@pytest.mark.parametrize("defended", [True, False])
@pytest.mark.parametrize(
    "script",
    [
        {"reset_at": 3},
        {"close_at": 3},
        {"hang_at": 3},
        {"words": ["a", "b"], "finish": False, "done": False},
        {"error_at": 3},
    ],
    ids=["reset", "closed", "hung", "no end", "error"],
)
async def test_a_stream_that_breaks_off_says_so_once_is_not_repeated_and_is_charged_what_came(
    script: dict[str, Any], defended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not defended:
        Blind(monkeypatch)
    async with (
        Ledger(EmbeddedStore()) as ledger,
        site(servers=2, clocks=QUICK, tenants={"k": limited(tokens_a_minute(10_000))}, ledger=ledger) as it,
    ):
        it.servers[0].plan = lambda _: {"chunk_delay_s": 0.005} | script
        response = await it.ask(stream=True, max_tokens=50)
        events = events_of(response)

        told = [event for event in events if event != "[DONE]" and "error" in event]
        assert (len(told) == 1 and "error" in events[-1]) is defended
        assert finishes_of(events) == []
        assert (len(it.servers[0].seen), len(it.servers[1].seen)) == (1, 0)
        await eventually(lambda: bool(it.gateway.records))
        assert it.gateway.records[-1].usage.completion == len(words_of(events)) > 0
        if "hang_at" in script:
            await eventually(lambda: it.servers[0].seen[0].ending == "left")


@pytest.mark.fault_row(13)
@pytest.mark.parametrize("defended", [True, False])
@pytest.mark.parametrize(("place", "status"), [("accept", 504), ("head", 504), (3, 200)])
async def test_an_upstream_that_hangs_is_left_by_the_clock_that_runs_out(
    place: str | int, status: int, defended: bool
) -> None:
    async with site(clocks=QUICK if defended else PATIENT, retry=ONCE) as it:
        asking = asyncio.ensure_future(it.ask({"hang_at": place}, stream=True))
        done, _ = await asyncio.wait([asking], timeout=5.0 if defended else 0.6)
        if defended:
            assert (await asking).status_code == status
            await eventually(lambda: it.servers[0].seen[0].ending == "left")
        asking.cancel()
        await asyncio.wait([asking])

    assert bool(done) is defended


GOOD = 'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'


class Trusting:
    """An event stream that nobody looks into: bytes pass, and their end is the end."""

    def __init__(self, *, hide_usage: bool = False) -> None:
        self.done, self.begun, self.holding, self.error = False, False, False, None

    def feed(self, chunk: bytes) -> Event | None:
        self.begun = True
        return Event(raw=chunk)

    def finish(self) -> Event | None:
        self.done = True
        return None


@pytest.mark.fault_row(15)
@pytest.mark.parametrize("defended", [True, False])
@pytest.mark.parametrize("delay_s", [0.0, 0.02], ids=["together", "apart"])
@pytest.mark.parametrize(
    "garbage",
    [
        "data: {garbage\n\n",
        "data: {garbage}\n\n",
        "data: garbage\n\n",
        'data: ["garbage"]\n\n',
        'data: {"choices": "\xff garbage"}\n\n',
        "data: {\r\rdata: garbage\r\r",
        "\x1f\x8b garbage",
        "<html>garbage</html>",
        ": comment\n\ndata: {garbage",
        "data: " + "garbage" * 200_000,
        'data: {"error": {"message": "x"}}\n\ndata: {"garbage": 1}\n\n',
        "",
    ],
    ids=["cut", "braces", "word", "list", "no utf-8", "cr", "gzip", "html", "torn", "endless", "error", "nothing"],
)
async def test_garbage_behind_a_good_event_is_an_error_and_not_forwarded(
    garbage: str, delay_s: float, defended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not defended:
        monkeypatch.setattr("gateway.upstreams.http.EventStream", Trusting)
    async with site(retry=ONCE) as it:
        pieces = [GOOD, *([garbage] if garbage else [])]
        response = await it.ask({"pieces": pieces, "chunk_delay_s": delay_s}, stream=True)

    told = response.text.removeprefix(GOOD).removeprefix(": comment\n\n")
    assert response.status_code == 200
    assert told.startswith('data: {"error":') is (defended or '"error"' in garbage)
    assert ("garbage" not in told and told.count("data:") == 1) is defended


@pytest.mark.fault_row(15)
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("cut", [1, 2, 3, 7, 64])
async def test_whatever_the_protocol_allows_arrives_whole(newline: str, cut: int) -> None:
    """A byte order mark, comments, no space, data on two lines, a character of several bytes, at every cut."""
    first = json.dumps({"choices": [{"index": 0, "delta": {"content": "é…"}}]}, ensure_ascii=False)
    lines = ["\ufeff: hello", "", "data:" + first, "", 'data: {"choices": [{"index": 0,', 'data: "delta": {}}]}', ""]
    lines += [
        "event: x",
        'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}',
        "",
        "data:[DONE]",
        "",
        "",
    ]
    stream = newline.join(lines).encode().decode("latin-1")
    async with site(retry=ONCE) as it:
        response = await it.ask({"pieces": [stream], "cut_bytes": cut}, stream=True)

    assert response.status_code == 200
    assert "é…" in response.content.decode()
    assert "error" not in response.text
    assert response.text.replace("\r\n", "\n").replace("\r", "\n").endswith("data:[DONE]\n\n")


# Storms.


@pytest.mark.fault_row(16)
@pytest.mark.parametrize("defended", [True, False])
async def test_a_storm_of_429_is_answered_with_its_retry_after_and_little_is_sent(defended: bool) -> None:
    unbounded = BudgetTerms(ratio=1000.0, floor_per_s=10_000.0)
    breaker = BreakerTerms() if defended else None
    async with site(breaker=breaker, budget=None if defended else unbounded) as it:
        it.servers[0].plan = lambda _: {"status": 429, "headers": {"retry-after-ms": "20"}}
        answers = [await it.ask(stream=bool(number % 2)) for number in range(60)]

        assert (it.attempts <= 20) is defended
    told = [answer for answer in answers if answer.status_code == 429]
    assert told
    assert {answer.headers["retry-after-ms"] for answer in told} == {"20"}
    advised = {answer.headers.get("x-should-retry") for answer in told}
    assert "false" in advised  # and nothing where the breaker is why we went no further
    assert advised <= {"false", None}
    away = [answer for answer in answers if answer.status_code == 503]
    assert bool(away) is defended
    assert all(0 < int(answer.headers["retry-after-ms"]) <= 4000 for answer in away)


@pytest.mark.fault_row(16)
@pytest.mark.parametrize("defended", [True, False])
@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"retry-after": "7"}, ("7", "7000")),
        ({"retry-after": "120"}, ("120", "120000")),
        ({"retry-after": "3600"}, ("3600", None)),  # in milliseconds it would be taken for a mistake
        ({"retry-after-ms": "9000000"}, ("9000", None)),
        ({"retry-after": "99999999999"}, (None, None)),
        ({}, (None, None)),
    ],
)
async def test_an_upstreams_429_reaches_the_caller_with_a_time_that_clients_take(
    asked: dict[str, str], told: tuple[str | None, str | None], defended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not defended:
        monkeypatch.setattr("gateway.upstreams.wire.retry_headers", lambda wait_s: {"retry-after-ms": f"{wait_s}"})
    async with site(retry=ONCE) as it:
        answer = await it.ask({"status": 429, "headers": asked})

    assert (answer.status_code, answer.headers["x-should-retry"]) == (429, "false")
    times = (answer.headers.get("retry-after"), answer.headers.get("retry-after-ms"))
    assert (times == told) is (defended or told == (None, None))


@pytest.mark.fault_row(10, 17)
@pytest.mark.parametrize("defended", [True, False])
async def test_one_probe_at_a_time_finds_out_that_an_upstream_is_well(defended: bool) -> None:
    terms = BreakerTerms(consecutive=3, open_s=0.05, max_open_s=0.05, probe_interval_s=0.05)
    async with site(breaker=terms if defended else None, retry=ONCE) as it:
        server = it.servers[0]
        server.plan = lambda number: {"status": 500} if number < 3 else {"head_delay_s": 0.2}
        for _ in range(3):
            assert (await it.ask()).status_code == 500
        await asyncio.sleep(0.15)
        answers = await asyncio.gather(*(it.ask() for _ in range(10)))

        assert sum(answer.status_code == 200 for answer in answers) == (1 if defended else 10)
        assert len(server.seen) == 3 + (1 if defended else 10)
        assert (await it.ask()).status_code == 200


# Hedges.


@pytest.mark.fault_row(20)
@pytest.mark.parametrize("defended", [True, False])
async def test_a_late_stream_is_hedged_and_its_loser_left_before_the_winner_has_ended(defended: bool) -> None:
    async with site(servers=2, hedge=HedgeTerms(min_points=5, share=1.0) if defended else None) as it:
        for _ in range(6):
            assert (await it.ask(stream=True)).status_code == 200
        it.servers[0].plan = lambda _: {"head_delay_s": 3.0}
        it.servers[1].plan = lambda _: {"chunk_delay_s": 0.05}
        response = await it.ask(stream=True)

        assert words_of(events_of(response)) == ["Hello", " from", " up", "stream", "."]
        assert (it.servers[0].seen[-1].ending == "left") is defended
        assert len(it.servers[1].seen) == int(defended)
        await eventually(lambda: len(it.gateway.records) == 7)
        attempts = it.gateway.records[-1].attempts
        assert [each.lost for each in attempts] == ([True, False] if defended else [False])


# What it costs.


@pytest.mark.fault_row(11)
@pytest.mark.parametrize(
    ("script", "charged"),
    [
        ({"status": 500}, False),
        ({"status": 429}, False),
        ({"error_at": 0}, False),
        ({"reset_at": "accept"}, True),  # it may have been at work
    ],
)
@pytest.mark.parametrize("heals", [True, False])
async def test_a_call_is_charged_once_however_many_attempts_it_took(
    script: dict[str, Any], charged: bool, heals: bool
) -> None:
    tenant = limited(tokens_a_minute(10_000))
    async with Ledger(EmbeddedStore()) as ledger, site(tenants={"k": tenant}, ledger=ledger) as it:
        it.servers[0].plan = lambda number: {} if heals and number == 2 else script
        response = await it.ask(stream=True, max_tokens=50, stream_options={"include_usage": True})

        assert (response.status_code == 200) is heals
        await eventually(lambda: bool(it.gateway.records))
        record = it.gateway.records[-1]
        assert len(record.attempts) == 3
        if heals:
            assert (record.usage.prompt, record.usage.completion) == (7, 5)
        else:
            assert record.usage.completion == 0
            assert (record.usage.prompt == record.input_tokens) is charged
            assert charged or record.usage.prompt == 0
