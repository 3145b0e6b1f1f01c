"""A proxy is restarted under load and no request fails; what drains is told so; what is cut off hears why."""

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.process.children import Process
from tests.process.conftest import Start
from tests.process.test_serve import SERVE, url_of
from tests.rig.plain_client import Answer, PlainClient
from tests.rig.upstream import Upstream, scripted_upstream
from tests.tiny_model import tiny_model_dir

CHAT = "/v1/chat/completions"


def asked(*, stream: bool = False, script: dict[str, object] | None = None) -> dict[str, object]:
    messages = [{"role": "user", "content": "hi"}]
    return {"model": "gpt", "stream": stream, "messages": messages, "script": script or {}}


@asynccontextmanager
async def serving(
    start: Start, folder: Path, *, drain_s: float = 60, command: tuple[str, ...] = ()
) -> AsyncIterator[tuple[Process, int, Upstream]]:
    """Serve a model of a scripted upstream; `command` is what to run in place of `penstock serve`."""
    async with scripted_upstream() as upstream:
        (folder / "penstock.yaml").write_text(
            f"listen: {{port: 0, drain_s: {drain_s}}}\nmodels: {{gpt: {{upstreams: [u]}}}}\n"
            f'upstreams: {{u: {{url: "{upstream.url}"}}}}\ntelemetry: {{access_log: off}}\n'
        )
        process = start(*(command or SERVE))
        url = await asyncio.to_thread(url_of, process)
        yield process, int(url.rpartition(":")[2]), upstream


async def expect(process: Process, part: str) -> str:
    return await asyncio.to_thread(process.expect, part)


async def restart(process: Process) -> None:
    process.send(signal.SIGUSR2)
    await expect(process, "has taken over")


class Load:
    """Callers of three sorts: on kept connections without a pause, on kept ones with pauses, on fresh ones."""

    def __init__(self, port: int, total: int) -> None:
        self._port = port
        self.left = total
        self.over = False  # no more than the total is wanted
        self.outcomes: Counter[object] = Counter()
        self.opened: Counter[str] = Counter()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as callers:
            for number in range(4):
                callers.create_task(self._call("busy", number))
                callers.create_task(self._call("idle", number))
                callers.create_task(self._call("fresh", number))

    async def _call(self, sort: str, number: int) -> None:
        chance = random.Random(f"{sort} {number}")
        async with PlainClient(self._port) as client:
            while self.left > 0 or not self.over:
                self.left -= 1
                stream = chance.random() < 0.3
                try:
                    answer = await client.ask("POST", CHAT, asked(stream=stream))
                    whole = answer.body.endswith(b"data: [DONE]\n\n") if stream else answer.body.endswith(b"}")
                    self.outcomes[answer.status if whole else "cut"] += 1
                except (OSError, asyncio.IncompleteReadError) as error:
                    self.outcomes[repr(error)] += 1
                    client.close()
                if sort == "idle":
                    await asyncio.sleep(chance.random() * 0.05)
                elif sort == "fresh":
                    client.close()
            self.opened[sort] += client.opened


async def load_through_restarts(start: Start, folder: Path, total: int, restarts: int) -> Load:
    async with serving(start, folder) as (process, port, _):
        load = Load(port, total)
        running = asyncio.ensure_future(load.run())
        for _ in range(restarts):
            await restart(process)
        load.over = True
        await running
        process.send(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait) == 0
    return load


@pytest.mark.fault_row(30)
async def test_no_request_fails_through_restarts(start: Start, tmp_path: Path) -> None:
    load = await load_through_restarts(start, tmp_path, 1_000, 2)

    assert list(load.outcomes) == [200]
    assert load.outcomes[200] >= 1_000


# The gateway as servers usually restart: the old one closes its idle connections, and the new one waits for others.
WITHOUT_HANDOVER = """
import sys
from gateway.cli import main
from gateway.http.server import Server

drain = Server.drain
Server.drain = lambda self, grace_s, **how: drain(self, grace_s, **{**how, "successor": None})
sys.exit(main(["serve", "--config", "penstock.yaml"]))
"""


@pytest.mark.fault_row(30)
@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_no_request_of_ten_thousand_fails_through_restarts(start: Start, tmp_path: Path) -> None:
    load = await load_through_restarts(start, tmp_path, 10_000, 8)
    print(f"\n{load.outcomes[200]} requests through 8 restarts; connections opened: {dict(load.opened)}")

    assert list(load.outcomes) == [200]
    assert load.outcomes[200] >= 10_000


@pytest.mark.fault_row(30)
@pytest.mark.parametrize("defended", [True, False])
async def test_an_idle_connection_goes_on_at_the_next_worker(defended: bool, start: Start, tmp_path: Path) -> None:
    command = () if defended else ("-c", WITHOUT_HANDOVER)
    async with serving(start, tmp_path, command=command) as (process, port, _), PlainClient(port) as client:
        await client.ask("POST", CHAT, asked())
        for _ in range(3):
            await restart(process)
        while len(process.children()) > 1:  # until those before have ended
            await asyncio.sleep(0.02)
        answer: Answer | None = None
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            answer = await client.ask("POST", CHAT, asked())

    assert (answer is not None and (answer.status, answer.closes, client.opened) == (200, False, 1)) is defended


async def test_a_stream_outlives_the_restart_and_its_connection_too(start: Start, tmp_path: Path) -> None:
    script: dict[str, object] = {"words": ["w"] * 40, "chunk_delay_s": 0.05}
    async with serving(start, tmp_path) as (process, port, _), PlainClient(port) as client:
        await client.send("POST", CHAT, asked(stream=True, script=script))
        await restart(process)
        streamed = await client.receive()
        answer = await client.ask("POST", CHAT, asked())

    assert streamed.body.count(b'"w"') == 40
    assert streamed.body.endswith(b"data: [DONE]\n\n")
    assert (answer.status, client.opened) == (200, 1)


async def test_the_new_worker_serves_what_the_file_says_by_then(start: Start, tmp_path: Path) -> None:
    async with serving(start, tmp_path) as (process, port, _), PlainClient(port) as client:
        file = tmp_path / "penstock.yaml"
        file.write_text(file.read_text().replace("gpt:", "other:"))
        await restart(process)
        while len(process.children()) > 1:
            await asyncio.sleep(0.02)
        answer = await client.ask("GET", "/v1/models")

    assert b'"id":"other"' in answer.body


async def test_a_wrong_file_changes_nothing(start: Start, tmp_path: Path) -> None:
    async with serving(start, tmp_path) as (process, port, _), PlainClient(port) as client:
        (tmp_path / "penstock.yaml").write_text("models: {}\nx: 1\n")
        process.send(signal.SIGUSR2)
        await expect(process, "penstock.yaml:2:1: x: unknown key")
        await expect(process, "serves on")
        answer = await client.ask("POST", CHAT, asked())

    assert answer.status == 200


@pytest.mark.fault_row(29)
async def test_what_still_runs_at_the_end_of_the_grace_hears_an_error(start: Start, tmp_path: Path) -> None:
    async with (
        serving(start, tmp_path, drain_s=0.3) as (process, port, upstream),
        PlainClient(port) as streaming,
        PlainClient(port) as whole,
    ):
        await streaming.send("POST", CHAT, asked(stream=True, script={"hang_at": 2}))
        await whole.send("POST", CHAT, asked(script={"hang_at": "accept"}))
        while upstream.active < 2:
            await asyncio.sleep(0.01)
        process.send(signal.SIGTERM)
        streamed, answer = await asyncio.gather(streaming.receive(), whole.receive())
        status = await asyncio.to_thread(process.wait)

    assert streamed.body.count(b'"code":"draining"') == 1
    assert b"[DONE]" not in streamed.body
    assert (answer.status, answer.headers["retry-after"], answer.closes) == (503, "1", True)
    assert status == 0


async def test_a_relieved_worker_that_dies_takes_nobody_else_along(start: Start, tmp_path: Path) -> None:
    async with (
        serving(start, tmp_path) as (process, port, upstream),
        PlainClient(port) as hanging,
        PlainClient(port) as client,
    ):
        [first] = process.children()
        await hanging.send("POST", CHAT, asked(stream=True, script={"hang_at": 2}))
        while not upstream.active:
            await asyncio.sleep(0.01)
        await restart(process)
        os.kill(first, signal.SIGKILL)
        await expect(process, "the relieved worker")
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await hanging.receive()
        answer = await client.ask("POST", CHAT, asked())

    assert answer.status == 200


async def test_an_engine_drains_before_the_next_one_starts(start: Start, tmp_path: Path) -> None:
    model = tiny_model_dir(tmp_path / "tiny")
    (tmp_path / "penstock.yaml").write_text(
        f"listen: {{port: 0}}\nmodels: {{gpt: {{engine: {{path: {model}, threads: 1, num_blocks: 64}}}}}}\n"
        "telemetry: {access_log: off}\n"
    )
    process = start(*SERVE)
    port = int((await asyncio.to_thread(url_of, process)).rpartition(":")[2])
    async with PlainClient(port) as streaming, PlainClient(port) as probing:
        long = {"model": "gpt", "prompt": "The", "max_tokens": 400, "ignore_eos": True, "stream": True}
        await streaming.send("POST", "/v1/completions", long)
        await expect_running(probing)
        process.send(signal.SIGUSR2)
        await expect(process, "drains first")
        while (probe := await probing.ask("GET", "/ready")).status == 200:
            await asyncio.sleep(0.002)
        refused = await probing.ask("POST", "/v1/completions", long)
        streamed = await streaming.receive()
        await asyncio.to_thread(url_of, process)
        again = await probing.ask("GET", "/ready")

    assert (probe.status, probe.body) == (503, b'{"status":"unavailable","reason":"draining"}')
    assert (refused.status, b'"code":"draining"' in refused.body) == (503, True)
    assert streamed.body.endswith(b"data: [DONE]\n\n")
    assert again.status == 200


def runs(pid: int) -> bool:
    """Whether a process has not ended, collected or not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def expect_running(client: PlainClient) -> None:
    """Wait until a call is under way."""
    while b'"stage":"running"' not in (await client.ask("GET", "/v1/requests")).body:
        await asyncio.sleep(0.01)


async def test_a_worker_outlives_its_supervisor_by_no_more_than_its_drain(start: Start, tmp_path: Path) -> None:
    async with serving(start, tmp_path, drain_s=0.3) as (process, port, upstream), PlainClient(port) as client:
        [worker] = process.children()
        await client.send("POST", CHAT, asked(stream=True, script={"hang_at": 2}))
        while not upstream.active:
            await asyncio.sleep(0.01)
        process.send(signal.SIGKILL)
        await expect(process, "the supervisor is gone")
        streamed = await client.receive()
        while runs(worker):
            await asyncio.sleep(0.02)

    assert streamed.body.count(b'"code":"draining"') == 1
