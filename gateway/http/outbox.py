"""Gather what is written during one pass of the event loop, and write it at the pass's end.

uvloop writes at once. Between two writes then lies the work on a whole request, and a peer on the same machine (an
application beside its sidecar, a model server behind it) falls asleep each time and is woken each time: on a virtual
machine that costs the writer more than the write. Written in a row, most writes find their peer awake, and the code
and data of writing warm; pieces of one answer become one write. A busy pass takes less than a millisecond, and an idle
loop goes on to the next at once.
"""

import asyncio
from typing import Protocol


class Sender(Protocol):
    """Somebody with bytes to write."""

    def flush(self) -> None:
        """Write them, if there still are any."""
        ...


class Outbox:
    """Whoever wrote during this pass."""

    __slots__ = ("_loop", "_senders")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._senders: list[Sender] = []

    def add(self, sender: Sender) -> None:
        """Have the sender flushed at the end of this pass."""
        if not self._senders:
            self._loop.call_soon(self._flush)
        self._senders.append(sender)

    def _flush(self) -> None:
        senders, self._senders = self._senders, []
        for sender in senders:
            sender.flush()
