"""Threads for what would hold the event loop: long prompts on their way to token ids.

The tokenizers library lets go of the interpreter while it encodes, so a thread keeps a long prompt off the loop for
nearly all of its time. Measured, 200 kB prompts one after another beside a loop that ought to be punctual: see
`python -m bench.tokens`. A process of its own would cost 60 MB and the way there and back, and gain what is left: the
making of lists of ids, 10 ns each.
"""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from gateway.errors import Overloaded

MAX_WAITING = 256
MAX_WAIT_S = 30.0

ResultT = TypeVar("ResultT")


class CountingThreads:
    """Half as many threads as there are cores, begun when first needed. Belongs to one event loop.

    `max_waiting` is how many may wait or run, `max_wait_s` for how long; beyond that they are refused. Who is cancelled
    while it waits is forgotten.
    """

    def __init__(self, max_waiting: int = MAX_WAITING, max_wait_s: float = MAX_WAIT_S) -> None:
        threads = min(4, max(1, (os.cpu_count() or 1) // 2))
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="counting")
        self._max_waiting = max_waiting
        self._max_wait_s = max_wait_s
        self._waiting = 0

    async def run(self, work: Callable[[], ResultT]) -> ResultT:
        """Do work beside the loop. Raises `Overloaded`, and what the work raises."""
        if self._waiting >= self._max_waiting:
            raise refusal()
        self._waiting += 1
        try:
            async with asyncio.timeout(self._max_wait_s):
                return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        except TimeoutError:
            raise refusal() from None
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """End the threads behind what they do; what waits is cancelled."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def refusal() -> Overloaded:
    """Make the answer to whom there is no room for."""
    message = "The gateway is overloaded: too many long prompts are being counted."
    return Overloaded(message, code="counting_full", headers={"retry-after": "1"})
