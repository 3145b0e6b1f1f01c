"""What the server hands to the application, and what the application answers with."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

import msgspec

HeaderList = Iterable[tuple[bytes, bytes]]


class HttpRequest(msgspec.Struct):
    """One whole request. Header names are lower-case; repeated ones are joined by a comma, or refused where unsafe.

    `path` is the percent-decoded path as routed on, never rebuilt from `Host`; `query` is as received.
    """

    method: str
    path: str
    query: str
    headers: dict[bytes, bytes]
    body: bytes
    peer: str
    received: float  # loop.time() when the last byte arrived


class Responder(Protocol):
    """The write side of one exchange. The server implements it; exactly one answer may be sent.

    When the client leaves (FIN or RST), the task that runs the application is cancelled.
    """

    started: bool

    def respond(self, status: int, headers: HeaderList, body: bytes) -> None:
        """Send a whole answer with its Content-Length."""
        ...

    def start(self, status: int, headers: HeaderList) -> None:
        """Send the head of an answer whose length is not known (chunked)."""
        ...

    def write(self, data: bytes) -> None:
        """Send one piece of the body at once. Call `drain` when `congested`."""
        ...

    @property
    def congested(self) -> bool:
        """Whether the client reads more slowly than we write."""
        ...

    async def drain(self) -> None:
        """Wait until the client has caught up. A client slower than the slow-reader bound is cut off (cancels us)."""
        ...

    def finish(self) -> None:
        """End a started answer."""
        ...

    def abort(self) -> None:
        """Close the connection without ending the answer, so that the client sees it broken."""
        ...


Application = Callable[[HttpRequest, Responder], Awaitable[None]]
