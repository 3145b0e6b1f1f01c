"""The weather of a soak: at each place spells of something bad, drawn from a seed, with calm between them.

Places are the networks to upstreams and to the store, the upstreams themselves, the policy files. A spell always ends;
when the weather is told to stop it ends early, and everything is well again.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from types import MappingProxyType

from tests.rig.event_log import EventLog, Faulted
from tests.rig.fault_proxy import FaultProxy
from tests.rig.redis_server import RedisServer
from tests.rig.soak_upstream import Moody
from tests.rig.toxics import Bandwidth, Direction, Held, Latency, LimitData, ResetPeer, Slicer, Timeout, Toxic
from tests.rig.upstream import Upstream

Act = Callable[[], Awaitable[None]]
Draw = Callable[[Random], Toxic]
NETWORK: Mapping[str, Draw] = MappingProxyType(
    {
        "latency": lambda rng: Latency(rng.uniform(10, 400), rng.uniform(0, 100)),
        "bandwidth": lambda rng: Bandwidth(rng.uniform(0.5, 50)),
        "slicer": lambda rng: Slicer(rng.randrange(1, 30), 0, rng.randrange(0, 2000)),
        "limited data": lambda rng: LimitData(rng.randrange(1, 3000)),
        "reset": lambda rng: ResetPeer(rng.uniform(0, 300)),
        "blackhole": lambda rng: Timeout(0.0),
        "blackhole, then closed": lambda rng: Timeout(rng.uniform(50, 1000)),
        "held back": lambda rng: Held(),
    }
)
OUTAGES = ("status 503", "429, Retry-After in s", "429, Retry-After in ms", "hang before the head", "slow head")


@dataclass(frozen=True, slots=True)
class Spell:
    """Something bad: how it begins and how it ends. What is over at once has no end."""

    kind: str
    begin: Act
    end: Act | None = None


Cast = Callable[[Random], Spell]


class Place:
    """Where there is weather: each spell is drawn by its name. Calls to fault proxies wait, so a thread makes them."""

    def __init__(self, name: str, spells: Mapping[str, Cast]) -> None:
        self.name = name
        self.spells = spells

    async def weather(self, rng: Random, stop: asyncio.Event, log: EventLog, calm_s: float) -> None:
        """Have spells until told to stop, with calm of that length between them on average."""
        while not await over(stop, rng.uniform(0, 2 * calm_s)):
            kind = rng.choice(tuple(self.spells))
            spell, seconds = self.spells[kind](rng), rng.uniform(0.2, 2.5)
            log.add(Faulted(f"{self.name}: {spell.kind}"))
            await spell.begin()
            if spell.end is not None:
                await over(stop, seconds)
                await spell.end()


async def over(stop: asyncio.Event, seconds: float) -> bool:
    """Wait so long or until told to stop; tell whether it was."""
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
    return stop.is_set()


def network(name: str, proxy: FaultProxy) -> Place:
    """The network through a proxy."""

    def toxic(kind: str, rng: Random) -> Spell:
        thing = NETWORK[kind](rng)
        direction = rng.choice((Direction.UP, Direction.DOWN))
        toxicity = rng.choice((1.0, 0.5))

        def plant() -> None:
            proxy.add(thing, direction, toxicity=toxicity)

        return Spell(f"{kind} {direction}", aside(plant), aside(proxy.clear))

    spells: dict[str, Cast] = {kind: partial(toxic, kind) for kind in NETWORK}
    spells["refused"] = lambda rng: Spell("refused", aside(proxy.down), aside(proxy.up))
    spells["cut"] = lambda rng: Spell("cut", aside(proxy.cut))
    if not isinstance(proxy.place, Path):
        spells["unreachable"] = lambda rng: Spell("unreachable", aside(proxy.unreachable), aside(proxy.up))
    return Place(name, spells)


def upstream(name: str, server: Upstream, moody: Moody) -> Place:
    """An upstream as a whole: it is out of order, or is started anew."""

    async def fall(outage: str | None) -> None:
        moody.outage = outage

    def outage(kind: str, rng: Random) -> Spell:
        return Spell(f"all {kind}", partial(fall, kind), partial(fall, None))

    spells: dict[str, Cast] = {kind: partial(outage, kind) for kind in OUTAGES}
    spells["restart"] = lambda rng: Spell("restart", server.stop, server.start)
    return Place(name, spells)


def policies(path: Path, versions: Sequence[str], ask: Callable[[], None]) -> Place:
    """The policy file: replaced by another version of it or by what is none; `ask` has it read at once."""

    def write(text: str) -> None:
        beside = path.with_suffix(".new")
        beside.write_text(text)
        beside.rename(path)
        ask()

    def reload(text: str, rng: Random) -> Spell:
        return Spell("reload", aside(partial(write, text)))

    spells: dict[str, Cast] = {f"version {number}": partial(reload, text) for number, text in enumerate(versions)}
    mistake, well = partial(write, versions[0] + "\n  nonsense: ["), partial(write, versions[0])
    spells["broken"] = lambda rng: Spell("broken", aside(mistake), aside(well))
    return Place("policies", spells)


def store(server: RedisServer) -> Place:
    """A Redis that stands still for a while, or loses its scripts."""

    def forget() -> None:
        server.ask("SCRIPT", "FLUSH")

    return Place(
        "store",
        {
            "frozen": lambda rng: Spell("frozen", aside(server.freeze), aside(server.thaw)),
            "no scripts": lambda rng: Spell("scripts lost", aside(forget)),
        },
    )


def aside(act: Callable[[], None]) -> Act:
    """Do something that waits, on a thread."""

    async def do() -> None:
        await asyncio.to_thread(act)

    return do
