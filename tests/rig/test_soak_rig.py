"""What a soak is made of: weather that passes, upstreams that fail in every way, and what they say they wrote."""

import asyncio
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.rig.event_log import Attempted, End, EventLog
from tests.rig.fault_proxy import FaultProxy
from tests.rig.plain_client import PlainClient
from tests.rig.soak_site import VERSIONS, policy
from tests.rig.soak_upstream import FAULTS, ONLY_STREAMS, Attempt, Moody
from tests.rig.soak_weather import network, policies, upstream
from tests.rig.upstream import Seen, scripted_upstream


async def test_bad_weather_passes_and_leaves_a_good_network(tmp_path: Path) -> None:
    stop = asyncio.Event()
    async with scripted_upstream() as server:
        with FaultProxy(("127.0.0.1", server.port)) as proxy, EventLog(tmp_path / "events") as log:
            weather = asyncio.create_task(network("there", proxy).weather(Random(1), stop, log, 0.0))
            await asyncio.sleep(0.3)
            stop.set()
            await weather

            assert log.read().faults()
            assert (proxy.planted, proxy.listening) == ({}, True)


async def test_an_upstream_comes_back_from_every_outage(tmp_path: Path) -> None:
    stop = asyncio.Event()
    stop.set()  # spells end as soon as they have begun
    async with scripted_upstream() as server:
        moody = Moody("there", server, Random(1))
        place = upstream("there", server, moody)
        for cast in place.spells.values():
            spell = cast(Random(1))
            await spell.begin()
            assert spell.end is not None
            await spell.end()

        assert moody.outage is None
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.close()


async def test_a_broken_policy_file_is_followed_by_a_good_one(tmp_path: Path) -> None:
    path, read = tmp_path / "policy.yaml", []
    place = policies(path, [policy(*version) for version in VERSIONS], lambda: read.append(path.read_text()))
    spell = place.spells["broken"](Random(1))
    await spell.begin()
    assert spell.end is not None
    await spell.end()

    assert "nonsense" in read[0]
    assert read[1:] == [policy(*VERSIONS[0])]


def attempt(fault: str, *, written: int, stream: bool = True, path: str = "/v1/chat/completions") -> Attempt:
    fields = {"stream": stream, "max_tokens": 4, "messages": [{"role": "user", "content": "canary-web-00 mark-a.1"}]}
    seen = Seen(path, {}, json.dumps(fields).encode(), written=written)
    script: dict[str, Any] = {"words": ["a"] * 9} | (FAULTS[fault](Random(1)) if fault else {})
    return Attempt(seen, "a.1", script, fault)


@pytest.mark.parametrize(
    ("told", "tokens"),
    [
        (attempt("", written=7), 4),  # a role, four words, an end, the terminal event
        (attempt("reset within", written=3), 2),
        (attempt("hang within", written=3, path="/v1/completions"), 3),
        (attempt("hang before the head", written=0), 0),
        (attempt("trickle", written=90), 4),
        (attempt("malformed", written=2), 2),
        (attempt("status 500", written=0), 0),
        (attempt("HTML", written=0), 0),
        (attempt("", written=0, stream=False), 4),
        (attempt("trickle", written=0, stream=False), 4),
        (attempt("reset after the head", written=0, stream=False), 0),
    ],
)
def test_an_upstream_knows_how_many_tokens_it_has_written(told: Attempt, tokens: int) -> None:
    assert told.tokens() == tokens


def test_every_fault_is_known_by_its_name() -> None:
    assert FAULTS.keys() >= ONLY_STREAMS


async def test_an_answer_repeats_whose_it_is_and_is_noted_when_it_has_ended(tmp_path: Path) -> None:
    body = {"model": "far", "messages": [{"role": "user", "content": "canary-web-00 mark-a.1"}]}
    async with scripted_upstream() as server, PlainClient(server.port) as client:
        moody = Moody("there", server, Random(1))
        answer = await client.ask("POST", "/v1/chat/completions", body)
        while moody.num_open:
            await asyncio.sleep(0)
        with EventLog(tmp_path / "events") as log:
            moody.note(log)
            [noted] = log.read().of(Attempted)

    assert b"canary-web-00 mark-a.1 " in answer.body
    assert (noted.id, noted.end) == ("a.1", End.WHOLE)
    assert noted.tokens == json.loads(answer.body)["usage"]["completion_tokens"]
    assert server.seen == []
