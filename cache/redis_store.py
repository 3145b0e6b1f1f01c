"""The store in Redis: each step is one script, on Redis' own clock, atomic with everything else that Redis does.

A script is called by its digest and sent whole when the server does not know it (it was restarted, or its scripts were
flushed). Sending a step twice is harmless, so a command whose connection broke is sent once more at once; nothing else
is retried here. What a server may not do with our keys is evict them: `complaint` tells whether it would.
"""

import hashlib
import re
import secrets
from collections.abc import Callable
from importlib.resources import files

import msgspec

from cache.errors import StoreMisused, StoreUnavailable
from cache.redis_connection import ErrorReply, Reply, Word, translate
from cache.redis_topology import Topology
from policies.reservation import RETENTION_US, Answer, Step, Verdict

PLAIN = re.compile(r"[A-Za-z0-9._@:-]{1,64}")
MAX_HOPS = 3
PROBE = "penstock-probe"


class Script:
    """A Lua script and the digest that Redis knows it by."""

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.digest = hashlib.sha1(text, usedforsecurity=False).hexdigest()

    @classmethod
    def read(cls, name: str) -> "Script":
        """Read `cache/lua/<name>.lua`."""
        return cls(files("cache").joinpath("lua", f"{name}.lua").read_bytes())

    def replaced(self, before: str, after: str) -> "Script":
        """Give the same script with other words in one place."""
        return Script(self.text.replace(before.encode(), after.encode()))


class RedisStore:
    """Steps, as scripts. `forgot` callbacks hear when the server came back with another memory."""

    def __init__(self, topology: Callable[[Callable[[], None]], Topology]) -> None:
        self.script = Script.read("step")
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(tuple[int, int, int, int, int, list[int], list[int]]).decode
        self._decode_rehearsal = msgspec.msgpack.Decoder(
            tuple[int, int, int, int, int, list[int], list[int], list[int]]
        ).decode
        self._tags: dict[str, str] = {}
        self._forgot: list[Callable[[], None]] = []
        self._probe = f"probe-{secrets.token_hex(8)}"  # nobody else's, or its steps would be taken for old ones
        self._probes = 0
        self.topology = topology(self._has_forgotten)

    async def open(self) -> None:
        """Connect, as far as possible now. Raises `StoreUnavailable`."""
        for link in self.topology.links():
            await link.open()

    async def aclose(self) -> None:
        """Hang up."""
        for link in self.topology.links():
            await link.aclose()

    def on_forgotten(self, callback: Callable[[], None]) -> None:
        """Call back whenever the server turns out to have lost its memory."""
        self._forgot.append(callback)

    def clock(self, organisation: str) -> int:
        """Tell the clock of the organisation's server, never ahead of it."""
        return self.topology.link(self._tag(organisation)).clock()

    async def apply(self, organisation: str, step: Step, now: int | None = None) -> Answer:
        """Take one step. Raises `StoreError`."""
        tag = self._tag(organisation)
        prefix = f"penstock:{{{tag}}}:"
        claims = []
        keys = [f"{prefix}leases", f"{prefix}r:{step.id}"]
        for claim in step.claims:
            limit = claim.limit
            keys.append(f"{prefix}l:{limit.key}")
            terms = (int(limit.kind), limit.capacity, limit.unit, limit.rate, limit.tick_us, limit.shadow)
            claims.append((*terms, claim.used, claim.base, claim.per))
        head = (prefix, step.id, step.seq, now or 0, step.lease_us, step.not_after)
        blob = self._encode((*head, step.want, step.least, step.force, RETENTION_US, claims, step.rehearsal))
        reply = await self._run(tag, len(keys), *keys, blob)
        if not isinstance(reply, bytes):
            raise StoreMisused(f"the script answered {reply!r}", reason="refused")
        waits: list[int] = []
        if step.rehearsal:
            verdict, at, granted, limit_index, wait_us, shadowed, flat, waits = self._decode_rehearsal(reply)
        else:
            verdict, at, granted, limit_index, wait_us, shadowed, flat = self._decode(reply)
        if now is None:
            self.topology.link(tag).learn(at)
        standings = tuple(zip(flat[::2], flat[1::2], strict=True))
        return Answer(Verdict(verdict), at, granted, limit_index, wait_us, tuple(shadowed), standings, tuple(waits))

    async def probe(self) -> None:
        """Take a step that claims nothing, with everything that a step needs. Raises `StoreError`."""
        self._probes += 1
        await self.apply(PROBE, Step(self._probe, self._probes, (), lease_us=60_000_000, force=True))

    async def complaint(self) -> str | None:
        """Say what is wrong with the server's settings for keeping quotas, if anything. Raises `StoreError`."""
        for link in self.topology.links():
            try:
                reply = await link.call("INFO", "memory")
            except ErrorReply as error:
                raise translate(error) from error
            found = re.search(rb"^maxmemory_policy:(\S+)", reply, re.MULTILINE) if isinstance(reply, bytes) else None
            policy = found[1].decode() if found else "unknown"
            if policy != "noeviction":
                return (
                    f"maxmemory-policy is {policy!r}: this Redis may evict quota keys when its memory is full; "
                    "set it to 'noeviction', or keep quotas in another server than evictable caches"
                )
        return None

    async def _run(self, tag: str, num_keys: int, *words: Word) -> Reply:
        link = self.topology.link(tag)
        whole, hops, broken = False, 0, False
        while True:
            command: tuple[Word, Word] = ("EVAL", self.script.text) if whole else ("EVALSHA", self.script.digest)
            try:
                return await link.call(*command, num_keys, *words)
            except ErrorReply as error:
                if error.word == "NOSCRIPT" and not whole:
                    whole = True
                    continue
                target = self.topology.redirect(tag, error)
                hops += 1
                if target is None or hops > MAX_HOPS:
                    raise translate(error) from error
                link = target
            except StoreUnavailable as error:
                self.topology.lost(tag)
                if error.reason != "lost" or broken:
                    raise
                link, broken = self.topology.link(tag), True

    def _tag(self, organisation: str) -> str:
        """Give the hash tag of an organisation: its name, or a digest where the name would break the keys' form."""
        tag = self._tags.get(organisation)
        if tag is None:
            plain = PLAIN.fullmatch(organisation) is not None
            tag = organisation if plain else hashlib.sha256(organisation.encode()).hexdigest()[:32]
            self._tags[organisation] = tag
        return tag

    def _has_forgotten(self) -> None:
        for callback in self._forgot:
            callback()
