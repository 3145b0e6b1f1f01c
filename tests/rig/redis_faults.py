"""Gateways over a Redis that fails in every way we know of, with callers in every mode that a policy can declare.

Redis stands behind a network of ours. `strict` callers are refused while it is down, `loose` ones are held to this
replica's share, `bare` ones have no limits: they are the control, which no fault may touch.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from policies.compile import Source, compile_policy
from policies.key import kept, new_key
from policies.policy import Policy
from tests.rig.background import background
from tests.rig.chat_client import Ask
from tests.rig.fault_proxy import FaultProxy
from tests.rig.gateways import Gateway, gateways
from tests.rig.redis_server import RedisServer
from tests.rig.toxics import Direction, Held, Latency, LimitData
from tests.rig.upstream import Upstream, scripted_upstream

MODES = ("strict", "loose", "bare")
MODEL = "remote"
SLICE = 8
SLOW = Latency(300, 200)
POLICY = """\
organisations:
  strict:
    limits: [{{requests: 1_000_000/month}}, {{output_tokens: 1_000_000/month}}, {{concurrency: 200}}]
    defaults: {{on_store_failure: closed, slice_tokens: 8}}
    tenants: {{app: {{keys: {{strict: {{hash: "{strict}"}}}}}}}}
  loose:
    limits: [{{requests: 1_000_000/month}}, {{output_tokens: 1_000_000/month}}, {{concurrency: 200}}]
    defaults: {{on_store_failure: local, slice_tokens: 8}}
    tenants: {{app: {{keys: {{loose: {{hash: "{loose}"}}}}}}}}
  bare:
    tenants: {{app: {{keys: {{bare: {{hash: "{bare}"}}}}}}}}
"""
CONFIG = """\
listen: {{port: 0}}
policies: [./policy.yaml]
store: {{url: "redis://127.0.0.1:{port}", replicas: {replicas}, lease_s: 2, timeout_ms: {timeout_ms}}}
models: {{remote: {{upstreams: [scripted], max_output: 64}}}}
upstreams: {{scripted: {{url: "{upstream}"}}}}
telemetry: {{access_log: ./access.log}}
"""


def key_of(mode: str) -> str:
    """Give the key of a mode's caller."""
    return new_key(mode, lambda size: mode.encode().ljust(size, b"."))


def policy_text() -> str:
    """Write the policy file."""
    return POLICY.format(**{mode: kept(key_of(mode)) for mode in MODES})


@dataclass
class Rig:
    """What runs."""

    redis: RedisServer
    network: FaultProxy
    upstream: Upstream
    gateways: list[Gateway]
    policy: Policy
    slow: Latency

    def ask(self, mode: str, name: str, *, words: int = 5, stream: bool = False, pace_s: float = 0.0) -> Ask:
        """Make a call of a mode."""
        script = {"words": [" word"] * words, "chunk_delay_s": pace_s}
        return Ask(name, key_of(mode), MODEL, max_tokens=64, stream=stream, extra={"script": script})

    def store_up(self, gateway: Gateway) -> bool:
        """Tell whether a gateway asks its store, by its metrics."""
        return gateway.metrics()["penstock_store_up"] == 1.0


@contextmanager
def rig(folder: Path, *, replicas: int = 2, timeout_ms: int = 45, slow: Latency = SLOW) -> Iterator[Rig]:
    """Start everything. `timeout_ms` is what gateways wait for Redis, `slow` what makes it slow."""
    text = policy_text()
    with ExitStack() as ending:
        (folder / "redis").mkdir(parents=True)
        redis = ending.enter_context(RedisServer(folder / "redis"))
        network = ending.enter_context(FaultProxy(redis.path))
        upstream = ending.enter_context(background(scripted_upstream))
        assert not isinstance(network.place, Path)
        config = CONFIG.format(port=network.place[1], replicas=replicas, upstream=upstream.url, timeout_ms=timeout_ms)
        for number in range(replicas):
            (folder / str(number)).mkdir()
            (folder / str(number) / "policy.yaml").write_text(text)
        running = ending.enter_context(gateways(folder, [config] * replicas))
        policy = compile_policy([Source("policy.yaml", text)], served=(MODEL,))
        yield Rig(redis, network, upstream, running, policy, slow)


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to fail. `breaks`: the store cannot decide meanwhile; `forgets`: what it knew is lost."""

    name: str
    begin: Callable[[Rig], object]
    end: Callable[[Rig], object]
    breaks: bool = True
    forgets: bool = False


def _split(rig: Rig) -> None:
    rig.network.add(Held(), Direction.UP)
    rig.network.add(Held(), Direction.DOWN)
    rig.network.unreachable()


def _silence(rig: Rig) -> None:
    rig.network.add(Held(), Direction.UP)
    rig.network.add(Held(), Direction.DOWN)


def _restart(rig: Rig) -> None:
    rig.redis.kill()
    rig.redis.start()


def _nothing(rig: Rig) -> None:
    """End nothing: the fault was over when it had happened."""


FAULTS = (
    Fault("killed", lambda rig: rig.redis.kill(), lambda rig: rig.redis.start(), forgets=True),
    Fault("frozen", lambda rig: rig.redis.freeze(), lambda rig: rig.redis.thaw()),
    Fault("slow", lambda rig: rig.network.add(rig.slow, Direction.DOWN), lambda rig: rig.network.clear()),
    Fault("partitioned", _split, lambda rig: rig.network.clear()),
    Fault("silent", _silence, lambda rig: rig.network.clear()),
    Fault("refusing", lambda rig: rig.network.down(), lambda rig: rig.network.up()),
    Fault("restarted empty", _restart, _nothing, breaks=False, forgets=True),
    Fault(
        "out of memory",
        lambda rig: rig.redis.ask("CONFIG", "SET", "maxmemory", "1"),
        lambda rig: rig.redis.ask("CONFIG", "SET", "maxmemory", "0"),
    ),
    Fault(
        "read-only",
        lambda rig: rig.redis.ask("REPLICAOF", "127.0.0.1", "1"),
        lambda rig: rig.redis.ask("REPLICAOF", "NO", "ONE"),
    ),
    Fault(
        "replies lost",  # each connection is cut in the middle of some reply
        lambda rig: rig.network.add(LimitData(1500), Direction.DOWN),
        lambda rig: rig.network.clear(),
        breaks=False,
    ),
    Fault("scripts flushed", lambda rig: rig.redis.ask("SCRIPT", "FLUSH"), _nothing, breaks=False),
)
