"""Requests that kill the worker, or hang its engine: nobody else's, and not for ever."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.process.children import Process
from tests.process.conftest import Start
from tests.process.test_serve import url_of
from tests.rig.plain_client import Answer, PlainClient
from tests.tiny_model import tiny_model_dir

# The gateway as it is, with hands that die of one prompt and never come back from another.
SCRIPT = """
import os, signal, sys, time
from engine.cpu_runner import CpuRunner
from gateway.cli import main

run = CpuRunner.run

def fragile(self, batch):
    for row in batch.rows:
        begins = row.sequence.token_ids[:3]
        if begins == [13, 13, 13]:
            os.kill(os.getpid(), signal.SIGSEGV)
        if begins == [14, 14, 14]:
            time.sleep(3600)
    return run(self, batch)

CpuRunner.run = fragile
if "DEFENCELESS" in os.environ:
    from gateway.process.journal import Docket, Verdict
    Docket.verdict = lambda self, fingerprint: Verdict.FREE
sys.exit(main(["serve", "--config", "penstock.yaml"]))
"""
FATAL, HANGING, GOOD, OTHER = [13] * 3, [14] * 3, [15] * 3, [16] * 3
LOST = (asyncio.IncompleteReadError, ConnectionError)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_dir(tmp_path_factory.mktemp("models") / "tiny")


@asynccontextmanager
async def serving(
    start: Start, folder: Path, model: Path, *, step_timeout_s: float = 60, **environ: str
) -> AsyncIterator["Served"]:
    (folder / "penstock.yaml").write_text(
        f"listen: {{port: 0}}\nkeys: {{alice: env:ALICE_KEY, bob: env:BOB_KEY}}\n"
        f"models: {{m: {{engine: {{path: {model}, threads: 1, num_blocks: 64, step_timeout_s: {step_timeout_s}}}}}}}\n"
        "telemetry: {access_log: off}\n"
    )
    process = start("-c", SCRIPT, ALICE_KEY="alices-key", BOB_KEY="bobs-secret", **environ)
    served = Served(process)
    await served.up()
    yield served


class Served:
    """A gateway and those who ask it."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.port = 0

    async def up(self) -> None:
        """Wait until it serves, the first time and after each death."""
        self.port = int((await asyncio.to_thread(url_of, self.process)).rpartition(":")[2])

    def client(self) -> PlainClient:
        return PlainClient(self.port)

    async def ask(self, prompt: list[int], *, key: str = "alices-key", **further: Any) -> Answer:
        async with self.client() as client:
            return await client.ask("POST", "/v1/completions", body(prompt, **further), bearer(key))

    async def dies_of(self, prompt: list[int]) -> float:
        """Ask what kills it; gives the seconds from the death until it serves again."""
        with pytest.raises(LOST):
            await self.ask(prompt)
        died = time.monotonic()
        await self.up()
        return time.monotonic() - died

    async def metrics(self) -> dict[str, float]:
        async with self.client() as client:
            lines = (await client.ask("GET", "/metrics")).body.decode().splitlines()
        samples = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}


def body(prompt: list[int], **further: Any) -> dict[str, Any]:
    return {"model": "m", "prompt": prompt, "max_tokens": 4, "ignore_eos": True, **further}


def bearer(key: str = "alices-key") -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.mark.fault_row(38)
async def test_a_request_that_kills_the_worker_twice_is_not_tried_again(
    start: Start, tmp_path: Path, model: Path
) -> None:
    async with serving(start, tmp_path, model) as served:
        first = await served.dies_of(FATAL)
        well = await served.ask(GOOD)
        second = await served.dies_of(FATAL)
        refused = [await served.ask(FATAL) for _ in range(3)]
        others = [await served.ask(GOOD), await served.ask(OTHER), await served.ask(OTHER, key="bobs-secret")]
        metrics = await served.metrics()
        said = "".join(served.process.said)
    print(f"\nserving again {first:.2f} s and {second:.2f} s after a death")

    assert well.status == 200
    assert [(answer.status, b"request_quarantined" in answer.body) for answer in refused] == [(422, True)] * 3
    assert [answer.status for answer in others] == [200] * 3
    assert metrics["penstock_worker_deaths"] == 2
    assert metrics["penstock_requests_quarantined"] == 1
    assert metrics['penstock_errors_total{error="quarantined"}'] == 3
    assert "deaths; it is quarantined" in said
    assert "13, 13" not in said


@pytest.mark.fault_row(38, removed=True)
async def test_without_quarantine_it_would_kill_the_worker_again_and_again(
    start: Start, tmp_path: Path, model: Path
) -> None:
    async with serving(start, tmp_path, model, DEFENCELESS="1") as served:
        for _ in range(4):
            await served.dies_of(FATAL)
        metrics = await served.metrics()

    assert metrics["penstock_worker_deaths"] == 4


@pytest.mark.fault_row(38)
async def test_those_who_were_in_flight_with_it_are_tried_one_at_a_time(
    start: Start, tmp_path: Path, model: Path
) -> None:
    long = body(GOOD, max_tokens=300, stream=True)
    async with serving(start, tmp_path, model) as served:
        for _ in range(2):  # both come again, so that both are suspects
            async with served.client() as innocent:
                await innocent.send("POST", "/v1/completions", long, bearer())
                await running(served)
                await served.dies_of(FATAL)
                with pytest.raises(LOST):
                    await innocent.receive()
        suspects = (await served.metrics())["penstock_requests_suspected"]
        async with served.client() as innocent:
            await innocent.send("POST", "/v1/completions", long, bearer())
            await running(served)
            beside = await served.ask(FATAL)
            streamed = await innocent.receive()
        await served.dies_of(FATAL)
        refused = await served.ask(FATAL)
        again = await served.ask(GOOD, max_tokens=300, stream=True)

    assert suspects == 2
    assert (beside.status, b"request_suspected" in beside.body, "retry-after" in beside.headers) == (503, True, True)
    assert streamed.body.endswith(b"data: [DONE]\n\n")
    assert refused.status == 422
    assert again.body.endswith(b"data: [DONE]\n\n")


async def test_an_engine_that_hangs_is_told_of_and_started_anew(start: Start, tmp_path: Path, model: Path) -> None:
    async with serving(start, tmp_path, model, step_timeout_s=0.7) as served:
        await served.ask(GOOD)
        statuses = []
        for _ in range(2):
            async with served.client() as caller, served.client() as probing:
                await caller.send("POST", "/v1/completions", body(HANGING), bearer())
                while (probe := await probing.ask("GET", "/ready")).status == 200:
                    await asyncio.sleep(0.02)
                end = await caller.receive()
                statuses.append((end.status, b'"code":"restarting"' in end.body))
            await asyncio.to_thread(served.process.expect, "ended with status 70")
            await served.up()
        refused = await served.ask(HANGING)
        well = await served.ask(GOOD)
        said = "".join(served.process.said)

    assert probe.body == b'{"status":"unavailable","reason":"the engine of m hangs in a step"}'
    assert statuses == [(503, True)] * 2
    assert (refused.status, well.status) == (422, 200)
    assert said.count("takes longer than") == 2
    assert "in fragile" in said  # where it hangs


async def test_a_worker_that_is_killed_from_outside_is_nobody_s_fault_but_for_a_strike(
    start: Start, tmp_path: Path, model: Path
) -> None:
    async with serving(start, tmp_path, model) as served:
        for _ in range(3):
            [worker] = served.process.children()
            os.kill(worker, signal.SIGKILL)
            await served.up()
        well = await served.ask(GOOD)
        metrics = await served.metrics()

    assert well.status == 200
    assert (metrics["penstock_worker_deaths"], metrics["penstock_requests_quarantined"]) == (3, 0)


async def running(served: Served) -> None:
    """Wait until one of Alice's calls is under way and has brought something."""
    async with served.client() as client:
        while b'"completion_tokens":0' in (told := (await client.ask("GET", "/v1/requests", None, bearer())).body) or (
            b'"stage":"running"' not in told
        ):
            await asyncio.sleep(0.005)
