"""A request's own deadline: what a caller may ask for, whose is the sooner, and which clock a 504 names."""

import asyncio
import time
from pathlib import Path

import httpx
import pytest

from gateway.app import Bounds
from gateway.configuration.config import EngineModel
from gateway.deadline import remaining_s
from gateway.errors import BadRequest, DeadlineExceeded
from gateway.upstreams.engine import EngineUpstream
from policies.account import Account
from policies.tenant import Tenant, Terms
from tests.gateway.conftest import http_upstream, model, running
from tests.rig.in_process import InProcess
from tests.rig.upstream import Upstream
from tests.tiny_model import tiny_model_dir

NOW = 1_790_000_000.0
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize(
    ("value", "left_s"),
    [
        (b"1500ms", 1.5),
        (b"0.5ms", 0.0005),
        (b"2s", 2.0),
        (b" 2.25 ", 2.25),
        (b"2.25 s", 2.25),
        (b"1790000003.5", 3.5),
        (b"999999999", 999_999_999.0),
    ],
)
def test_a_deadline_has_three_forms(value: bytes, left_s: float) -> None:
    assert remaining_s(value, NOW) == pytest.approx(left_s)


@pytest.mark.parametrize(
    "value", [b"", b"soon", b"-1", b"1m", b"1,5", b"1e3", b"nan", b"inf", b"1s, 2s", b"1 2", b"\xb2s", b"9" * 40, b"."]
)
def test_what_is_no_deadline_is_refused(value: bytes) -> None:
    with pytest.raises(BadRequest, match="X-Request-Deadline"):
        remaining_s(value, NOW)


@pytest.mark.parametrize("value", [b"0", b"0ms", b"1789999999"])
def test_a_deadline_that_is_over_is_told_as_such(value: bytes) -> None:
    with pytest.raises(DeadlineExceeded, match="over on arrival"):
        remaining_s(value, NOW)


def patient(deadline_s: float | None) -> Tenant:
    terms = Terms(Account("acme"), deadline_s=deadline_s)
    return Tenant("acme/web", decide=lambda model: terms)


@pytest.mark.parametrize(
    ("gateway_s", "tenant_s", "caller", "named"),
    [
        (0.05, None, None, "request_timeout_s"),
        (0.05, 60.0, "60s", "request_timeout_s"),
        (60.0, 0.05, None, "deadline_s"),
        (60.0, 0.05, "60000ms", "deadline_s"),
        (60.0, None, "50ms", "X-Request-Deadline"),
        (60.0, 30.0, "0.05", "X-Request-Deadline"),
    ],
)
@pytest.mark.parametrize("full", [False, True], ids=["upstream", "room"])
async def test_the_soonest_deadline_holds_and_the_answer_names_it(
    upstream: Upstream, gateway_s: float, tenant_s: float | None, caller: str | None, named: str, full: bool
) -> None:
    served = InProcess(slots=0) if full else http_upstream(upstream.url)
    headers = {"authorization": "Bearer k"} | ({} if caller is None else {"x-request-deadline": caller})
    bounds = Bounds(deadline_s=gateway_s)
    async with (
        running(model("m", served), tenants={"k": patient(tenant_s)}, bounds=bounds) as gateway,
        httpx.AsyncClient(base_url=gateway.url, headers=headers) as client,
    ):
        answer = await client.post("/v1/chat/completions", json=CHAT | {"script": {"hang_at": "accept"}})

    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "deadline_exceeded"
    assert named in answer.json()["error"]["message"]
    assert ("waited for room" in answer.json()["error"]["message"]) == full


async def test_a_bad_deadline_is_a_bad_request() -> None:
    async with running(model("m", InProcess())) as gateway, httpx.AsyncClient(base_url=gateway.url) as client:
        answer = await client.post("/v1/chat/completions", json=CHAT, headers={"x-request-deadline": "later"})

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "X-Request-Deadline"


@pytest.mark.fault_row(35)
async def test_a_wall_clock_that_jumps_ends_nobody(upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour forwards and two back, while calls run and wait: only the loop's clock counts."""
    served, real, shifts = http_upstream(upstream.url, slots=1), time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + shifts[-1])
    async with (
        running(model("m", served), bounds=Bounds(deadline_s=30.0)) as gateway,
        httpx.AsyncClient(base_url=gateway.url, timeout=30) as client,
    ):

        async def ask() -> int:
            script = {"head_delay_s": 0.05}
            answer = await client.post(
                "/v1/chat/completions", json=CHAT | {"script": script}, headers={"x-request-deadline": "20s"}
            )
            return answer.status_code

        asking = [asyncio.ensure_future(ask()) for _ in range(6)]
        for shift in (3600.0, -3600.0, 0.0):
            shifts.append(shift)
            await asyncio.sleep(0.04)

        assert await asyncio.gather(*asking) == [200] * 6


async def test_the_deadline_reaches_the_engine(tmp_path: Path) -> None:
    directory = tiny_model_dir(tmp_path / "tiny", hidden_size=32, num_layers=1, max_positions=4096)
    engine = await EngineUpstream.open("m", EngineModel(path=str(directory), threads=1, num_blocks=300), directory)
    served = model("m", engine, encoder=engine.prompts, max_context=engine.max_context)
    async with running(served) as gateway, httpx.AsyncClient(base_url=gateway.url, timeout=60) as client:
        body = CHAT | {"max_tokens": 4000, "ignore_eos": True}
        answer = await client.post("/v1/chat/completions", json=body, headers={"x-request-deadline": "150ms"})

    assert answer.status_code == 504
    assert "X-Request-Deadline" in answer.json()["error"]["message"]
