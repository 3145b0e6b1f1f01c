"""How a gateway's process is: memory, descriptors, threads, and what its own gauges say is under way.

Memory is judged over the second half of a run: a line is fitted through it, and what the line rises is compared with
a bound, and with what it would rise by chance as far as the samples scatter. What the process once took from the system
it keeps, so that its size climbs in steps towards its worst moment; what its objects hold is the finer measure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import NamedTuple

import psutil

MB = 1 << 20
UNDER_WAY = (
    "requests_in_flight",
    "requests_waiting",
    "upstream_in_flight",
    "engine_sequences_running",
    "engine_sequences_waiting",
    "engine_waiting_prefill_tokens",
)


class Vitals(NamedTuple):
    """One look at it. `pieces` are of memory, held by Python's objects: those of what is done are given back at once,
    while `rss` keeps what it once took. `connections` are callers', `tasks` the event loop's, `held_blocks` KV's.
    """

    at_s: float
    rss: int
    pieces: int
    descriptors: int
    threads: int
    tasks: int
    in_flight: int
    connections: int
    held_blocks: int


def look(pid: int, metrics: Mapping[str, float], at_s: float) -> Vitals:
    """Look at a worker; `metrics` are the samples that it has just told."""
    process = psutil.Process(pid)
    with process.oneshot():
        return Vitals(
            at_s,
            process.memory_info().rss,
            round(total(metrics, "python_blocks")),
            process.num_fds(),
            process.num_threads(),
            round(total(metrics, "event_loop_tasks")),
            round(total(metrics, "requests_in_flight")),
            round(total(metrics, "connections")),
            held_blocks(metrics),
        )


def at_rest(vitals: Vitals, metrics: Mapping[str, float]) -> dict[str, float]:
    """Give what must be the same whenever nothing is under way."""
    gauges = {name: total(metrics, name) for name in UNDER_WAY}
    return {**gauges, "descriptors": vitals.descriptors, "tasks": vitals.tasks, "held_blocks": vitals.held_blocks}


def held_blocks(metrics: Mapping[str, float]) -> int:
    """Count the KV blocks that some sequence holds."""
    free = total(metrics, "engine_blocks_free") + total(metrics, "engine_blocks_cached")
    return round(total(metrics, "engine_blocks") - free)


def total(metrics: Mapping[str, float], name: str) -> float:
    """Sum a metric over its labels."""
    name = f"penstock_{name}"
    return sum(value for sample, value in metrics.items() if sample.partition("{")[0] == name)


@dataclass(frozen=True, slots=True)
class Trend:
    """A fitted line: how much it rises over the time looked at, and how far samples lie from it."""

    rise: float
    seconds: float
    noise: float  # standard deviation about the line
    samples: int

    @property
    def per_hour(self) -> float:
        return self.rise / self.seconds * 3600 if self.seconds else 0.0

    def flat(self, allowed: float) -> bool:
        """Tell whether it rises no more than is allowed, and than the scatter explains."""
        return self.rise <= allowed + 3 * self.noise * sqrt(12 / max(1, self.samples))


def trend(samples: Sequence[tuple[float, float]]) -> Trend:
    """Fit a line through samples of time and value, by least squares."""
    count = len(samples)
    if count < 3:
        return Trend(0.0, 0.0, 0.0, count)
    middle_t = sum(at for at, _ in samples) / count
    middle = sum(value for _, value in samples) / count
    spread = sum((at - middle_t) ** 2 for at, _ in samples)
    slope = sum((at - middle_t) * (value - middle) for at, value in samples) / spread
    rests = [value - middle - slope * (at - middle_t) for at, value in samples]
    seconds = samples[-1][0] - samples[0][0]
    return Trend(slope * seconds, seconds, sqrt(sum(rest * rest for rest in rests) / (count - 2)), count)


def second_half(samples: Sequence[Vitals], name: str) -> Trend:
    """Fit one of the vitals over the second half of a run."""
    half = samples[-1].at_s / 2
    return trend([(each.at_s, getattr(each, name)) for each in samples if each.at_s >= half])
