"""Upstreams that are never silent and never done: the clocks count events, and all of it has an end. Over sockets."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from gateway.upstreams.http import Clocks
from tests.resilience.test_faults import GOOD, ONCE, events_of, site
from tests.rig.upstream import eventually

LATE = Clocks(connect_s=1.0, first_chunk_s=0.3, between_s=0.3, total_s=30.0)
ENDLESS = {"words": ["w"] * 10_000, "chunk_delay_s": 0.02}


async def ends_within(asking: "asyncio.Future[Any]", seconds: float) -> bool:
    await asyncio.wait([asking], timeout=seconds)
    return asking.done()


@pytest.mark.fault_row(14)
@pytest.mark.parametrize("defended", [True, False])
@pytest.mark.parametrize(
    ("script", "code"),
    [
        ({"cut_bytes": 1, "chunk_delay_s": 0.01, "words": ["w"] * 100}, "upstream_first_chunk_timeout"),
        ({"pieces": [": still at it\n\n"] * 10_000, "chunk_delay_s": 0.01}, "upstream_first_chunk_timeout"),
        ({"pieces": [GOOD, *(GOOD * 100)], "chunk_delay_s": 0.01}, "upstream_between_timeout"),
    ],
    ids=["first event by bytes", "comments alone", "further events by bytes"],
)
async def test_an_upstream_that_trickles_is_late_by_its_events_and_not_by_its_bytes(
    script: dict[str, Any], code: str, defended: bool
) -> None:
    """Without the defence the clocks run from one byte to the next."""
    async with site(clocks=LATE, retry=ONCE) as it:
        if not defended:
            [upstream] = it.upstreams
            upstream._clocks = replace(LATE, first_chunk_s=60.0, between_s=60.0)  # those of bytes stay
        asking = asyncio.ensure_future(it.ask(script, stream=True))
        ended = await ends_within(asking, 20.0 if defended else 1.0)
        if ended:
            response = await asking
            told = response.json() if response.status_code == 504 else events_of(response)[-1]
            assert told["error"]["code"] == code
            await eventually(lambda: it.servers[0].seen[0].ending == "left")
        asking.cancel()
        await asyncio.wait([asking])

    assert ended is defended


@pytest.mark.fault_row(14)
@pytest.mark.parametrize("defended", [True, False])
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_an_upstream_that_never_comes_to_an_end_is_ended_by_the_total_deadline(
    stream: bool, defended: bool
) -> None:
    clocks = Clocks(connect_s=1.0, first_chunk_s=5.0, between_s=5.0, total_s=0.4 if defended else 60.0)
    script = ENDLESS if stream else {"pieces": [" "] * 10_000, "chunk_delay_s": 0.02}
    async with site(clocks=clocks, retry=ONCE) as it:
        asking = asyncio.ensure_future(it.ask(script, stream=stream))
        ended = await ends_within(asking, 20.0 if defended else 1.0)
        if ended:
            response = await asking
            told = events_of(response)[-1] if stream else response.json()
            assert (response.status_code, told["error"]["code"]) == (200 if stream else 504, "upstream_total_timeout")
            await eventually(lambda: it.servers[0].seen[0].ending == "left")
        asking.cancel()
        await asyncio.wait([asking])

    assert ended is defended
