"""An event loop that something holds up is reported where an operator looks."""

from pathlib import Path

import pytest

from tests.process.conftest import Start
from tests.process.test_restart import CHAT, asked, serving
from tests.rig.plain_client import PlainClient

# The gateway with a stage that blocks, as no code on the loop may; and, if asked for, with nobody who looks.
SCRIPT = """
import sys, time
from gateway.cli import main
from gateway.stages.resolve import Resolve
from gateway.telemetry.loop_lag import LoopLag

resolve = Resolve.__call__

def blocking(self, call, inner):
    time.sleep(0.3)
    return resolve(self, call, inner)

Resolve.__call__ = blocking
if sys.argv[1] == "unwatched":
    LoopLag._tick = lambda self: None
sys.exit(main(["serve", "--config", "penstock.yaml"]))
"""


@pytest.mark.fault_row(36)
@pytest.mark.parametrize("defended", [True, False])
async def test_what_holds_the_loop_shows_in_the_metrics(defended: bool, start: Start, tmp_path: Path) -> None:
    command = ("-c", SCRIPT, "watched" if defended else "unwatched")
    async with serving(start, tmp_path, command=command) as (_, port, _), PlainClient(port) as client:
        await client.ask("GET", "/metrics")
        answer = await client.ask("POST", CHAT, asked())
        told = (await client.ask("GET", "/metrics")).body.decode().splitlines()

    [lag] = [float(line.split()[1]) for line in told if line.startswith("penstock_loop_lag_seconds ")]
    assert answer.status == 200
    assert (lag > 0.15) is defended
