"""The store of the limits in this process: opened at the start, watched, announced when it fails and when it is back.

Without a Redis in the configuration the limits are counted in this process' memory. A Redis that does not answer at the
start keeps nobody from starting: accounts are then served as their policies declare, until it is found. A Redis whose
settings let it evict quotas is another matter: with `eviction: refuse` the start is refused, and one that is found so
only later is complained of.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping

from cache.embedded import EmbeddedStore
from cache.errors import StoreError
from cache.guard import Health
from cache.ledger import Ledger
from cache.redis_address import Door, parse_url
from cache.redis_board import RedisBoard
from cache.redis_link import Patience
from cache.redis_store import RedisStore
from cache.redis_topology import Cluster, Single, Topology
from gateway.configuration.config import StoreConfig
from gateway.quotas.metrics import StoreState
from policies.secret import Secret

# How late a reservation may reach the store: as late as somebody waits for it, and a machine's hiccup more.
LEAST_PATIENCE_S, MOST_PATIENCE_S = 0.5, 5.0

Say = Callable[[str], None]


class UnfitStore(Exception):
    """The store answers, and its settings make it unfit to keep quotas; one clear line."""


class QuotaStore:
    """The ledger over the configured store, between `open` and `aclose`."""

    def __init__(
        self,
        config: StoreConfig,
        secrets: Mapping[Secret, str],
        *,
        say: Say,
        ca_file: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._say = say
        self._clock = clock
        self._redis = redis_of(config, secrets, ca_file)
        self.ledger = Ledger(
            EmbeddedStore() if self._redis is None else self._redis,
            replicas=config.replicas,
            lease_s=config.lease_s,
            patience_s=min(max(LEAST_PATIENCE_S, config.timeout_ms / 1e3), MOST_PATIENCE_S),
        )
        self._companions: list[asyncio.Task[None]] = []
        self._forgotten = 0
        self._down_since: float | None = None
        self._degraded_s = 0.0
        self.ledger.on_change(self._changed)
        if self._redis is not None:
            self._redis.on_forgotten(self._has_forgotten)

    @property
    def board(self) -> RedisBoard | None:
        """Where replicas leave each other notes; None where no store is shared."""
        return None if self._redis is None else RedisBoard(self._redis.topology)

    def accompany(self, work: Coroutine[None, None, None]) -> None:
        """Do something beside the store, for as long as it is open."""
        self._companions.append(asyncio.get_running_loop().create_task(work))

    @property
    def where(self) -> str:
        """Name the store for people, without credentials."""
        return ", ".join(self._config.urls) or "memory"

    def state(self) -> StoreState:
        """Tell how the store stands, for metrics."""
        health = self.ledger.health
        since = self._down_since
        now_s = 0.0 if since is None else self._clock() - since
        return StoreState(health.up, health.reason, self._degraded_s + now_s, self._forgotten)

    async def open(self) -> None:
        """Look for the store, and begin to keep leases. Raises `UnfitStore`."""
        await self.ledger.__aenter__()
        if self._redis is None:
            return
        await self.ledger.look_around()
        if self.ledger.health.up:
            complaint = await self._complaint()
            if complaint is not None and self._config.eviction == "refuse":
                raise UnfitStore(f"store {self.where}: {complaint}; or set `eviction: warn`")
            self._complain(complaint)

    async def aclose(self) -> None:
        """Settle what is left to settle, as far as the store answers, and hang up."""
        for task in self._companions:
            task.cancel()
        await asyncio.gather(*self._companions, return_exceptions=True)
        await self.ledger.__aexit__(None, None, None)
        if self._redis is not None:
            await self._redis.aclose()

    def _changed(self, health: Health) -> None:
        now = self._clock()
        if not health.up:
            self._down_since = now
            self._say(
                f"the store of the limits ({self.where}) is down: {health.reason}; callers are refused, or held to the "
                f"share of one replica of {self._config.replicas}, as their policies say"
            )
        elif self._down_since is not None:
            seconds = now - self._down_since
            self._degraded_s += seconds
            self._down_since = None
            self._say(f"the store of the limits ({self.where}) is back after {seconds:.1f} s")
            self.ledger.start(self._look_again())

    def _has_forgotten(self) -> None:
        self._forgotten += 1
        self._say(f"the store of the limits ({self.where}) has lost its memory; it is told anew what runs")
        self.ledger.renew_all()

    async def _look_again(self) -> None:
        """Another server may have come back than the one that went."""
        self._complain(await self._complaint())

    async def _complaint(self) -> str | None:
        assert self._redis is not None
        try:
            return await self._redis.complaint()
        except StoreError as error:
            return f"its settings cannot be read ({error})"

    def _complain(self, complaint: str | None) -> None:
        if complaint is not None:
            self._say(f"the store of the limits ({self.where}): {complaint}")


def redis_of(config: StoreConfig, secrets: Mapping[Secret, str], ca_file: str = "") -> RedisStore | None:
    """Make the Redis store that the configuration asks for, not yet connected; None where it asks for none."""
    if not config.urls:
        return None
    parsed = [parse_url(url) for url in config.urls]
    addresses = [address for address, _ in parsed]
    patience = Patience(config.connect_timeout_ms / 1e3, config.timeout_ms / 1e3)
    password = "" if config.password is None else secrets[config.password]
    tls, database = parsed[0][1].tls, parsed[0][1].database
    door = Door(config.username, password, database, tls, ca_file)

    def topology(forgot: Callable[[], None]) -> Topology:
        if config.cluster:
            return Cluster(addresses, door, patience, forgot)
        if config.sentinels:
            theirs = "" if config.sentinel_password is None else secrets[config.sentinel_password]
            sentinel_door = Door(password=theirs, tls=tls, ca_file=ca_file)
            return Single.watched(addresses, config.master, door, patience, forgot, sentinel_door=sentinel_door)
        return Single.at(addresses[0], door, patience, forgot)

    return RedisStore(topology)
