"""The machine's wall clock is set an hour forwards, or back: what follows it, and what does not.

Each scenario is run twice: as the gateway stands, and with the wall clock where it uses one that never jumps.
"""

import asyncio
import time

import httpx
import pytest

from cache.embedded import EmbeddedStore
from cache.ledger import Ledger
from gateway.app import Bounds
from policies.bucket import Limit
from policies.holder import Rule
from tests.gateway.conftest import http_upstream, model, running
from tests.rig.limited import limited
from tests.rig.upstream import scripted_upstream

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 20}
HOUR_S = 3600.0


def tokens_an_hour(amount: int) -> Rule:
    return Rule(Limit.bucket("acme/tokens", amount, int(HOUR_S * 1e6)), input=1, cached=1, output=1)


class WallClock:
    """The machine's time of day, which somebody sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shift_s = 0.0
        self._real = time.time
        monkeypatch.setattr(time, "time", self)

    def __call__(self) -> float:
        return self._real() + self.shift_s


def on_the_wall_clock(clock: WallClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the defence out: deadlines, timers and timeouts by the time of day."""
    monkeypatch.setattr(time, "monotonic", clock)
    monkeypatch.setattr("gateway.upstreams.http.monotonic", clock)
    monkeypatch.setattr("gateway.http.client.monotonic", clock)


async def under_way_while_it_jumps(clock: WallClock) -> list[int]:
    """Callers wait and are served while the clock is set forwards, back, and right; give statuses, 0 for cut off."""
    async with scripted_upstream() as server:
        served = model("m", http_upstream(server.url, slots=2))
        async with (
            running(served, bounds=Bounds(deadline_s=60.0)) as gateway,
            httpx.AsyncClient(base_url=gateway.url, timeout=None) as client,
        ):

            async def ask(stream: bool) -> int:
                script = {"head_delay_s": 0.05, "chunk_delay_s": 0.01}
                headers = {"x-request-deadline": "50s"}
                body = CHAT | {"stream": stream, "script": script}
                try:
                    answer = await client.post("/v1/chat/completions", json=body, headers=headers)
                except httpx.TransportError:
                    return 0
                return 0 if '"error"' in answer.text and answer.status_code == 200 else answer.status_code

            asking = [asyncio.ensure_future(ask(number % 2 == 0)) for number in range(8)]
            for shift_s in (HOUR_S, -HOUR_S, 0.0):
                await asyncio.sleep(0.04)
                clock.shift_s = shift_s
            return await asyncio.gather(*asking)


@pytest.mark.fault_row(35)
@pytest.mark.parametrize("defended", [True, False])
def test_nobodys_time_is_over_because_the_clock_was_set(defended: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On asyncio's own loop: whose timers follow `time.monotonic`, so that it can be taken from them."""
    clock = WallClock(monkeypatch)
    if not defended:
        on_the_wall_clock(clock, monkeypatch)
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        statuses = runner.run(asyncio.wait_for(under_way_while_it_jumps(clock), None))

    assert (statuses == [200] * 8) is defended


@pytest.mark.fault_row(35)
@pytest.mark.parametrize("defended", [True, False])
async def test_no_quota_flows_back_because_the_clock_was_set(defended: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nearly all that an hour allows is used; the clock jumps by one."""
    clock = WallClock(monkeypatch)
    store = EmbeddedStore() if defended else EmbeddedStore(clock=lambda: int(clock() * 1e6))
    account = limited(tokens_an_hour(1_000)).terms("m").account
    async with Ledger(store) as ledger:
        async with ledger.reserve(account, "a", input_tokens=900, max_output=None):
            pass
        [before] = await ledger.look(account)
        clock.shift_s = HOUR_S
        [after] = await ledger.look(account)

    assert before.free <= 101
    assert (after.free <= 101) is defended
