"""Work that would hold the event loop is done beside it: long prompts, their templates and their encoding."""

import asyncio
import threading
import time
from array import array
from collections.abc import Callable, Sequence
from typing import TypeVar

import httpx
import pytest

from engine.text.shield import Shield
from engine.text.template import ChatTemplate
from engine.text.tokenizer import Tokenizer
from gateway.counting import CountingThreads
from gateway.prompts import ModelPrompts
from gateway.telemetry.loop_lag import LoopLag
from tests.gateway.conftest import http_upstream, model, running
from tests.rig.upstream import scripted_upstream
from tests.tiny_model import CHATML, SPECIAL, TEXT, byte_level_tokenizer

ResultT = TypeVar("ResultT")
LONG = TEXT * (200_000 // len(TEXT))
HOLDS_S = 0.4
CONTEXT = 180_000  # fewer tokens than the prompt has bytes, so that it has to be counted


class Ponderous(Tokenizer):
    """Takes its time over every encoding, and remembers on which thread."""

    def __init__(self) -> None:
        super().__init__(byte_level_tokenizer(), named_tokens={}, stop_ids=frozenset())
        self.threads: set[int] = set()

    def encode_parts(self, parts: Sequence[str]) -> "list[array[int]]":
        self.threads.add(threading.get_ident())
        if sum(map(len, parts)) > 10_000:
            time.sleep(HOLDS_S)
        return super().encode_parts(parts)


async def on_the_loop(self: CountingThreads, work: Callable[[], ResultT]) -> ResultT:
    """Take the defence out."""
    return work()


@pytest.mark.fault_row(36)
@pytest.mark.parametrize("defended", [True, False])
async def test_a_long_prompt_holds_up_nobody_but_its_caller(defended: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not defended:
        monkeypatch.setattr(CountingThreads, "run", on_the_loop)
    tokenizer, rendered = Ponderous(), set[int]()
    render = ChatTemplate.render

    def watched(*arguments: object, **further: object) -> object:
        rendered.add(threading.get_ident())
        return render(*arguments, **further)  # type: ignore[arg-type]

    monkeypatch.setattr(ChatTemplate, "render", watched)
    prompts = ModelPrompts(tokenizer, ChatTemplate({"default": CHATML}, {}, Shield(SPECIAL)), CONTEXT)
    async with scripted_upstream() as server:
        served = model("m", http_upstream(server.url), encoder=prompts, max_context=CONTEXT)
        async with running(served) as gateway, httpx.AsyncClient(base_url=gateway.url, timeout=60) as client:
            lag = LoopLag()
            body = {"model": "m", "messages": [{"role": "user", "content": LONG}], "max_tokens": 5}
            answers = await asyncio.gather(*(client.post("/v1/chat/completions", json=body) for _ in range(3)))
            worst = lag.read()
            lag.close()

    here = threading.get_ident()
    assert {answer.status_code for answer in answers} == {200}
    assert tokenizer.threads
    assert (here not in tokenizer.threads) is defended
    assert (here not in rendered) is defended
    assert (worst < 0.8 * HOLDS_S) is defended
