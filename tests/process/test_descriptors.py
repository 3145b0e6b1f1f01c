"""A worker without a file descriptor left goes on, without spinning, and is well again when some are free."""

import asyncio
import os
import resource
import socket
import time
from pathlib import Path

from tests.process.conftest import Start
from tests.process.test_restart import CHAT, asked, serving
from tests.rig.plain_client import PlainClient


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def test_a_worker_out_of_descriptors_neither_dies_nor_spins(start: Start, tmp_path: Path) -> None:
    async with serving(start, tmp_path) as (process, port, _), PlainClient(port) as kept, PlainClient(port) as fresh:
        before = await kept.ask("POST", CHAT, asked())
        [worker] = process.children()
        used = len(os.listdir(f"/proc/{worker}/fd"))
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (used + 20, used + 20))
        crowd = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(60)]
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
    assert share < 0.5
    assert same == [worker]
