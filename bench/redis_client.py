"""What a step of the ledger costs through our own connection, through redis-py, and in memory, in µs.

    python -m bench.redis_client [--steps 3000] [--callers 32]

A redis-server of its own on a unix socket; six limits a step, on distinct calls. `wait` is what one caller at a time
waits, `cpu` this process' CPU for a step (redis-server's own is apart) with so many callers at once.
"""

import argparse
import asyncio
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import quantiles

import redis.asyncio
import uvloop
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from cache.embedded import EmbeddedStore
from cache.redis_address import Address, Door
from cache.redis_link import Patience
from cache.redis_store import RedisStore
from cache.redis_topology import Single
from policies.bucket import Kind, Limit
from policies.holder import Holder, Rule

MINUTE = 60_000_000
RULES = (
    Rule(Limit.bucket("requests", 10**7, MINUTE), call=1),
    Rule(Limit.bucket("input", 10**9, MINUTE), input=1),
    Rule(Limit.bucket("output", 10**9, MINUTE), output=1),
    Rule(Limit.bucket("total", 10**9, MINUTE), input=1, output=1),
    Rule(Limit.budget("tokens", Kind.DAY, 10**15), input=1, output=1),
    Rule(Limit.budget("cost", Kind.MONTH, 10**15), input=300, output=1200),
)
Take = Callable[[int], Awaitable[object]]


def call(number: int) -> Holder:
    """Begin a call of a hundred input tokens."""
    holder = Holder(f"call-{number}", RULES)
    holder.input = 100
    return holder


async def measure(name: str, take: Take, steps: int, callers: int) -> None:
    """Print what one caller waits for a step, and what a step costs with many."""
    for number in range(200):
        await take(number)
    waits = []
    for number in range(steps):
        begin = time.perf_counter_ns()
        await take(10_000 + number)
        waits.append((time.perf_counter_ns() - begin) / 1000)

    async def caller(index: int) -> None:
        for number in range(steps // callers):
            await take(1_000_000 + index * steps + number)

    begin, cpu = time.perf_counter_ns(), time.process_time_ns()
    await asyncio.gather(*[caller(index) for index in range(callers)])
    done = steps // callers * callers
    cuts = quantiles(waits, n=100)
    wall, busy = (time.perf_counter_ns() - begin) / 1000 / done, (time.process_time_ns() - cpu) / 1000 / done
    alone = f"wait p50 {cuts[49]:7.1f}  p99 {cuts[98]:8.1f}"
    print(f"{name:16} {alone}   {callers} callers: wall {wall:6.1f}  cpu {busy:6.1f}")


async def run(path: Path, steps: int, callers: int) -> None:
    store = RedisStore(lambda forgot: Single.at(Address(path=str(path)), Door(), Patience(10.0, 10.0), forgot))
    await store.open()
    embedded = EmbeddedStore()
    client = redis.asyncio.Redis(
        unix_socket_path=str(path),
        retry=Retry(NoBackoff(), 0),
        socket_timeout=10.0,
        protocol=2,
        max_connections=callers,
    )

    async def ours(number: int) -> object:
        return await store.apply("ours", call(number).reserve(store.clock("ours"), want=256, least=1))

    async def memory(number: int) -> object:
        return embedded.take("own", call(number).reserve(embedded.clock("own"), want=256, least=1))

    class Peer:
        """Our store's commands, sent by redis-py."""

        async def call(self, *words: object) -> object:
            return await client.execute_command(*words)

    async def theirs(number: int) -> object:
        return await peer.apply("theirs", call(number).reserve(store.clock("ours"), want=256, least=1))

    peer = RedisStore(lambda forgot: Single.at(Address(path=str(path)), Door(), Patience(10.0, 10.0), forgot))
    for link in peer.topology.links():
        link.call = Peer().call  # type: ignore[method-assign, assignment]
    await measure("in memory", memory, steps, callers)
    for _ in range(2):
        await measure("own connection", ours, steps, callers)
        await measure("redis-py", theirs, steps, callers)
    await store.aclose()
    await client.aclose()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--callers", type=int, default=32)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "redis.sock")
        server = subprocess.Popen(
            ["redis-server", "--unixsocket", str(path), "--port", "0", "--save", ""], stdout=subprocess.DEVNULL
        )
        try:
            while not path.exists():
                time.sleep(0.01)
            uvloop.run(run(path, options.steps, options.callers))
        finally:
            server.terminate()
            server.wait(10)


if __name__ == "__main__":
    main()
