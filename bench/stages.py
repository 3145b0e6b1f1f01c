"""What the stages before a generation cost a request, in µs: who it is, what it may, what it takes, what it used.

    python -m bench.stages [--requests 2000] [--rounds 5] [--json FILE]

Authenticate, Resolve, Throttle, Bound and Meter run in their order before a handler that answers at once. The figures
in a row are those of the pipeline up to and with its stage: `wait` from entering the pipeline to reaching the handler,
`cpu` this process' CPU for a request from its beginning to its settlement, by waves of so many callers at once. The
policy has six limits over three scopes. With Redis, on a unix socket and a server of its own, the server counts the
commands that a request sends, and its own CPU.
"""

import argparse
import asyncio
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from platform import python_version
from statistics import quantiles

import uvloop

from cache.embedded import EmbeddedStore
from cache.ledger import Ledger
from cache.redis_address import Address, Door
from cache.redis_link import Patience
from cache.redis_store import RedisStore
from cache.redis_topology import Single as SingleServer
from engine.text.template import ChatTemplate
from engine.text.tokenizer import Tokenizer
from gateway.call import Attempt, Call, Event, FinishReason, Handler, Model, Reply, Single, Stage, Usage, compose
from gateway.identifier import new_id
from gateway.identity.identity import Identity
from gateway.prompts import ModelPrompts
from gateway.protocols.chat_request import decode_chat
from gateway.scope import Scope
from gateway.stages.authenticate import Authenticate
from gateway.stages.bound import Bound
from gateway.stages.generate import Generate
from gateway.stages.meter import Meter
from gateway.stages.resolve import Resolve
from gateway.stages.throttle import Throttle
from policies.compile import Source, compile_policy
from policies.key import kept, new_key
from policies.policy import Policy
from tests.rig.in_process import InProcess
from tests.rig.redis_server import RedisServer
from tests.tiny_model import write_tokenizer

WARM_UP = 300
CALLERS = (1, 32)
OUTPUT = 64
CALM = Patience(10.0, 10.0)  # a busy machine is no failure
POLICY = """\
prices: {{model: {{input: 0.10, output: 0.40}}}}
organisations:
  acme:
    limits: [{{tokens: 1_000_000_000_000/day}}, {{cost: 1_000_000/month}}]
    tenants:
      web:
        limits: [{{requests: 60_000_000/min}}, {{concurrency: 100_000}}]
        keys:
          bench:
            hash: "{hash}"
            limits: [{{input_tokens: 1_000_000_000/min}}, {{output_tokens: 1_000_000_000/min}}]
"""


@dataclass(slots=True)
class Samples:
    """What was measured of one pipeline, in nanoseconds."""

    wait: list[int] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def row(self) -> dict[str, float]:
        """Give µs."""
        told: dict[str, float] = {}
        for name, values in (("wait", self.wait), ("cpu", self.cpu)):
            cuts = quantiles(values, n=100)
            told |= {f"{name} p50": cuts[49] / 1000, f"{name} p99": cuts[98] / 1000}
        return told


class Pipeline:
    """The first so many stages, and a handler that answers at once."""

    def __init__(self, stages: Sequence[Stage], key: str, body: bytes) -> None:
        self._handler = compose(stages, self._answer)
        self._headers = {b"authorization": f"Bearer {key}".encode()}
        self._body = body
        self._request = decode_chat(body)
        self._reached: dict[str, int] = {}

    async def wave(self, callers: int, samples: Samples) -> None:
        """Run so many requests at once."""
        calls = [self._call() for _ in range(callers)]
        cpu = time.process_time_ns()
        waits = [await self._run(calls[0])] if callers == 1 else await asyncio.gather(*map(self._run, calls))
        samples.cpu.append((time.process_time_ns() - cpu) / callers)
        samples.wait += waits

    def _call(self) -> Call:
        now = time.monotonic()
        return Call(
            new_id(), "/v1/chat/completions", now, self._body, self._headers, self._request, now + 600.0, Scope()
        )

    async def _run(self, call: Call) -> int:
        begin = time.perf_counter_ns()
        async with call.scope:
            reply = await self._handler(call)
            async for _ in reply.events:
                pass
        return self._reached.pop(call.id) - begin

    async def _answer(self, call: Call) -> Reply:
        self._reached[call.id] = time.perf_counter_ns()
        call.attempts.append(Attempt("bench", call.received, first_event=call.received))
        usage = Usage(100, OUTPUT)
        if hasattr(call, "generation"):
            call.generation.usage = usage
        return Reply(200, {}, Single(Event(finish=FinishReason.STOP, usage=usage)))


class Bare:
    """A stage that does nothing: what a handler and a scope cost by themselves."""

    async def __call__(self, call: Call, inner: Handler) -> Reply:
        return await inner(call)


def pipelines(ledger: Ledger, policy: Policy, models: dict[str, Model], key: str, body: bytes) -> dict[str, Pipeline]:
    """Give the pipelines, each a stage longer than the one before."""
    stages: list[tuple[str, list[Stage]]] = [
        ("(no stage)", [Bare()]),
        ("Authenticate", [Authenticate(Identity(policy=lambda: policy))]),
        ("Resolve", [Resolve(models)]),
        ("Throttle", [Throttle(ledger)]),
        ("Bound", [Bound()]),
        ("Meter", [Generate(), Meter(ledger)]),
    ]
    given, so_far = {}, list[Stage]()
    for name, more in stages:
        so_far = [*so_far, *more]
        given[name] = Pipeline(so_far, key, body)
    return given


async def measure(
    given: dict[str, Pipeline], ledger: Ledger, requests: int, rounds: int
) -> dict[str, dict[str, float]]:
    """Measure every pipeline in turns, so that what else the machine does meets all of them."""
    samples = {(name, callers): Samples() for name in given for callers in CALLERS}
    for pipeline in given.values():
        for _ in range(WARM_UP):
            await pipeline.wave(1, Samples())
    for _ in range(rounds):
        for (name, callers), taken in samples.items():
            for _ in range(requests // callers):
                await given[name].wave(callers, taken)
            await settled(ledger)
    return {f"{name}, {callers} callers": taken.row() for (name, callers), taken in samples.items()}


async def settled(ledger: Ledger) -> None:
    """Wait until nothing is under way off the callers' path."""
    while ledger.tasks:
        await asyncio.wait(ledger.tasks)


def commands_of(server: RedisServer) -> dict[str, int]:
    """Give how many of each command the server has run, those for bookkeeping left out."""
    told = server.ask("INFO", "commandstats").decode()
    counts = {name: int(calls) for name, calls in re.findall(r"cmdstat_([^:]+):calls=(\d+)", told)}
    inside = (
        "time",
        "mget",
        "get",
        "set",
        "del",
        "zadd",
        "zrem",
        "zrangebyscore",
        "pexpire",
        "info",
        "config|resetstat",
    )
    return {name: count for name, count in counts.items() if name not in inside}


def server_cpu_us(server: RedisServer) -> float:
    """Give the server's CPU time so far."""
    told = server.ask("INFO", "cpu").decode()
    return sum(float(value) for value in re.findall(r"used_cpu_(?:user|sys):([\d.]+)", told)) * 1e6


async def count_commands(pipeline: Pipeline, ledger: Ledger, server: RedisServer, requests: int) -> dict[str, float]:
    """Give the commands that a request sends before it is answered and in all, and what they cost the server."""
    await settled(ledger)
    server.ask("CONFIG", "RESETSTAT")
    cpu = server_cpu_us(server)
    for _ in range(requests):
        await pipeline.wave(1, Samples())
    await settled(ledger)
    told = {f"{name} a request": count / requests for name, count in commands_of(server).items()}
    return told | {"server's cpu": (server_cpu_us(server) - cpu) / requests}


async def run(folder: Path, requests: int, rounds: int) -> dict[str, object]:
    """Measure with the embedded store, then with Redis."""
    write_tokenizer(folder / "model")
    tokenizer = Tokenizer.from_dir(folder / "model")
    encoder = ModelPrompts(tokenizer, ChatTemplate.from_dir(folder / "model", tokenizer), 32_768)
    upstream = InProcess(takes_ids=True)
    models = {"model": Model("model", (upstream,), 0, "bench", "fp", encoder=encoder)}
    key = new_key("bench", lambda size: b"\x07" * size)
    policy = compile_policy([Source("policy.yaml", POLICY.format(hash=kept(key)))], served=["model"])
    content = "The engine reads a batch, writes the keys and values into their blocks, and gives back one token. " * 4
    asked = {"model": "model", "max_tokens": OUTPUT, "messages": [{"role": "user", "content": content}]}
    body = json.dumps(asked).encode()
    figures: dict[str, object] = {}
    with ExitStack() as ending:
        server = ending.enter_context(RedisServer(folder))
        redis = RedisStore(lambda forgot: SingleServer.at(Address(path=str(server.path)), Door(), CALM, forgot))
        await redis.open()
        for name, store in (("embedded", EmbeddedStore()), ("redis", redis)):
            async with Ledger(store) as ledger:
                given = pipelines(ledger, policy, models, key, body)
                rows = await measure(given, ledger, requests, rounds)
                figures[name] = rows
                for line in table(name, rows):
                    print(line, flush=True)
                if store is redis:
                    counted = {}
                    for stage in ("Resolve", "Throttle", "Bound", "Meter"):
                        counted[stage] = await count_commands(given[stage], ledger, server, requests)
                        print(f"{name:9} up to {stage:12} {told_of(counted[stage])}", flush=True)
                    figures["commands"] = counted
        await redis.aclose()
    return figures


def table(store: str, rows: dict[str, dict[str, float]]) -> Iterator[str]:
    """Give the lines to print."""
    for name, row in rows.items():
        yield f"{store:9} {name:24}" + "".join(f"{column:>10} {value:7.1f}" for column, value in row.items())


def told_of(counts: dict[str, float]) -> str:
    """Give counts as words."""
    return ", ".join(f"{name} {value:.2f}" for name, value in counts.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = uvloop.run(run(Path(folder), options.requests, options.rounds))
    if options.json is not None:
        command = f"python -m bench.stages --requests {options.requests} --rounds {options.rounds}"
        about = {"command": command, "python": python_version(), "cores": os.cpu_count()}
        options.json.write_text(json.dumps(about | {"figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
