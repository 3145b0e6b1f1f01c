"""What the gateway costs, beside nginx as a bare reverse proxy and LiteLLM's proxy, before one and the same upstream.

    python -m bench.gateway [--rounds 5] [--seconds 3] [--only penstock,nginx] [--save]
    make bench-gateway [SAVE=1]

The gateway under test has one core to itself, the load generator and the mock upstream share another. Rounds are
interleaved, each target in turn within a round, so that a noisy machine is noisy for all; the figures are medians of
the rounds, with their range. Four ways of asking, all with a body of 200 bytes:

- saturation: 32 connections, each asking again as soon as it is answered: requests/s and CPU per request;
- streams: 128 at a time, 64 chunks each, one every 2 ms: chunks/s (64,000 are offered), and each chunk's delay;
- 200 and 1,000 requests/s at random times: latency, and what it has above the upstream's own.

A server so slow that not one answer of a saturated measurement is whole by its end is measured over a longer time,
which is then told: LiteLLM's proxy needs 3 to 5 s for its first 128 streams.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from bench.instruments import ROOT, Shape, compile_rig, run_load, write_body
from bench.targets import KEY, Target, Unavailable, litellm, nginx, penstock, plain_proxy, upstream

STARTERS: dict[str, Callable[[int], AbstractContextManager[Target]]] = {
    "nginx": nginx,
    "penstock": penstock,
    "plain": plain_proxy,
    "litellm": litellm,
}
Figures = dict[str, list[float]]
LONGEST_S = 16.0  # that the slow are measured for


def main() -> None:
    """Measure, print, and save if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--only", default=",".join(STARTERS), help="targets, separated by commas")
    parser.add_argument("--save", action="store_true", help="write bench/results/<machine>/gateway.json")
    chosen = parser.parse_args()
    compile_rig()
    shapes = [
        Shape("saturation", write_body("whole", size=200), 32),
        Shape("streams", write_body("stream", size=200, stream=True, interval_ms=2), 128, stream=True),
        Shape("at 200/s", write_body("whole", size=200), 64, rate=200.0),
        Shape("at 1000/s", write_body("whole", size=200), 64, rate=1000.0),
    ]
    with ExitStack() as stack:
        targets = list(start_all(chosen.only.split(","), stack))
        figures: dict[str, Figures] = {target.name: {} for target in targets}
        for round_number in range(chosen.rounds):
            for shape in shapes:
                for target in targets:
                    say(f"round {round_number + 1} of {chosen.rounds}: {shape.name}, {target.name}")
                    measure(target, shape, chosen.seconds, round_number, figures[target.name])
    add_differences(figures)
    for target in targets:
        figures[target.name]["idle RSS, MB"] = [target.idle_rss_mb]
        figures[target.name]["start, s"] = [target.start_s]
    say("")
    print_table(figures)
    print_goals(figures)
    if chosen.save:
        save(figures, chosen)


def start_all(names: list[str], stack: ExitStack) -> Iterator[Target]:
    """Start the upstream and the gateways before it; say which cannot be had."""
    mock = stack.enter_context(upstream())
    mock.idle_rss_mb = mock.rss_mb()
    yield mock
    for name in names:
        try:
            target = stack.enter_context(STARTERS[name](mock.port))
        except Unavailable as error:
            say("")
            print(f"without {name}: {error}")
            continue
        time.sleep(0.5)
        target.idle_rss_mb = target.rss_mb()
        yield target


def measure(target: Target, shape: Shape, seconds: float, seed: int, figures: Figures) -> None:
    """Run one measurement and file its figures."""

    def file(name: str, value: float) -> None:
        figures.setdefault(name, []).append(value)

    cpu_s = target.cpu_s()
    result = run_load(target.port, KEY, shape, seconds, seed)
    cpu_s = target.cpu_s() - cpu_s
    if shape.rate is None and not result["answered"] + result["failed"] and seconds < LONGEST_S:
        measure(target, shape, LONGEST_S, seed, figures)
        file(f"{shape.name} measured for, s", LONGEST_S)
        return
    if result["failed"]:
        file("failed", result["failed"])
    if shape.stream:
        file("chunks/s", result["events"] / result["seconds"])
        for quantile in ("p50", "p99"):
            file(f"chunk delay {quantile}, ms", result["event_delay_us"].get(quantile, float("nan")) / 1e3)
    elif shape.rate is None:
        file("requests/s", result["answered"] / result["seconds"])
        file("CPU µs/request", cpu_s / max(1, result["total"]) * 1e6)
    elif result["answered"] < 0.9 * shape.rate * result["seconds"]:
        file(f"overloaded {shape.name}", 1.0)
    else:
        for quantile in ("p50", "p99"):
            file(f"{quantile} {shape.name}, ms", result["latency_us"][quantile] / 1e3)


def add_differences(figures: dict[str, Figures]) -> None:
    """Add what each round's latency had above the upstream's own of the same round."""
    direct = figures["direct"]
    for name, own in figures.items():
        for key in [key for key in own if key.startswith("p") and name != "direct"]:
            pairs = zip(own[key], direct[key], strict=False)
            own[f"added {key}"] = [value - base for value, base in pairs]


def print_table(figures: dict[str, Figures]) -> None:
    """Print medians with their ranges, a row a figure."""
    rows: list[str] = list(dict.fromkeys(key for own in figures.values() for key in own))
    print(f"{'':22}" + "".join(f"{name:>26}" for name in figures))
    for row in rows:
        cells = [spread(own[row]) if row in own else "–" for own in figures.values()]
        print(f"{row:22}" + "".join(f"{cell:>26}" for cell in cells))


def spread(values: list[float]) -> str:
    """Give a median and, of several, the range."""
    middle = number(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({number(min(values))}–{number(max(values))})"


def number(value: float) -> str:
    """Give three digits, or all of a large number."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def print_goals(figures: dict[str, Figures]) -> None:
    """Say which goals hold."""
    own, plain, peer = (figures.get(name) for name in ("penstock", "plain proxy", "nginx"))
    if own is None:
        return
    middle = {key: statistics.median(values) for key, values in own.items()}
    goals = [
        ("added p50 at 1,000/s ≤ 0.4 ms", middle.get("added p50 at 1000/s, ms", 1e9), 0.4),
        ("added p99 at 1,000/s ≤ 2 ms", middle.get("added p99 at 1000/s, ms", 1e9), 2.0),
        ("idle RSS ≤ 80 MB", middle["idle RSS, MB"], 80.0),
        ("start ≤ 1 s", middle["start, s"], 1.0),
    ]
    print()
    if peer is not None:
        for key, least in (("requests/s", 0.3), ("chunks/s", 0.9)):
            ratio = middle[key] / statistics.median(peer[key])
            print(f"{'holds' if ratio >= least else 'FAILS'}: ≥ {least} × nginx's {key}: {ratio:.3f}")
        if plain is not None:
            ratio = statistics.median(plain["requests/s"]) / statistics.median(peer["requests/s"])
            told = "holds" if ratio >= 0.3 else "FAILS"
            print(f"{told}: ≥ 0.3 × nginx's requests/s, with a plain proxy's stages alone: {ratio:.3f}")
    for name, value, most in goals:
        print(f"{'holds' if value <= most else 'FAILS'}: {name}: {number(value)}")


def save(figures: dict[str, Figures], chosen: argparse.Namespace) -> None:
    """Write the figures of each round beside those of other machines."""
    folder = ROOT / "bench" / "results" / machine()
    folder.mkdir(parents=True, exist_ok=True)
    told: dict[str, Any] = {
        "command": f"python -m bench.gateway --rounds {chosen.rounds} --seconds {chosen.seconds:g}",
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "figures": {
            name: {key: [round(v, 4) for v in values] for key, values in own.items()} for name, own in figures.items()
        },
    }
    path = folder / "gateway.json"
    path.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    print(f"\nwritten to {path.relative_to(ROOT)}")


def machine() -> str:
    """Name the processor and its number of cores, as a folder."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            words = line.partition(":")[2].replace("(R)", "").replace("(TM)", "").lower().split()
            return "-".join(
                [*(word for word in words if word not in ("cpu", "@", "processor")), f"{os.cpu_count()}-cores"]
            )
    return f"{platform.machine()}-{os.cpu_count()}-cores"


def say(what: str) -> None:
    """Show progress on a terminal, on one line."""
    if sys.stderr.isatty():
        print(f"\r\033[K{what}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
