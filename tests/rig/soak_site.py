"""Where a soak happens: a gateway as an operator runs it, two scripted upstreams, proxies that break what is between.

The gateway serves the demo model itself and two models by the upstreams, with every defence on. The limits' store is
its memory, or a Redis behind a proxy of its own.
"""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.rig.event_log import EventLog
from tests.rig.fault_proxy import FaultProxy
from tests.rig.gateways import Gateway, gateways
from tests.rig.redis_server import RedisServer
from tests.rig.soak_caller import Caller
from tests.rig.soak_upstream import Moody
from tests.rig.soak_weather import network, policies, store, upstream
from tests.rig.soak_wish import ENGINE, JUDGES, PAIR, SINGLE, kept_key_of, sized
from tests.rig.toxiproxy import spelt
from tests.rig.upstream import Upstream
from tests.rig.vitals import Vitals, at_rest, look

UPSTREAM_KEY = "canary-upstream-key"
BUDGET = 1_000_000_000
SEQUENCES = 8
STEPS = (*range(1, 33), *range(34, 65, 2), *range(68, 129, 4), *range(136, 257, 8))
REST_S = 60.0  # how long a busy machine may take to come to rest; what it took is told
CONFIG = """\
listen: {{port: 0, request_timeout_s: 20, stall_timeout_s: 3, drain_s: 10}}
policies: [./policy.yaml]
{store}
models:
  {engine}: {{engine: {{path: demo, threads: 1, num_blocks: 256, max_sequences: {sequences}}}}}
  {single}: {{upstreams: [left], upstream_model: far, max_output: 100}}
  {pair}:
    upstreams: [left, right]
    upstream_model: far
    max_output: 100
    retry: {{base_s: 0.05}}
    hedge: {{least_s: 0.05, share: 0.2}}
upstreams:
  left: {{url: "{left}", {clocks}, concurrency: {{limit: aimd, most: 32, initial: 8}}}}
  right: {{url: "{right}", {clocks}}}
admission: {{max_wait_s: 3}}
telemetry: {{access_log: ./access.log}}
"""
CLOCKS = "key: 'env:UPSTREAM_KEY', connect_timeout_s: 1, first_chunk_timeout_s: 2, between_chunks_timeout_s: 2"
CLOCKS += ", total_timeout_s: 10"
POLICY = """\
organisations:
  acme:
    limits: [{{input_tokens: {budget}/month}}, {{output_tokens: {budget}/month}}]
    defaults: {{slice_tokens: 16, on_store_failure: local}}
    tenants:
      web: {{weight: {weight}, keys: {{web-1: {{hash: "{web}"}}}}}}
      batch: {{priority: low, limits: [{{concurrency: {places}}}], keys: {{batch-1: {{hash: "{batch}"}}}}}}
      judge: {{keys: {{judge-acme: {{hash: "{judge_acme}"}}}}}}
  umbra:
    limits: [{{input_tokens: {budget}/month}}, {{output_tokens: {budget}/month}}]
    defaults: {{slice_tokens: 16, on_store_failure: local}}
    tenants:
      lab: {{deadline_s: {deadline}, keys: {{lab-1: {{hash: "{lab}"}}}}}}
      judge: {{keys: {{judge-umbra: {{hash: "{judge_umbra}"}}}}}}
"""


def policy(weight: int = 1, places: int = 8, deadline: float = 15.0) -> str:
    """Write a version of the policy file."""
    bearers = {"web": "web-1", "batch": "batch-1", "lab": "lab-1"}
    bearers |= {f"judge_{organisation}": judge for organisation, judge in JUDGES.items()}
    hashes = {name: kept_key_of(bearer) for name, bearer in bearers.items()}
    return POLICY.format(weight=weight, places=places, deadline=deadline, budget=BUDGET, **hashes)


VERSIONS = ((1, 8, 15.0), (3, 4, 5.0), (2, 12, 10.0))


@dataclass(frozen=True, slots=True)
class Soak:
    """How long and how hard. With `shared` the limits are counted in a Redis, whose network has weather too.

    Whose memory is to be judged is `warmed` before.
    """

    seconds: float
    shared: bool = False
    warmed: bool = False
    callers: int = 12
    pause_s: float = 0.1
    calm_s: float = 2.5
    seed: int = 1


class Site:
    """Everything that runs during a soak."""

    def __init__(self, soak: Soak, folder: Path, log: EventLog) -> None:
        self.soak = soak
        self.folder = folder
        self.log = log
        self.servers: dict[str, Upstream] = {}
        self.moody: dict[str, Moody] = {}
        self.proxies: dict[str, FaultProxy] = {}
        self.redis: RedisServer | None = None
        self.gateway: Gateway
        self.begun = 0.0

    @property
    def upstream_proxies(self) -> list[FaultProxy]:
        return [self.proxies[name] for name in self.servers]

    async def look(self) -> tuple[Vitals, Mapping[str, float]]:
        """Look at the gateway's process and gauges."""
        metrics = await asyncio.to_thread(self.gateway.metrics)
        return look(self.gateway.worker, metrics, time.monotonic() - self.begun), metrics

    async def load(self, seconds: float, name: str, stop: asyncio.Event) -> dict[str, set[str]]:
        """Have callers call for so long, then `stop` and hear the last of them out.

        Gives what repeatable requests were answered.
        """
        crowd = [
            Caller(self.gateway.port, self.log, Random(f"{self.soak.seed}-{name}-{number}"), f"{name}.{number}")
            for number in range(self.soak.callers)
        ]
        async with asyncio.TaskGroup() as tasks:
            for caller in crowd:
                tasks.create_task(caller.call_until(stop, self.soak.pause_s))
            await asyncio.sleep(seconds)
            stop.set()
        texts: dict[str, set[str]] = {}
        for caller in crowd:
            for prompt, answers in caller.texts.items():
                texts.setdefault(prompt, set()).update(answers)
        return texts

    async def warm(self) -> None:
        """Have the engine compute steps of every size that the load may bring, and fill its blocks.

        It keeps 3 MB for each number of rows that it meets (`engine/models/linear.py`), of which there are few; a KV
        block takes no memory before it is used. The load comes to the last of both after many minutes.
        """

        async def ask(name: str, tokens: int, answer: int) -> None:
            caller = Caller(self.gateway.port, self.log, Random(name), name)
            await caller.ask(sized(name, tokens, answer))
            caller.hang_up()

        for tokens in STEPS:
            await ask(f"warm.{tokens}", tokens, 1)
        async with asyncio.TaskGroup() as tasks:
            for number in range(1, SEQUENCES + 1):
                tasks.create_task(ask(f"together.{number}", 256 + number, 16 * number))

    async def weather(self, stop: asyncio.Event) -> None:
        """Have all the weather until told to stop."""
        sighup = signal.SIGHUP
        places = [network(f"network to {name}", proxy) for name, proxy in self.proxies.items()]
        places += [upstream(f"upstream {name}", server, self.moody[name]) for name, server in self.servers.items()]
        versions = [policy(*version) for version in VERSIONS]
        places.append(
            policies(self.gateway.folder / "policy.yaml", versions, lambda: self.gateway.process.send(sighup))
        )
        if self.redis is not None:
            places.append(store(self.redis))
        for moody in self.moody.values():
            moody.calm = False
        async with asyncio.TaskGroup() as tasks:
            for place in places:
                rng = Random(f"{self.soak.seed}-{place.name}")
                tasks.create_task(place.weather(rng, stop, self.log, self.soak.calm_s))
        for moody in self.moody.values():
            moody.calm = True

    async def watch(self, vitals: list[Vitals], stop: asyncio.Event) -> None:
        """Look again and again, and write down what is seen and what upstreams have seen."""
        every_s = max(0.5, self.soak.seconds / 300)
        with (self.folder / "vitals.csv").open("w", buffering=1) as table:
            table.write(",".join(Vitals._fields) + "\n")
            while not stop.is_set():
                vitals.append((await self.look())[0])
                table.write(",".join(f"{value:.10g}" for value in vitals[-1]) + "\n")
                self.note()
                await asyncio.sleep(every_s)

    def note(self) -> None:
        for moody in self.moody.values():
            moody.note(self.log)

    async def rest(self, before: Mapping[str, float] | None) -> tuple[Vitals, dict[str, float], float]:
        """Wait until nothing is under way, and all is as `before` if that is given; give how it is, and the time."""
        begun = time.monotonic()
        cut = False
        while True:
            vitals, metrics = await self.look()
            now = at_rest(vitals, metrics) | {"attempts": sum(moody.num_open for moody in self.moody.values())}
            idle = not (now["requests_in_flight"] or now["upstream_in_flight"] or now["attempts"])
            if idle and not cut:
                cut = True
                for proxy in self.upstream_proxies:  # what upstreams' pools keep open is nobody's debt
                    await asyncio.to_thread(proxy.cut)
                continue
            passed_s = time.monotonic() - begun
            settled = idle and vitals.held_blocks == 0 and ((before is None and passed_s > 1.0) or before == now)
            if settled or passed_s > REST_S:
                return vitals, now, passed_s
            await asyncio.sleep(0.05)


@asynccontextmanager
async def site(soak: Soak, folder: Path) -> AsyncIterator[Site]:
    """Start everything; ended whatever happens."""
    async with AsyncExitStack() as stack:
        log = stack.enter_context(EventLog(folder / "events.jsonl"))
        it = Site(soak, folder, log)
        for name in ("left", "right"):
            server = it.servers[name] = Upstream()
            await server.start()
            stack.push_async_callback(server.stop)
            it.moody[name] = Moody(name, server, Random(f"{soak.seed}-{name}"))
            proxy = FaultProxy(("127.0.0.1", server.port), seed=soak.seed)
            it.proxies[name] = stack.enter_context(proxy)
        where = ""
        if soak.shared:
            (folder / "redis").mkdir()
            it.redis = stack.enter_context(RedisServer(folder / "redis"))
            proxy = FaultProxy(it.redis.path, folder / "proxy.sock", seed=soak.seed)
            it.proxies["store"] = stack.enter_context(proxy)
            where = f"store: {{url: 'unix://{folder}/proxy.sock', lease_s: 5}}"
        urls = {name: f"http://{spelt(it.proxies[name].place)}/v1" for name in it.servers}
        config = CONFIG.format(
            store=where, engine=ENGINE, sequences=SEQUENCES, single=SINGLE, pair=PAIR, clocks=CLOCKS, **urls
        )
        (folder / "0").mkdir()
        (folder / "0" / "policy.yaml").write_text(policy(*VERSIONS[0]))
        [it.gateway] = stack.enter_context(gateways(folder, [config], {"UPSTREAM_KEY": UPSTREAM_KEY}))
        yield it
