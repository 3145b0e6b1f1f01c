"""What the upstreams of a soak do to each attempt: mostly answer, else fail in one of the ways that upstreams have.

An answer begins with the canary and the marker that its prompt holds, so that whoever hears it can tell whose it is.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from types import MappingProxyType
from typing import Any

from tests.rig.event_log import Attempted, End, EventLog
from tests.rig.soak_wish import BULKY, MARKED
from tests.rig.upstream import Seen, Upstream

CALM = 0.75  # the share of attempts that nothing happens to
BULK = "x" * (160 << 10)  # so that an answer of them is more than sockets hold for who does not read
GARBAGE = (
    "<html>no</html>",
    "data: {broken\n\n",
    "data: \xff\xfe\n\n",
    'data: {"choices": [{"index": 0, "delta": {"content": "a"}}]',
    "\x00\x01\x02",
    "data:" * 3000,
)
# What happens only to streams: a whole answer is written as if nothing were.
ONLY_STREAMS = frozenset(
    (
        "trickle",
        "slow events",
        "error event",
        "no terminal event",
        "no end at all",
        "lingering end",
        "reset within",
        "closed within",
        "hang within",
    )
)
Make = Callable[[Random], dict[str, Any]]
FAULTS: Mapping[str, Make] = MappingProxyType(
    {
        "status 500": lambda rng: {"status": 500},
        "status 400": lambda rng: {"status": 400},
        "status 503": lambda rng: {"status": 503},
        "429, Retry-After in ms": lambda rng: {"status": 429, "headers": {"retry-after-ms": str(rng.randrange(400))}},
        "429, Retry-After in s": lambda rng: {"status": 429, "headers": {"retry-after": str(rng.randrange(40))}},
        "429": lambda rng: {"status": 429},
        "reset before the head": lambda rng: {"reset_at": "accept"},
        "reset after the head": lambda rng: {"reset_at": "head"},
        "reset within": lambda rng: {"reset_at": rng.randrange(8)},
        "closed before the head": lambda rng: {"close_at": "accept"},
        "closed within": lambda rng: {"close_at": rng.randrange(8)},
        "hang before the head": lambda rng: {"hang_at": "accept"},
        "hang after the head": lambda rng: {"hang_at": "head"},
        "hang within": lambda rng: {"hang_at": rng.randrange(8)},
        "trickle": lambda rng: {"cut_bytes": rng.randrange(1, 8), "chunk_delay_s": 0.02},
        "slow head": lambda rng: {"head_delay_s": rng.uniform(0.3, 2.5)},
        "slow events": lambda rng: {"chunk_delay_s": rng.uniform(0.05, 0.4)},
        "error event": lambda rng: {"error_at": rng.randrange(6)},
        "no terminal event": lambda rng: {"done": False},
        "no end at all": lambda rng: {"done": False, "finish": False},
        "lingering end": lambda rng: {"linger": True},
        "malformed": lambda rng: {"pieces": rng.choices(GARBAGE, k=rng.randrange(1, 4))},
        "HTML": lambda rng: {"body": "<html>", "content_type": "text/html", "status": rng.choice((200, 502))},
    }
)


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt that may be under way."""

    seen: Seen
    id: str
    script: Mapping[str, Any]
    fault: str

    def tokens(self) -> int:
        """Count the tokens that were written, or may have been."""
        fields, script = self.seen.fields, self.script
        if script.get("pieces") is not None:
            return self.seen.written
        if script.get("status", 200) != 200 or script.get("body") is not None:
            return 0
        words = min(len(script["words"]), fields.get("max_tokens") or len(script["words"]))
        if not fields.get("stream"):
            return words if self.fault in ONLY_STREAMS or self.fault in ("", "slow head") else 0
        role = self.seen.path.endswith("/chat/completions") and not script.get("cut_bytes")
        return min(words, max(0, self.seen.written - role))


class Moody:
    """Gives an upstream's attempts their scripts, and notes what became of them. `outage` is what befalls all."""

    def __init__(self, name: str, server: Upstream, rng: Random) -> None:
        self.outage: str | None = None
        self.calm = True
        self._name = name
        self._server = server
        self._rng = rng
        self._open: list[Attempt] = []
        server.plan = self._plan

    @property
    def num_open(self) -> int:
        """How many attempts have not ended."""
        return sum(attempt.seen.ending is None for attempt in self._open)

    def note(self, log: EventLog) -> None:
        """Write down the attempts that have ended, and forget them."""
        for attempt in self._open:
            if attempt.seen.ending is not None:
                end = End(attempt.seen.ending)
                log.add(Attempted(attempt.id, self._name, end, attempt.tokens(), attempt.fault))
        self._open = [attempt for attempt in self._open if attempt.seen.ending is None]
        self._server.seen = [attempt.seen for attempt in self._open]

    def _plan(self, number: int) -> dict[str, Any]:
        seen = self._server.seen[number]
        marks = MARKED.findall(json.dumps(seen.fields))
        [mark] = [each for each in marks if each.startswith("mark-")]
        script, fault = self._drawn(seen.fields, marks)
        self._open.append(Attempt(seen, mark.removeprefix("mark-"), script, fault))
        return script

    def _drawn(self, fields: Mapping[str, Any], marks: Sequence[str]) -> tuple[dict[str, Any], str]:
        rng = self._rng
        words = [f"{each} " for each in marks] + [f"w{index} " for index in range(rng.randrange(30))]
        if fields.get("max_tokens") == BULKY:
            words = [*words[:2], *[BULK] * (BULKY - 2)]
        script: dict[str, Any] = {"words": words, "obey": True, "chunk_delay_s": rng.choice((0.0, 0.0, 0.002, 0.01))}
        fault = self.outage or ("" if self.calm or rng.random() < CALM else rng.choice(tuple(FAULTS)))
        return (script | FAULTS[fault](rng), fault) if fault else (script, "")
