"""The access log: a line a request, beside the loop, bounded in memory, with nothing in it that a terminal obeys."""

import asyncio
import json
import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from gateway.call import Attempt, Operation, Usage
from gateway.telemetry.access_log import AccessLog
from gateway.telemetry.log_line import MAX_FIELD_CHARS, LineWriter, printable
from gateway.telemetry.record import Ending, LimitHit, QuotaRecord, RequestRecord
from policies.outcome import Outcome

RECORD = RequestRecord(
    id="req-1",
    time=1_790_000_000.25,
    path="/v1/chat/completions",
    status=502,
    ending=Ending.FAILED,
    error="upstream",
    operation=Operation.CHAT,
    asked_model="alias",
    model="demo",
    tenant="alice",
    stream=True,
    duration_s=0.5,
    first_event_s=0.125,
    usage=Usage(prompt=10, completion=4, cached=3),
    attempts=[Attempt("u", 10.0, ended=10.25, outcome=Outcome.DROPPED, error="reset")],
    bytes_in=200,
    bytes_out=600,
)


async def test_a_line_says_what_became_of_a_request(tmp_path: Path) -> None:
    log = AccessLog.open(str(tmp_path / "log"))
    log.write(RECORD)
    await log.aclose()

    assert json.loads((tmp_path / "log").read_text()) == {
        "time": "2026-09-21T14:13:20.250000Z",
        "id": "req-1",
        "path": "/v1/chat/completions",
        "status": 502,
        "ending": "failed",
        "ms": 500.0,
        "error": "upstream",
        "operation": "chat",
        "model": "demo",
        "asked_model": "alias",
        "tenant": "alice",
        "stream": True,
        "first_event_ms": 125.0,
        "prompt_tokens": 10,
        "completion_tokens": 4,
        "cached_tokens": 3,
        "bytes_in": 200,
        "bytes_out": 600,
        "attempts": [{"upstream": "u", "outcome": "dropped", "ms": 250.0, "error": "reset"}],
    }


def test_a_line_under_limits_holds_what_a_replay_against_others_needs() -> None:
    hit = LimitHit("acme/web tokens/day", "tokens", "tenant")
    record = replace(
        RECORD,
        tenant="acme/search/web",
        organisation="acme",
        team="search",
        key="web-1",
        input_tokens=12,
        asked_output=500,
        max_output=256,
        choices=2,
        cost=4200,
        quota=QuotaRecord(ended=hit, shadowed=(hit,), reserved=268, overshoot=3, exact=False, degraded=True),
    )
    line = json.loads(LineWriter().write(record))

    assert {name: line[name] for name in ("tenant", "organisation", "team", "key")} == {
        "tenant": "acme/search/web",
        "organisation": "acme",
        "team": "search",
        "key": "web-1",
    }
    numbers = ("input_tokens", "asked_output", "max_output", "choices", "cost_nano_usd")
    assert [line[name] for name in numbers] == [12, 500, 256, 2, 4200]
    assert line["quota"] == {
        "ended": "acme/web tokens/day",
        "shadowed": ["acme/web tokens/day"],
        "reserved_tokens": 268,
        "overshoot_tokens": 3,
        "estimate": True,
        "degraded": True,
    }


async def test_every_line_arrives_in_order(tmp_path: Path) -> None:
    log = AccessLog.open(str(tmp_path / "log"))
    for number in range(1000):
        log.write(RequestRecord(f"req-{number}", 0.0, "/"))
    await log.aclose()

    lines = (tmp_path / "log").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [f"req-{number}" for number in range(1000)]
    assert log.dropped == 0


async def test_a_line_is_written_without_anybody_waiting_for_it() -> None:
    reader, writer = os.pipe()
    log = AccessLog(writer)
    log.write(RECORD)
    arrived = asyncio.Event()
    asyncio.get_running_loop().add_reader(reader, arrived.set)
    await arrived.wait()

    assert json.loads(os.read(reader, 65_536))["id"] == "req-1"
    asyncio.get_running_loop().remove_reader(reader)
    await log.aclose()
    os.close(reader)
    os.close(writer)


async def test_a_reader_that_does_not_read_costs_lines_and_not_memory_nor_time() -> None:
    reader, writer = os.pipe()
    log = AccessLog(writer, max_buffer_bytes=200_000)
    for number in range(5000):
        log.write(RequestRecord(f"req-{number}", 0.0, "/"))
    assert 0 < log.dropped < 5000

    await log.aclose()  # gives up on the full pipe in its own time
    os.close(reader)
    os.close(writer)


async def test_lines_that_cannot_be_written_are_counted() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    log = AccessLog(writer)
    log.write(RECORD)
    log.write(RECORD)
    await log.aclose()

    assert log.dropped == 2
    os.close(writer)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("gpt-4o", "gpt-4o"),
        ("naïve 模型 😀", "naïve 模型 😀"),
        ("a\nb\r\x1b[2J", "a\\nb\\r\\x1b[2J"),
        ("\x9b31m", "\\x9b31m"),
        ("\u2028\u202e", "\\u2028\\u202e"),
        ("\ud800", "\\ud800"),
        ("x" * 1000, "x" * MAX_FIELD_CHARS + "…"),
    ],
)
def test_what_callers_wrote_is_shown_and_not_obeyed(given: str, shown: str) -> None:
    assert printable(given) == shown
