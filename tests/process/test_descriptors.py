"""A worker without a file descriptor left goes on, without spinning, and is well again when some are free."""

import asyncio
import os
import resource
import socket
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.process.conftest import Start
from tests.process.test_restart import CHAT, asked, serving
from tests.rig.plain_client import PlainClient
from tests.rig.upstream import eventually

# The gateway on a loop that does not keep a descriptor in reserve, with which to accept and close where none is left.
WITHOUT_RESERVE = """
import asyncio, sys, uvloop
from gateway.cli import main
uvloop.new_event_loop = asyncio.new_event_loop
sys.exit(main(["serve", "--config", "penstock.yaml"]))
"""


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def refused(sock: socket.socket) -> bool:
    """Whether the other end has closed a connection on which nothing was said."""
    try:
        return sock.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


@pytest.mark.fault_row(28)
@pytest.mark.parametrize("defended", [True, False])
async def test_a_worker_out_of_descriptors_refuses_serves_on_and_does_not_spin(
    defended: bool, start: Start, tmp_path: Path
) -> None:
    without = () if defended else ("-c", WITHOUT_RESERVE)
    async with (
        serving(start, tmp_path, command=without) as (process, port, _),
        PlainClient(port) as kept,
        PlainClient(port) as fresh,
    ):
        before = await kept.ask("POST", CHAT, asked())
        [worker] = process.children()
        used = len(os.listdir(f"/proc/{worker}/fd"))
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (used + 20, used + 20))
        crowd = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(60)]
        for each in crowd:
            each.setblocking(False)
        with suppress(TimeoutError):
            await eventually(lambda: sum(map(refused, crowd)) >= 40, 20.0 if defended else 1.0)
        told = sum(map(refused, crowd))
        began, spent = time.monotonic(), cpu_s(worker)
        await asyncio.sleep(0.5)
        share = (cpu_s(worker) - spent) / (time.monotonic() - began)
        meanwhile = await kept.ask("POST", CHAT, asked())
        for each in crowd:
            each.close()
        while True:
            try:
                after = await fresh.ask("POST", CHAT, asked())
                break
            except (ConnectionError, asyncio.IncompleteReadError):
                fresh.close()
                await asyncio.sleep(0.02)
        same = process.children()

    assert (before.status, meanwhile.status, after.status) == (200, 200, 200)
    assert (told >= 40) is defended
    assert share < 0.5 or not defended
    assert same == [worker]
