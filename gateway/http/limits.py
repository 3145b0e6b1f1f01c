"""What one client may cost: sizes and clocks of the listening side."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Bounds that hold before anybody is authenticated. Each crossing has its own answer, named beside it."""

    connections: int = 10_000  # 503, then closed
    target_bytes: int = 8 * 1024  # 414
    head_bytes: int = 32 * 1024  # 431
    headers: int = 100  # 431
    body_bytes: int = 32 * 1024 * 1024  # 413
    pipelined_bytes: int = 64 * 1024  # input held while an answer is under way; then reading stops
    write_buffer_bytes: int = 64 * 1024  # output held for a slow reader, and as much in the kernel: then `congested`

    head_s: float = 10.0  # from connecting, or from a request's first byte, to its whole head: 408
    idle_s: float = 75.0  # between two requests of a kept connection: closed
    body_s: float = 20.0  # for a body, and one second more for every `body_bytes_per_s` received: 408
    body_bytes_per_s: int = 1_000
    stall_s: float = 30.0  # without one byte accepted by a reader we wait for: cut off
    linger_s: float = 2.0  # input still swallowed after a refusal, so that its answer is not lost to a reset
