"""The HTTP/1.1 client that requests are dispatched with.

Nothing here is made per request but the answer itself: no task, no timer, no header objects. A request that never
changes but for its body is prepared once.

When a kept connection turns out to be closed there are two cases. If the close was seen before writing, the
connection is skipped and nothing was sent. If it is seen after writing, the upstream may have closed for idleness
just then, or it may have taken the request, begun to generate, and died: that cannot be told apart, and a generation
must not run twice unasked. So it is resent only if the caller says that the request is `idempotent`; others get
`ConnectionReset` and decide.
"""

import re
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from time import monotonic  # the event loop's clock; asking for the loop costs a system call up to Python 3.11

from gateway.http.errors import ConnectionReset
from gateway.http.head import field_lines
from gateway.http.origin import Origin
from gateway.http.pool import Pool, PoolLimits
from gateway.http.response import Response, Timeouts
from gateway.http.tls import client_context

TARGET = re.compile(rb"[\x21-\x7e]+")
METHOD = re.compile(rb"[A-Z]+")


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A request's head but for what depends on its body. Belongs to the client that prepared it."""

    head: bytes
    head_only: bool
    bodied: bool  # announces its length even if empty


class Client:
    """Requests to one origin over kept connections."""

    def __init__(
        self, origin: Origin, limits: PoolLimits | None = None, *, ssl_context: ssl.SSLContext | None = None
    ) -> None:
        if origin.scheme == "https" and ssl_context is None:
            ssl_context = client_context()
        self.origin = origin
        self.pool = Pool(origin, limits or PoolLimits(), ssl_context if origin.scheme == "https" else None)

    def prepare(self, method: bytes, target: bytes, headers: Iterable[tuple[bytes, bytes]]) -> PreparedRequest:
        """Check and lay out a request's head.

        Host and Accept-Encoding (identity) are added unless given; Content-Length always is; Connection and
        Transfer-Encoding are ours alone. Raises `ValueError`.
        """
        if METHOD.fullmatch(method) is None or TARGET.fullmatch(target) is None:
            raise ValueError(f"not a request line: {method!r} {target!r}")
        headers = [(name.lower(), value) for name, value in headers]
        names = {name for name, _ in headers}
        ours = names & {b"content-length", b"transfer-encoding", b"connection"}
        if ours:
            raise ValueError(f"set by the client itself: {sorted(ours)}")
        if b"accept-encoding" not in names:
            headers.insert(0, (b"accept-encoding", b"identity"))
        if b"host" not in names:
            headers.insert(0, (b"host", self.origin.authority.encode("ascii")))
        head = b"%b %b HTTP/1.1\r\n%b" % (method, target, field_lines(headers))
        return PreparedRequest(head, method == b"HEAD", method in (b"POST", b"PUT", b"PATCH"))

    async def send(
        self,
        request: PreparedRequest,
        body: bytes = b"",
        *,
        headers: Iterable[tuple[bytes, bytes]] = (),
        timeouts: Timeouts,
        deadline: float = inf,
        idempotent: bool = False,
    ) -> Response:
        """Send a prepared request with its body and what `headers` this one has besides; give the answer at its head.

        `deadline` is in loop seconds and holds until the answer's end. Raises `TransportError`. The answer is to be
        closed.
        """
        pool = self.pool
        more = field_lines(headers) if headers else b""
        if body or request.bodied:
            written = b"%b%bcontent-length: %d\r\n\r\n%b" % (request.head, more, len(body), body)
        else:
            written = b"%b%b\r\n" % (request.head, more)
        while True:
            connection = pool.reuse(monotonic())
            if connection is None:
                connection = await pool.acquire(timeouts.connect_s, deadline)
            response = connection.begin(written, head_only=request.head_only, timeouts=timeouts, deadline=deadline)
            try:
                while not response.begun():
                    await response.news()
            except ConnectionReset as error:
                if error.reused and (idempotent or not error.sent):
                    continue  # each round uses up a kept connection, so it ends
                raise
            except BaseException:
                response.close()
                raise
            return response

    async def request(
        self,
        method: bytes,
        target: bytes,
        headers: Iterable[tuple[bytes, bytes]] = (),
        body: bytes = b"",
        *,
        timeouts: Timeouts,
        deadline: float = inf,
        idempotent: bool = False,
    ) -> Response:
        """Prepare and send in one, for what is not repeated."""
        prepared = self.prepare(method, target, headers)
        return await self.send(prepared, body, timeouts=timeouts, deadline=deadline, idempotent=idempotent)

    async def aclose(self) -> None:
        """Close every connection; running answers fail."""
        await self.pool.aclose()
