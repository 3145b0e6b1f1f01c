"""Which Redis to ask: one server, the master that sentinels name, or the cluster node that has an organisation's slot.

All keys of an organisation bear its name as hash tag, so in a cluster they lie in one slot, and one script on one node
sees all its limits. Organisations spread over the nodes; one organisation is never spread. Which node a slot is on is
learned from the nodes' own redirections. While a slot is on its way from one node to another, Redis runs no script on
it (ASK, TRYAGAIN): its organisations are without a store until it has arrived, the others are not concerned.
"""

import ssl
from binascii import crc_hqx
from collections.abc import Callable, Sequence
from typing import Protocol

from cache.errors import StoreUnavailable
from cache.redis_address import Address, Door
from cache.redis_connection import ErrorReply, connect
from cache.redis_link import Link, Patience

NUM_SLOTS = 16_384


class Topology(Protocol):
    """Finds the link that an organisation's commands go over."""

    def link(self, tag: str) -> Link:
        """Give the link for a hash tag."""

    def redirect(self, tag: str, error: ErrorReply) -> Link | None:
        """Follow a MOVED; None where there is nothing to follow."""

    def lost(self, tag: str) -> None:
        """Learn that the tag's server did not answer."""

    def links(self) -> list[Link]:
        """Give every link there is."""


class Single:
    """One server, or the master of a set watched by sentinels."""

    def __init__(self, link: Link) -> None:
        self._link = link

    @classmethod
    def at(cls, address: Address, door: Door, patience: Patience, forgot: Callable[[], None]) -> "Single":
        """Stand before one server."""

        async def locate() -> Address:
            return address

        return cls(Link(locate, door, patience, forgot=forgot))

    @classmethod
    def watched(
        cls,
        sentinels: Sequence[Address],
        name: str,
        door: Door,
        patience: Patience,
        forgot: Callable[[], None],
        *,
        sentinel_door: Door | None = None,
    ) -> "Single":
        """Ask the sentinels for the master called `name`, each time a connection is made."""

        theirs = sentinel_door or Door()
        tls = theirs.context()

        async def locate() -> Address:
            for sentinel in sentinels:
                address = await _ask_sentinel(sentinel, name, theirs, patience, tls)
                if address is not None:
                    return address
            raise StoreUnavailable(f"no sentinel knows a master called {name!r}", reason="connect")

        return cls(Link(locate, door, patience, forgot=forgot))

    def link(self, tag: str) -> Link:
        """Give the only link."""
        return self._link

    def redirect(self, tag: str, error: ErrorReply) -> Link | None:
        """Follow nobody."""
        return None

    def lost(self, tag: str) -> None:
        """Do nothing: the link looks for the server itself."""

    def links(self) -> list[Link]:
        """Give the only link."""
        return [self._link]


class Cluster:
    """Nodes by slot, starting from some that are known."""

    def __init__(
        self, seeds: Sequence[Address], door: Door, patience: Patience, forgot: Callable[[], None] | None = None
    ) -> None:
        self._forgot = forgot
        self._door = door
        self._patience = patience
        self._links: dict[Address, Link] = {}
        self._slots: dict[int, Address] = {}
        self._seeds = list(seeds)
        self._next_seed = 0
        for seed in seeds:
            self._at(seed)

    def link(self, tag: str) -> Link:
        """Give the node's link, as far as its slot is known; else any seed's, which will redirect."""
        address = self._slots.get(slot(tag))
        return self._at(address or self._seeds[self._next_seed % len(self._seeds)])

    def redirect(self, tag: str, error: ErrorReply) -> Link | None:
        """Follow `MOVED 3999 host:port` from now on."""
        words = str(error).split()
        if error.word != "MOVED" or len(words) != 3:
            return None
        host, _, port = words[2].rpartition(":")
        address = Address(host or self._seeds[0].host, int(port))
        self._slots[slot(tag)] = address
        return self._at(address)

    def lost(self, tag: str) -> None:
        """Ask another node next time: a replica may have been promoted."""
        self._slots.pop(slot(tag), None)
        self._next_seed += 1

    def links(self) -> list[Link]:
        """Give the links to all nodes met so far."""
        return list(self._links.values())

    def _at(self, address: Address) -> Link:
        link = self._links.get(address)
        if link is None:

            async def locate() -> Address:
                return address

            link = self._links[address] = Link(locate, self._door, self._patience, forgot=self._forgot, by_run=True)
        return link


def slot(tag: str) -> int:
    """Give the cluster slot of every key that bears this hash tag (CRC16, as XMODEM has it)."""
    return crc_hqx(tag.encode(), 0) % NUM_SLOTS


async def _ask_sentinel(
    sentinel: Address, name: str, door: Door, patience: Patience, tls: ssl.SSLContext | None
) -> Address | None:
    try:
        connection = await connect(sentinel, door, connect_s=patience.connect_s, patience_s=patience.reply_s, tls=tls)
    except StoreUnavailable:
        return None
    try:
        reply = await connection.call("SENTINEL", "get-master-addr-by-name", name)
    except (StoreUnavailable, ErrorReply):
        return None
    finally:
        connection.close()
    match reply:
        case [bytes() as host, bytes() as port]:
            return Address(host.decode(), int(port))
    return None
