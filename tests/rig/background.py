"""An asynchronous context on an event loop and a thread of its own, for those who are not on a loop."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def background(context: Callable[[], AbstractAsyncContextManager[T]]) -> Iterator[T]:
    """Enter the context over there; give what it gives. Leaving leaves it, there too."""
    loop = asyncio.new_event_loop()
    entered = threading.Event()
    given: list[T] = []
    leave = asyncio.Event()

    async def stay() -> None:
        try:
            async with context() as thing:
                given.append(thing)
                entered.set()
                await leave.wait()
        finally:
            entered.set()

    thread = threading.Thread(target=lambda: loop.run_until_complete(stay()), name="background", daemon=True)
    thread.start()
    entered.wait()
    try:
        yield given[0]
    finally:
        loop.call_soon_threadsafe(leave.set)
        thread.join()
        loop.close()
