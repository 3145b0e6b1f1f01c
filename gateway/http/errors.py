"""Everything that can go wrong between us and an upstream, in one tree.

TransportError            `sent`: whether any of the request's bytes were handed to the network
├── ConnectFailed         refused, unreachable, unresolvable, TLS not agreed on; never sent
│   └── ConnectTimeout    the connect clock ran out
├── PoolTimeout           no connection came free in time; never sent
├── FirstChunkTimeout     the answer's first body bytes did not come in time
├── BetweenTimeout        they came, and then no more
├── DeadlinePassed        the caller's own deadline
├── ConnectionReset       closed or reset before the answer was whole
├── BadResponse           not HTTP/1.1, or not the framing that it announced
└── ResponseTooLarge      a body larger than the reader was prepared to hold

Statuses are not errors here: whoever sent the request judges them.
"""


class TransportError(Exception):
    """The root."""

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


class ConnectFailed(TransportError):
    """No connection could be made."""

    def __init__(self, message: str) -> None:
        super().__init__(message, sent=False)


class ConnectTimeout(ConnectFailed):
    """No connection was made in time."""


class PoolTimeout(TransportError):
    """All connections stayed busy."""

    def __init__(self, message: str) -> None:
        super().__init__(message, sent=False)


class FirstChunkTimeout(TransportError):
    """Nothing of the answer's body came in time."""


class BetweenTimeout(TransportError):
    """The answer stopped coming."""


class DeadlinePassed(TransportError):
    """The caller's deadline passed, whatever the upstream was doing."""


class ConnectionReset(TransportError):
    """The upstream closed before its answer was whole.

    `reused`: on a kept connection and before any byte, so perhaps it was only just closing it for idleness; whether
    it had begun to work on the request cannot be known.
    """

    def __init__(self, message: str, *, sent: bool, reused: bool = False) -> None:
        super().__init__(message, sent=sent)
        self.reused = reused


class BadResponse(TransportError):
    """The upstream's bytes cannot be understood."""


class ResponseTooLarge(TransportError):
    """The body is larger than the limit given to `read`."""
