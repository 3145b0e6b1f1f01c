"""The gateway before a server that misbehaves, over real sockets on both sides."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from gateway.app import Bounds
from gateway.call import Usage
from gateway.telemetry.record import Ending
from gateway.upstreams.http import Clocks
from policies.outcome import Outcome
from tests.gateway.conftest import Gateway, http_upstream, model, running
from tests.rig.upstream import Upstream, eventually, scripted_upstream

CHAT = "/v1/chat/completions"
QUICK = Clocks(connect_s=0.5, first_chunk_s=0.15, between_s=0.15, total_s=0.6)


def body(stream: bool = False, script: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    return {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": stream,
        "script": script or {},
    } | fields


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=gateway.url, timeout=10) as client:
        yield client


@pytest.fixture
async def quick(upstream: Upstream) -> AsyncIterator[Gateway]:
    """A gateway with short clocks."""
    async with running(model("m", http_upstream(upstream.url, clocks=QUICK))) as serving:
        yield serving


async def ask(gateway: Gateway, **fields: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=gateway.url, timeout=10) as client:
        return await client.post(CHAT, json=body(**fields))


def events_of(response: httpx.Response) -> list[str]:
    """The data of each event; fails on what is no event."""
    blocks = response.text.split("\n\n")
    assert blocks.pop() == ""
    assert all(block.startswith("data: ") for block in blocks)
    return [block.removeprefix("data: ") for block in blocks]


def text_of(events: list[str]) -> str:
    chunks = [json.loads(event) for event in events if event != "[DONE]"]
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk.get("choices"))


async def test_a_body_arrives_byte_for_byte(upstream: Upstream, client: httpx.AsyncClient) -> None:
    sent = b' {"messages" :[ {"role":"user","content":"\\u00e9 \xc3\xa9 1.50"}],"x":1.50e2,\n"model":"m"} '

    response = await client.post(CHAT, content=sent, headers={"content-type": "application/json"})

    assert response.status_code == 200
    assert upstream.seen[0].body == sent
    assert upstream.seen[0].path == CHAT


async def test_an_answer_comes_back_byte_for_byte(client: httpx.AsyncClient, gateway: Gateway) -> None:
    answer = '{ "choices" : [ ] , "extra":1.50, "usage":{"prompt_tokens":5,"completion_tokens":6} }'

    response = await client.post(CHAT, json=body(script={"body": answer}))

    assert response.text == answer
    await eventually(lambda: len(gateway.records) == 1)
    assert gateway.records[0].usage == Usage(5, 6)


async def test_only_the_model_is_renamed(upstream: Upstream) -> None:
    served = model("m", http_upstream(upstream.url), upstream_model="org/real-model")
    async with running(served) as gateway:
        sent = b'{"a":{"model":"m"}, "model" :\t"m" ,"messages":[{"role":"user"}]}'
        async with httpx.AsyncClient(base_url=gateway.url) as client:
            await client.post(CHAT, content=sent, headers={"content-type": "application/json"})

    assert upstream.seen[0].body == sent.replace(b'\t"m"', b'\t"org/real-model"')


async def test_headers_that_are_ours_or_the_callers_alone_do_not_go_along(upstream: Upstream) -> None:
    served = model("m", http_upstream(upstream.url, key="upstream-key"))
    async with running(served) as gateway, httpx.AsyncClient(base_url=gateway.url) as client:
        await client.post(
            CHAT,
            json=body(script={"headers": {"x-internal": "1", "set-cookie": "a=b", "keep-alive": "timeout=5"}}),
            headers={
                "authorization": "Bearer callers-key",
                "x-api-key": "callers-key",
                "cookie": "session=1",
                "connection": "keep-alive, x-hop",
                "x-hop": "1",
                "te": "trailers",
                "x-request-id": "caller-17",
                "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
                "tracestate": "a=b",
            },
        )

    headers = upstream.seen[0].headers
    assert headers["authorization"] == "Bearer upstream-key"
    assert headers["x-request-id"] == "caller-17"
    assert headers["traceparent"].startswith("00-4bf9")
    assert headers["tracestate"] == "a=b"
    assert not headers.keys() & {"x-api-key", "cookie", "x-hop", "te", "connection", "transfer-encoding"}


async def test_headers_of_the_upstream_do_not_come_back(client: httpx.AsyncClient) -> None:
    script = {"headers": {"x-internal": "1", "set-cookie": "a=b", "keep-alive": "timeout=5", "x-request-id": "theirs"}}

    response = await client.post(CHAT, json=body(script=script), headers={"x-request-id": "ours"})

    assert not response.headers.keys() & {"x-internal", "set-cookie", "keep-alive"}
    assert response.headers["x-request-id"] == "ours"


@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_status_goes_through_with_its_body(client: httpx.AsyncClient, stream: bool) -> None:
    script = {"status": 429, "headers": {"retry-after": "60"}}  # longer than anybody waits here

    response = await client.post(CHAT, json=body(stream, script))

    assert response.status_code == 429
    assert (response.headers["retry-after"], response.headers["retry-after-ms"]) == ("60", "60000")
    assert response.json()["error"]["message"] == "scripted failure"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("script", "status", "code"),
    [
        ({"status": 503, "body": "<html>", "content_type": "text/html"}, 502, "upstream_status"),
        ({"status": 302, "headers": {"location": "http://127.0.0.1:1/"}}, 502, "upstream_protocol"),
        ({"body": "<html>", "content_type": "text/html"}, 502, "upstream_protocol"),
        ({"body": '{"choices":'}, 502, "upstream_protocol"),
        ({"reset_at": "accept"}, 502, "upstream_reset"),
        ({"close_at": "accept"}, 502, "upstream_reset"),
        ({"close_at": "head"}, 502, "upstream_reset"),
    ],
)
async def test_what_goes_wrong_before_the_first_event_is_a_status(
    client: httpx.AsyncClient, gateway: Gateway, stream: bool, script: dict[str, Any], status: int, code: str
) -> None:
    response = await client.post(CHAT, json=body(stream, script))

    assert response.status_code == status
    assert response.json()["error"]["type"] == "upstream_error"
    assert response.json()["error"]["code"] == code
    assert gateway.records[0].ending is Ending.FAILED
    assert gateway.records[0].attempts[0].outcome is Outcome.DROPPED


@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_inside_a_200_is_a_status_if_it_comes_first(client: httpx.AsyncClient, stream: bool) -> None:
    error = '{"error":{"message":"no room","type":"x","param":null,"code":503}}'
    script = {"pieces": [f"data: {error}\n\n"]} if stream else {"body": error}

    response = await client.post(CHAT, json=body(stream, script))

    assert response.status_code == 503
    assert response.json() == json.loads(error)


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ({"reset_at": 3}, "upstream_reset"),
        ({"close_at": 3}, "upstream_reset"),
        ({"error_at": 3}, None),
        ({"finish": False, "done": False}, "upstream_unfinished"),
        ({"pieces": ['data: {"choices":[]}\n\n', "data: gar", "bage\n\n"]}, "upstream_protocol"),
    ],
)
async def test_what_goes_wrong_after_the_first_event_is_one_error_event(
    client: httpx.AsyncClient, gateway: Gateway, script: dict[str, Any], code: str | None
) -> None:
    response = await client.post(CHAT, json=body(True, {"chunk_delay_s": 0.01} | script))

    assert response.status_code == 200
    *chunks, last = events_of(response)
    assert chunks
    assert all("error" not in json.loads(chunk) for chunk in chunks)
    assert json.loads(last)["error"]["code"] == code
    assert gateway.records[0].ending is Ending.FAILED
    assert gateway.records[0].attempts[0].outcome is Outcome.DROPPED


@pytest.mark.parametrize(
    ("stream", "script", "code"),
    [
        (False, {"hang_at": "accept"}, "upstream_total_timeout"),
        (True, {"hang_at": "accept"}, "upstream_first_chunk_timeout"),
        (True, {"hang_at": "head"}, "upstream_first_chunk_timeout"),
        (True, {"pieces": [": working\n\n"] * 50, "chunk_delay_s": 0.02}, "upstream_first_chunk_timeout"),
    ],
)
async def test_clocks_that_run_out_before_the_first_event_are_a_504(
    quick: Gateway, upstream: Upstream, stream: bool, script: dict[str, Any], code: str
) -> None:
    response = await ask(quick, stream=stream, script=script)

    assert response.status_code == 504
    assert (response.json()["error"]["type"], response.json()["error"]["code"]) == ("timeout_error", code)
    await eventually(lambda: upstream.active == 0)


@pytest.mark.fault_row(13, 14)
@pytest.mark.parametrize(
    ("script", "code"),
    [
        ({"hang_at": 3}, "upstream_between_timeout"),
        ({"cut_bytes": 1, "chunk_delay_s": 0.01}, "upstream_between_timeout"),
        ({"words": ["w"] * 100, "chunk_delay_s": 0.05}, "upstream_total_timeout"),
    ],
)
async def test_clocks_that_run_out_later_are_an_error_event(
    quick: Gateway, upstream: Upstream, script: dict[str, Any], code: str
) -> None:
    if "cut_bytes" in script:  # trickles bytes once it has begun
        first, rest = 'data: {"choices":[]}\n\n', 'data: {"choices":[{"delta":{}}]}\n\n' * 20
        script = {"pieces": [first, *rest], "chunk_delay_s": script["chunk_delay_s"]}

    response = await ask(quick, stream=True, script=script)

    assert response.status_code == 200
    assert json.loads(events_of(response)[-1])["error"]["code"] == code
    await eventually(lambda: upstream.active == 0)


async def test_the_requests_own_deadline_is_told_as_such(upstream: Upstream) -> None:
    async with running(model("m", http_upstream(upstream.url)), bounds=Bounds(deadline_s=0.1)) as gateway:
        response = await ask(gateway, script={"hang_at": "accept"})

    assert response.status_code == 504
    assert response.json()["error"]["code"] == "deadline_exceeded"


async def test_a_server_that_is_down_is_passed_over_for_the_next(upstream: Upstream) -> None:
    async with scripted_upstream() as gone:
        url = gone.url
    served = model("m", http_upstream(url, "down"), http_upstream(upstream.url, "up"))
    async with running(served) as gateway:
        response = await ask(gateway)
        await eventually(lambda: len(gateway.records) == 1)

    assert response.status_code == 200
    attempts = [(each.upstream, each.error, each.outcome) for each in gateway.records[0].attempts]
    assert attempts == [("down", "connect", Outcome.DROPPED), ("up", None, Outcome.SUCCESS)]


async def test_a_server_that_is_down_alone_is_a_502(gateway: Gateway, upstream: Upstream) -> None:
    await upstream.stop()

    response = await ask(gateway)

    assert (response.status_code, response.json()["error"]["code"]) == (502, "upstream_connect")
    await upstream.start()


@pytest.mark.parametrize(
    "script", [{}, {"cut_bytes": 7}, {"cut_bytes": 50}, {"chunk_delay_s": 0.005}, {"linger": True}]
)
async def test_a_stream_says_the_same_however_it_is_cut(client: httpx.AsyncClient, script: dict[str, Any]) -> None:
    response = await client.post(CHAT, json=body(True, script))

    events = events_of(response)
    assert text_of(events) == "Hello from upstream."
    assert events.count("[DONE]") == 1
    assert events[-1] == "[DONE]"


async def test_chunks_are_not_held_back(gateway: Gateway, client: httpx.AsyncClient) -> None:
    """The first words are here although the upstream never says the last."""
    async with client.stream("POST", CHAT, json=body(True, {"hang_at": 3})) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        read = b""
        async for piece in response.aiter_raw():
            read += piece
            if b" from" in read:
                break

    assert b"Hello" in read


async def test_usage_that_the_gateway_wants_is_kept_from_a_caller_who_does_not(upstream: Upstream) -> None:
    async with running(model("m", http_upstream(upstream.url, ask_usage=True))) as gateway:
        response = await ask(gateway, stream=True)
        await eventually(lambda: len(gateway.records) == 1)

    assert upstream.seen[0].fields["stream_options"] == {"include_usage": True}
    events = events_of(response)
    assert all(json.loads(event)["choices"] for event in events[:-1])
    assert gateway.records[0].usage == Usage(7, 5)


async def test_usage_that_the_caller_wants_is_read_as_well(gateway: Gateway, upstream: Upstream) -> None:
    response = await ask(gateway, stream=True, stream_options={"include_usage": True})

    assert json.loads(events_of(response)[-2])["usage"]["total_tokens"] == 12
    await eventually(lambda: len(gateway.records) == 1)
    assert gateway.records[0].usage == Usage(7, 5)


async def test_connections_are_kept(upstream: Upstream, client: httpx.AsyncClient) -> None:
    for stream in (False, True, True, False):
        await client.post(CHAT, json=body(stream))

    assert len(upstream.connections) == 1


async def test_no_more_requests_run_than_there_are_slots(upstream: Upstream) -> None:
    served = http_upstream(upstream.url, slots=2)
    async with running(model("m", served)) as gateway:
        asked = [asyncio.ensure_future(ask(gateway, script={"head_delay_s": 0.02})) for _ in range(8)]
        most = 0
        while not all(each.done() for each in asked):
            most = max(most, upstream.active)
            await asyncio.sleep(0.002)

    assert [each.result().status_code for each in asked] == [200] * 8
    assert most == 2
    assert served.in_flight == 0


async def test_who_waits_for_a_slot_in_vain_is_told_to_come_again(upstream: Upstream) -> None:
    bounds = Bounds(max_waiting=1, max_wait_s=0.05)
    async with running(model("m", http_upstream(upstream.url, slots=1)), bounds=bounds) as gateway:
        first = asyncio.ensure_future(ask(gateway, script={"head_delay_s": 60}))
        await eventually(lambda: upstream.active == 1)
        refused = await asyncio.gather(ask(gateway), ask(gateway))
        first.cancel()  # it held the slot for as long as the others asked
        await asyncio.wait((first,))

    assert sorted(each.json()["error"]["code"] for each in refused) == ["no_room", "queue_full"]
    assert [each.status_code for each in refused] == [503, 503]
    assert all(each.headers["retry-after"] == "1" for each in refused)
