"""A caller may leave at any await of a request's path: nothing stays leased, open, waiting or unrecorded."""

import asyncio
import json
from collections.abc import Iterable

import pytest

from gateway.app import App, build
from gateway.http.message import HttpRequest
from gateway.identity.identity import Identity
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.record import Ending, RequestRecord
from tests.gateway.conftest import model
from tests.gateway.test_answers import PROMPTS
from tests.rig.in_process import InProcess

LONGER_THAN_ANY_CALL = 60


class Responder:
    """Takes an answer in memory; `congested` makes the writer wait, for some rounds of the loop."""

    def __init__(self, *, congested: bool = False) -> None:
        self.started = False
        self.finished = 0
        self.written: list[bytes] = []
        self.congested = congested

    def respond(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
        self.started = True
        self.written.append(body)
        self.finished += 1

    def start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self.started = True

    def write(self, data: bytes) -> None:
        self.written.append(data)

    async def drain(self) -> None:
        await asyncio.sleep(0)

    def finish(self) -> None:
        self.finished += 1

    def abort(self) -> None: ...


def request(stream: bool) -> HttpRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": stream}
    headers = {b"content-type": b"application/json"}
    return HttpRequest("POST", "/v1/chat/completions", "", headers, json.dumps(body).encode(), "127.0.0.1", 0.0)


def serving(upstream: InProcess) -> tuple[App, Metrics, list[RequestRecord]]:
    metrics, records = Metrics("test"), list[RequestRecord]()
    served = model("m", upstream, encoder=PROMPTS)
    return build(models={"m": served}, identity=Identity(), metrics=metrics, sinks=[records.append]), metrics, records


async def rounds(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


@pytest.mark.parametrize("congested", [False, True], ids=["flowing", "congested"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_leaving_at_any_moment_leaves_nothing_behind(stream: bool, congested: bool) -> None:
    upstream = InProcess(slots=1, rounds=2, takes_ids=True)
    app, metrics, records = serving(upstream)
    endings = set()

    for moment in range(LONGER_THAN_ANY_CALL):
        responder = Responder(congested=congested)
        task = asyncio.ensure_future(app(request(stream), responder))
        await rounds(moment)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

        assert (upstream.leased, upstream.running, metrics.in_flight) == (0, 0, 0)
        assert len(records) == moment  # the first was cancelled before it began
        endings.add(records[-1].ending if records else None)
        assert responder.finished == (not task.cancelled())

    assert endings == {None, Ending.LEFT, Ending.OK}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_leaving_the_queue_at_any_moment_lets_the_others_through(stream: bool) -> None:
    for moment in range(LONGER_THAN_ANY_CALL):
        upstream = InProcess(slots=1, rounds=1, takes_ids=True)
        app, metrics, records = serving(upstream)
        first, second, third = (asyncio.ensure_future(app(request(stream), Responder())) for _ in range(3))
        await rounds(moment)
        second.cancel()
        await asyncio.gather(first, second, third, return_exceptions=True)

        assert (first.exception(), third.exception()) == (None, None)
        assert (upstream.leased, upstream.running, metrics.in_flight) == (0, 0, 0)
        assert [record.ending for record in records].count(Ending.OK) >= 2
