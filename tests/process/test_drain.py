"""SIGTERM under load, as an orchestrator sends it; and what callers would meet without each part of the defence."""

import asyncio
import signal
from pathlib import Path

import pytest

from tests.process.conftest import Start
from tests.process.test_restart import CHAT, asked, serving
from tests.rig.plain_client import Answer, PlainClient

# The gateway with a part taken out, as it is in the worker that is forked from here.
SCRIPT = """
import sys
from gateway.app import App
from gateway.cli import main
from gateway.process import worker

async def at_once(server, app, grace_s, stop):
    await server.drain(0.0)

removal = sys.argv[1]
if removal == "drain":
    worker.drain = at_once
elif removal == "last words":
    App.break_off = lambda self, why=None: None
elif removal == "readiness":
    App.drain = lambda self: None
sys.exit(main(["serve", "--config", "penstock.yaml"]))
"""
STREAMS, GRACE_S = 50, 1.5
SHORT = {"words": ["w"] * 5, "chunk_delay_s": 0.1}
LOST = (asyncio.IncompleteReadError, ConnectionError)


async def heard(client: PlainClient) -> Answer | None:
    """Read an answer to its end; None where the connection breaks instead."""
    try:
        return await client.receive()
    except LOST:
        return None


class Outcome:
    """What those met who were there, and those who came."""

    def __init__(self) -> None:
        self.short: list[Answer | None] = []
        self.long: list[Answer | None] = []
        self.ready = b""
        self.refused = False
        self.status = -1


async def sigterm_under_load(start: Start, folder: Path, removal: str | None) -> Outcome:
    """Half of the streams end within the grace, half never; one asks whether it is ready, one comes too late."""
    command = () if removal is None else ("-c", SCRIPT, removal)
    outcome = Outcome()
    async with serving(start, folder, drain_s=GRACE_S, command=command) as (process, port, upstream):
        short = [PlainClient(port) for _ in range(STREAMS // 2)]
        long = [PlainClient(port) for _ in range(STREAMS // 2)]
        for client in short:
            await client.send("POST", CHAT, asked(stream=True, script=SHORT))
        for client in long:
            await client.send("POST", CHAT, asked(stream=True, script={"hang_at": 2}))
        while upstream.active < STREAMS:
            await asyncio.sleep(0.01)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /ready HTTP/1.1\r\nhost: h\r\n")
        await asyncio.sleep(0.05)
        process.send(signal.SIGTERM)
        while not outcome.refused:
            try:
                (await asyncio.open_connection("127.0.0.1", port))[1].close()
            except OSError:
                outcome.refused = True
        try:
            writer.write(b"\r\n")
            outcome.ready = await reader.read()
        except ConnectionError:
            outcome.ready = b""
        writer.close()
        outcome.short = await asyncio.gather(*map(heard, short))
        outcome.long = await asyncio.gather(*map(heard, long))
        outcome.status = await asyncio.to_thread(process.wait)
        for client in (*short, *long):
            client.close()
    return outcome


def whole(answer: Answer | None) -> bool:
    return answer is not None and answer.body.endswith(b"data: [DONE]\n\n") and answer.body.count(b'"w"') == 5


def told_why(answer: Answer | None) -> bool:
    return answer is not None and answer.body.count(b'"code":"draining"') == 1 and b"[DONE]" not in answer.body


@pytest.mark.fault_row(29)
async def test_sigterm_lets_finish_what_can_tells_the_rest_and_takes_nobody_new(start: Start, tmp_path: Path) -> None:
    outcome = await sigterm_under_load(start, tmp_path, None)

    assert all(map(whole, outcome.short))
    assert all(map(told_why, outcome.long))
    assert outcome.ready.startswith(b"HTTP/1.1 503 ")
    assert outcome.ready.endswith(b'{"status":"unavailable","reason":"draining"}')
    assert outcome.refused
    assert outcome.status == 0


@pytest.mark.fault_row(29, removed=True)
@pytest.mark.parametrize("removal", ["drain", "last words", "readiness"])
async def test_without_a_part_of_it_somebody_is_cut_off_or_not_told(removal: str, start: Start, tmp_path: Path) -> None:
    outcome = await sigterm_under_load(start, tmp_path, removal)

    assert all(map(whole, outcome.short)) is (removal != "drain")
    assert any(map(told_why, outcome.long)) is (removal == "readiness")
    assert outcome.ready.startswith(b"HTTP/1.1 503 ") is (removal == "last words")
