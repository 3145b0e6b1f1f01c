"""How an attempt ended, decided once and read by breaker, budget, limits and telemetry.

Three endings, as in Netflix's concurrency-limits: an ignored one says nothing about the upstream's health.
"""

from enum import Enum


class Outcome(Enum):
    """A whole answer; the caller's fault, or the caller left; the upstream failed or stalled."""

    SUCCESS = "success"
    IGNORED = "ignored"
    DROPPED = "dropped"
