"""A soak: random faults at every place at once under callers who do as they like, and what came of it.

Everything is drawn from one seed, but for what the machine decides: when who comes to run. Before the load and after it
the gateway is looked at while nothing is under way; all that was told of the time between is judged by the invariants.
"""

import asyncio
import re
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.rig.event_log import Attempted, History, Logged, Told
from tests.rig.gateways import Gateway
from tests.rig.invariants import (
    charged_in_all,
    engine_produced,
    left_behind,
    one_answer_each,
    spilt,
    troubled,
    violations,
)
from tests.rig.soak_caller import ask_plainly
from tests.rig.soak_site import BUDGET, UPSTREAM_KEY, Soak, site
from tests.rig.soak_wish import ENGINE, JUDGES, TENANTS, canary_of, key_of
from tests.rig.vitals import MB, Trend, Vitals, second_half, total


@dataclass(slots=True)
class Findings:
    """What came of a soak."""

    history: History
    vitals: list[Vitals]
    wrong: list[str]
    rest_s: float
    seconds: float
    generated: int

    @property
    def memory(self) -> Trend:
        """How the process grew while under load."""
        return second_half(self.vitals[:-1], "rss")

    @property
    def pieces(self) -> Trend:
        """How what its objects hold did."""
        return second_half(self.vitals[:-1], "pieces")

    @property
    def num_requests(self) -> int:
        return len(self.history.of(Told))

    def summary(self) -> str:
        """Give what is worth printing."""
        first, last, memory, pieces = self.vitals[0], self.vitals[-1], self.memory, self.pieces
        told = self.history.of(Told)
        outcomes = Counter(f"{each.end} {each.status or ''}{' error event' * each.errors}".strip() for each in told)
        faults = self.history.faults() + Counter(
            f"attempt: {each.fault}" for each in self.history.of(Attempted) if each.fault
        )
        lines = [
            f"{self.seconds:.0f} s, {len(told)} requests, {len(self.history.of(Attempted))} attempts at upstreams, "
            f"{self.generated} tokens by the engine, {faults.total()} faults of {len(faults)} kinds",
            "requests by outcome: " + listed(outcomes),
            "faults by kind: " + listed(faults),
            f"at rest {self.rest_s:.2f} s after the last caller; before load and at rest after it:",
            *(f"  {name:<12} {getattr(first, name):>8} {getattr(last, name):>8}" for name in Vitals._fields[3:]),
            f"memory {first.rss / MB:.1f} MB at first, {self.vitals[-2].rss / MB:.1f} MB at last; over the second half "
            f"it rose {memory.rise / MB:+.2f} MB ({memory.per_hour / MB:+.1f} MB/h), noise {memory.noise / MB:.2f} MB",
            f"pieces of memory {first.pieces} at first, {last.pieces} at last; over the second half they rose by "
            f"{pieces.rise:+.0f}, {2 * pieces.rise / max(1, len(told)):+.2f} a request, noise {pieces.noise:.0f}",
        ]
        return "\n".join(lines)


def listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in counts.most_common())


async def run_soak(soak: Soak, folder: Path) -> Findings:
    """Run one, and judge what came of it."""
    async with site(soak, folder) as it:
        if soak.warmed:
            await it.warm()
        await it.load(min(20.0, 2 + soak.seconds / 20), "calm", asyncio.Event())
        first, before, _ = await it.rest(None)
        it.begun, first = time.monotonic(), first._replace(at_s=0.0)
        vitals, stop = [first], asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(it.weather(stop))
            tasks.create_task(it.watch(vitals, stop))
            texts = await it.load(soak.seconds, "load", stop)
        seconds = time.monotonic() - it.begun
        last, after, rest_s = await it.rest(before)
        vitals.append(last)
        it.note()
        metrics = await asyncio.to_thread(it.gateway.metrics)
        exposed = "\n".join(metrics).encode()
        generated = round(total(metrics, "engine_generated_tokens_total"))
        charged = {} if soak.shared else {name: await judged(it.gateway, name) for name in JUDGES}
        status = await asyncio.to_thread(it.gateway.stop)
        for line in it.gateway.access_log():
            if line.get("key") not in JUDGES.values() and not aside_of_calls(line["path"]):
                it.log.add(Logged(line))
        history = it.log.read()
        said = it.gateway.said
    places = {"the access log": (folder / "0" / "access.log").read_bytes(), "metrics": exposed}
    places["standard error"] = "\n".join(said).encode()
    wrong = [
        *violations(history),
        *charged_in_all(history, charged),
        *engine_produced(history, generated),
        *left_behind(before, after),
        *spilt(secrets(), places),
        *troubled(said),
        *one_answer_each(texts),
    ]
    if status or metrics["penstock_worker_deaths"]:
        wrong.append(f"{metrics['penstock_worker_deaths']:g} workers died, the gateway ended with {status}")
    return Findings(history, vitals, wrong, rest_s, seconds, generated)


def aside_of_calls(path: str) -> bool:
    """Tell what is logged beside calls: looks at metrics and at requests under way."""
    return path == "/metrics" or path.startswith("/v1/requests")


def secrets() -> list[str]:
    """Give what may stand in no log: what prompts and answers hold, and keys."""
    keys = [key_of(bearer).partition(".")[2] for bearer in (*TENANTS.values(), *JUDGES.values())]
    return [*map(canary_of, TENANTS), "mark-", UPSTREAM_KEY, *keys]


async def judged(gateway: Gateway, organisation: str) -> tuple[int, int]:
    """Ask a call, and conclude from its headers what the budgets had lost before it: input and output."""
    bearer = JUDGES[organisation]
    body = b'{"model": "%b", "prompt": "Hello", "max_tokens": 1}' % ENGINE.encode()
    headers = {"authorization": f"Bearer {key_of(bearer)}"}
    status, head, _ = await ask_plainly(gateway.port, "POST", "/v1/completions", headers, body)
    assert status == 200, head
    left = {key: int(free) for key, free in re.findall(r'"([^"]+)";r=(\d+)', head.decode("latin-1"))}
    own = re.search(rb"(?i)x-penstock-input-tokens: (\d+)", head)
    assert own is not None
    used_in = BUDGET - left[f"{organisation} input_tokens/month"] - int(own[1])
    return used_in, BUDGET - left[f"{organisation} output_tokens/month"] - 1
