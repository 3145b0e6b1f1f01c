"""Short notes that gateways leave for each other in Redis, each forgotten by itself after a while.

For what is good to know and nothing hangs on: a note that is lost or late is none, and nothing is sent twice.
"""

from collections.abc import Sequence

from cache.errors import StoreMisused
from cache.redis_connection import ErrorReply, Reply, Word, translate
from cache.redis_topology import Topology

TAG = "penstock-notes"  # all lie together, so that they are read at once


class RedisBoard:
    """Where notes hang, by name."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology

    async def post(self, name: str, text: str, ttl_s: float) -> None:
        """Leave a note in the place of the one before. Raises `StoreError`."""
        await self._call("SET", key_of(name), text, "PX", int(ttl_s * 1000))

    async def read(self, names: Sequence[str]) -> list[str | None]:
        """Give what each note says, None where there is none. Raises `StoreError`."""
        reply = await self._call("MGET", *map(key_of, names))
        if not isinstance(reply, list) or len(reply) != len(names):
            raise StoreMisused(f"notes were answered with {type(reply).__name__}", reason="refused")
        return [each.decode("utf-8", "replace") if isinstance(each, bytes) else None for each in reply]

    async def _call(self, *words: Word) -> Reply:
        try:
            return await self._topology.link(TAG).call(*words)
        except ErrorReply as error:
            self._topology.redirect(TAG, error)  # the next one goes there
            raise translate(error) from error


def key_of(name: str) -> str:
    """Give a note's key."""
    return f"penstock:{{{TAG}}}:{name}"
