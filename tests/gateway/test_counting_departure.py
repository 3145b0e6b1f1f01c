"""An upstream whose usage is not what we counted is flagged, in the metrics and in the access log."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.assembly import open_tokenizer
from gateway.call import Call, Departure, Operation, Request, TextPrompt, TokenCount, Usage
from gateway.generation import Generation
from gateway.quotas.departure import departure_of
from gateway.scope import Scope
from gateway.telemetry.log_line import LineWriter
from tests.gateway.conftest import Gateway, http_upstream, model, running
from tests.gateway.test_meter import metered
from tests.rig.limited import output_a_minute
from tests.rig.upstream import Upstream, scripted_upstream
from tests.tiny_model import write_tokenizer

MESSAGES = [{"role": "user", "content": "The quick brown fox jumps over the lazy dog. " * 10}]


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with scripted_upstream() as server:
        yield server


@pytest.fixture
async def gateway(upstream: Upstream, tmp_path: Path) -> AsyncIterator[Gateway]:
    encoder = open_tokenizer("m", write_tokenizer(tmp_path), None)
    async with running(
        model("m", http_upstream(upstream.url), encoder=encoder), model("plain", http_upstream(upstream.url))
    ) as serving:
        yield serving


async def ask(gateway: Gateway, prompt_tokens: int, *, name: str = "m", stream: bool = False) -> None:
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": 5}
    answer: dict[str, Any] = {"usage": usage, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    body = f"data: {json.dumps(answer)}\n\ndata: [DONE]\n\n" if stream else json.dumps(answer)
    script = {"body": body, "content_type": "text/event-stream" if stream else "application/json"}
    asked = {"model": name, "messages": MESSAGES, "stream": stream, "script": script}
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        assert (await client.post("/v1/chat/completions", json=asked)).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_that_is_billed_otherwise_than_counted_is_flagged(gateway: Gateway, stream: bool) -> None:
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        count = (await client.post("/tokenize", json={"model": "m", "messages": MESSAGES})).json()["count"]
    for said in (count, count + 8, count - 8, count + 9, 3 * count):
        await ask(gateway, said, stream=stream)
    flagged = [record.attempts[0].departure for record in gateway.records[-5:]]

    assert flagged == [None, None, None, Departure(9), Departure(2 * count)]
    line = json.loads(LineWriter().write(gateway.records[-2]))
    assert line["attempts"][0]["usage_departure"] == {"prompt": 9}
    assert b'penstock_usage_departures_total{upstream="scripted"} 2.0' in gateway.metrics.exposition()


async def test_an_answer_that_is_billed_otherwise_than_its_text_is_flagged_where_output_is_limited(
    upstream: Upstream, tmp_path: Path
) -> None:
    encoder = open_tokenizer("m", write_tokenizer(tmp_path), None)
    text = "The quick brown fox jumps over the lazy dog."
    count = len(encoder.tokenize(text))
    async with metered(http_upstream(upstream.url), output_a_minute(10_000), encoder=encoder) as limits:
        for said in (count, count + 17):
            usage = {"prompt_tokens": 0, "completion_tokens": said}
            choices = [{"index": 0, "message": {"content": text}, "finish_reason": "stop"}]
            script = {"body": json.dumps({"usage": usage, "choices": choices}), "content_type": "application/json"}
            await limits.ask(script=script, max_tokens=500)
        await limits.over(2)
        flagged = [record.attempts[0].departure for record in limits.gateway.records]

    assert flagged == [None, Departure(0, 17)]


async def test_an_estimate_is_held_against_nobody(gateway: Gateway) -> None:
    await ask(gateway, 10_000, name="plain")

    assert gateway.records[-1].attempts[0].departure is None


@pytest.mark.parametrize(
    ("said", "counted", "expected"),
    [
        (Usage(100, 50), None, None),
        (Usage(100, 50), 40, None),
        (Usage(100, 57), 40, Departure(0, 17)),
        (Usage(100, 880), 1000, Departure(0, -120)),
        (Usage(1021, 50), 50, Departure(921, 0)),
        (Usage(0, 0), 50, None),
        (None, 50, None),
    ],
)
def test_a_few_tokens_either_way_are_another_ones_marks(
    said: Usage | None, counted: int | None, expected: Departure | None
) -> None:
    request = Request(Operation.COMPLETION, "m", TextPrompt(("x",)))
    call = Call("id", "/v1/completions", 0.0, b"{}", {}, request, 1e9, Scope())
    call.tokens = TokenCount(100, True)
    call.generation = Generation(1e9, usage=said, counted=counted)

    assert departure_of(call) == expected
