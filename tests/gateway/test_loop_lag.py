"""The loop's delay is seen, and told once."""

import asyncio
import time

import pytest

from gateway.telemetry.loop_lag import EVERY_S, LoopLag


@pytest.mark.fault_row(36)
async def test_a_loop_that_was_held_up_is_seen_late_once() -> None:
    lag = LoopLag()
    until = time.monotonic() + 2 * EVERY_S
    while time.monotonic() < until:
        continue  # what no callback may do
    await asyncio.sleep(0)
    seen = lag.read()
    lag.close()

    assert seen >= 0.9 * EVERY_S
    assert lag.read() == 0.0
