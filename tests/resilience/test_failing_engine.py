"""An engine whose steps fail, as those who asked over HTTP see it: who pays, and that nobody else notices."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from engine.batch import Batch, Sampled
from engine.careful import Careful, Portion
from engine.cpu_runner import CpuRunner
from engine.load import LoadedModel, LoadOptions, load
from gateway.upstreams.engine import EngineUpstream
from tests.gateway.conftest import model, running
from tests.rig.upstream import eventually
from tests.tiny_model import tiny_model_dir

ROOM = 40  # tokens of a step, where memory is short: all prompts together have more, and no more than twice that
CULPRIT = [13, 13, 13]  # how the prompt begins that makes a step fail


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    path = tiny_model_dir(tmp_path_factory.mktemp("engine"), hidden_size=32, num_layers=1, max_positions=512)
    return load(path, LoadOptions(num_blocks=256, threads=1))


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that fail on purpose fill the log."""
    monkeypatch.setattr(logging.getLogger("engine"), "disabled", True)


@asynccontextmanager
async def serving(loaded: LoadedModel) -> AsyncIterator[tuple[EngineUpstream, "Ask"]]:
    engine = EngineUpstream("local", loaded)
    served = model("m", engine, encoder=engine.prompts, max_context=engine.max_context)
    async with running(served) as gateway, httpx.AsyncClient(base_url=gateway.url, timeout=60) as client:

        async def ask(prompt: list[int], *, stream: bool = False) -> httpx.Response:
            body = {"model": "m", "prompt": prompt, "max_tokens": 24, "ignore_eos": True, "temperature": 0}
            return await client.post("/v1/completions", json=body | {"stream": stream})

        yield engine, ask
        await eventually(lambda: not engine._engine.has_work and engine.room().in_flight == 0)
        stats = engine.stats()
        assert stats["free_blocks"] + stats["cached_blocks"] == stats["total_blocks"]
        engine._engine.scheduler.pool.check_integrity()


Ask = Callable[..., Any]


def text_of(answer: httpx.Response) -> str:
    """What was told: the text of a whole answer or of a stream that came to its end; an error's code where it ends."""
    if not answer.text.startswith("data: "):
        told = answer.json()
        return str(told["choices"][0]["text"] if "choices" in told else told["error"]["code"])
    events = [event.removeprefix("data: ") for event in answer.text.split("\n\n") if event]
    if events[-1] != "[DONE]":
        return str(json.loads(events[-1])["error"]["code"])
    return "".join(choice["text"] for event in events[:-1] for choice in json.loads(event)["choices"])


def prompts(number: int) -> list[list[int]]:
    return [[20 + each, 21, 22 + each % 5, *range(30, 30 + each)] for each in range(number)]


class Steps:
    """Puts something in the way of the engine's steps. The first ones take so long that all who ask share the next."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, refuse: Callable[[Batch], None]) -> None:
        run, self.num_run, self.largest = CpuRunner.run, 0, 0

        def watched(runner: CpuRunner, batch: Batch) -> list[Sampled]:
            self.num_run += 1
            self.largest = max(self.largest, batch.num_tokens)
            if self.num_run <= 3:
                time.sleep(0.1)
            refuse(batch)
            return run(runner, batch)

        monkeypatch.setattr(CpuRunner, "run", watched)


@pytest.mark.fault_row(37)
@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("defended", [True, False])
async def test_of_those_in_a_step_that_raises_only_the_culprit_is_told_an_error(
    defended: bool, stream: bool, after: int, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not defended:
        monkeypatch.setattr(Careful, "_apart", lambda self, failed: [failed])

    def refuse(batch: Batch) -> None:
        rows = [row.sequence for row in batch.rows if row.sequence.token_ids[:3] == CULPRIT]
        if any(sequence.num_generated >= after for sequence in rows):
            raise RuntimeError("an illegal access")

    async with serving(loaded) as (_, ask):
        alone = [text_of(await ask(prompt)) for prompt in prompts(8)]
        Steps(monkeypatch, refuse)
        asked = [ask(prompt, stream=stream) for prompt in prompts(8)]
        *others, culprit = await asyncio.gather(*asked, ask([*CULPRIT, 1], stream=stream))
        again = text_of(await ask(prompts(1)[0]))

    assert text_of(culprit) == "upstream_engine"
    assert culprit.status_code == (200 if stream and after else 502)
    assert ([text_of(answer) for answer in others] == alone) is defended
    assert again == alone[0]


@pytest.mark.fault_row(39)
@pytest.mark.parametrize("defended", [True, False])
async def test_a_step_that_finds_no_memory_is_made_smaller_and_nobody_is_told(
    defended: bool, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not defended:
        monkeypatch.setattr(Careful, "_with_less", lambda self, batch: [Portion(batch, (), MemoryError())])

    def refuse(batch: Batch) -> None:
        if batch.num_tokens > ROOM:
            raise MemoryError("no room for activations")

    async with serving(loaded) as (engine, ask):
        alone = [text_of(await ask(prompt)) for prompt in prompts(10)]
        steps = Steps(monkeypatch, refuse)
        answers = await asyncio.gather(*(ask(prompt) for prompt in prompts(10)))
        shortages = engine.stats()["memory_shortages"]

    assert steps.largest > ROOM
    assert shortages >= 1
    assert ([text_of(answer) for answer in answers] == alone) is defended
