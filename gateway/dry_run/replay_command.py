"""`penstock replay LOG --policy NEW.yaml`: tabulates what another policy would have made of recorded calls."""

import asyncio
import sys
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from gateway.configuration.policy_files import PolicyPaths
from gateway.dry_run.replay import Replay
from gateway.dry_run.replay_log import SHOWN, LogReader, by_arrival
from gateway.dry_run.table import table
from gateway.quotas.error import amount
from policies.document import DocumentError
from policies.holder import Measure
from policies.policy import Policy

WRONG = 2


class HitTold(msgspec.Struct):
    """What a limit or cap did to a tenant's calls: `what` is `refused`, `cut` or `shadow`."""

    tenant: str
    what: str
    by: str
    times: int
    first: datetime
    last: datetime


class TotalTold(msgspec.Struct):
    """A tenant's calls under the new policy."""

    tenant: str
    calls: int
    refused: int
    cut: int
    refused_then: int
    let_in: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost_nano_usd: int | None


class Broken(msgspec.Struct):
    """A line that could not be read."""

    line: int
    why: str


class Report(msgspec.Struct):
    """What came of a replay. `others` are lines of no tenant's call, `unknown` calls of those whom nobody knows now."""

    policy: str
    lines: int
    others: int
    broken: int
    broken_lines: list[Broken]
    first: datetime | None
    last: datetime | None
    tenants: list[TotalTold]
    hits: list[HitTold]
    unknown: dict[str, int]


def replay(log: str, policies: Sequence[str], *, as_json: bool) -> int:
    """Print what a policy would have made of a log (`-`: stdin); 0, or 2 where one of them cannot be read."""
    try:
        paths = PolicyPaths(tuple(map(Path, policies)), pepper=None)
        policy = paths.compile(paths.read())
    except DocumentError as error:
        print(error, file=sys.stderr)
        return WRONG
    try:
        with nullcontext(sys.stdin.buffer) if log == "-" else open(log, "rb") as lines:
            report = replayed(lines, policy)
    except OSError as error:
        print(f"penstock: cannot read {log}: {error.strerror}", file=sys.stderr)
        return WRONG
    print(msgspec.json.format(msgspec.json.encode(report), indent=2).decode() if as_json else describe(report))
    return 0


def replayed(lines: Iterable[bytes], policy: Policy) -> Report:
    """Replay a log's lines."""
    reader, run = LogReader(), Replay(policy)
    asyncio.run(run.run(by_arrival(reader.entries(lines))))
    return Report(
        policy.version,
        reader.lines,
        reader.others,
        reader.num_broken,
        [Broken(line, why) for line, why in reader.broken],
        None if run.first is None else moment(run.first),
        None if run.first is None else moment(run.last),
        [
            TotalTold(
                total.tenant,
                total.calls,
                total.refused,
                total.cut,
                total.refused_then,
                total.let_in,
                total.prompt,
                total.cached,
                total.completion,
                total.cost,
            )
            for _, total in sorted(run.totals.items())
        ],
        [
            HitTold(hit.tenant, hit.what, hit.by, hit.times, moment(hit.first), moment(hit.last))
            for _, hit in sorted(run.hits.items())
        ],
        dict(sorted(run.unknown.items())),
    )


def moment(us: int) -> datetime:
    """Give a time of the log."""
    return datetime.fromtimestamp(us / 1e6, UTC)


def describe(report: Report) -> str:
    """Write a report for people."""
    over = "no calls" if report.first is None else f"{_second(report.first)} to {_second(report.last or report.first)}"
    parts = [f"{report.lines} lines, {over}, under policy {report.policy}"]
    if report.tenants:
        head = ("tenant", "calls", "refused", "cut", "refused then", "let in now", "prompt", "completion", "cost")
        parts.append(table(head, [_row(total) for total in report.tenants]))
    if report.hits:
        columns = ("tenant", "what", "by", "times", "first", "last")
        rows = [
            (hit.tenant, hit.what, hit.by, str(hit.times), _second(hit.first), _second(hit.last)) for hit in report.hits
        ]
        parts.append(table(columns, rows, left=3))
    elif report.tenants:
        parts.append("nobody would have been refused or cut short")
    if report.unknown:
        named = list(report.unknown.items())
        told = ", ".join(f"{tenant} ({times})" for tenant, times in named[:SHOWN])
        told += f" and {len(named) - SHOWN} others" if len(named) > SHOWN else ""
        parts.append(f"left out, because this policy does not know them: {told}")
    if report.broken:
        wrong = "\n".join(f"  line {broken.line}: {broken.why}" for broken in report.broken_lines)
        parts.append(f"left out, because they cannot be read: {report.broken} lines\n{wrong}")
    return "\n\n".join(parts)


def _row(total: TotalTold) -> tuple[str, ...]:
    cost = "-" if total.cost_nano_usd is None else "$" + amount(total.cost_nano_usd, Measure.COST)
    numbers = (total.calls, total.refused, total.cut, total.refused_then, total.let_in)
    tokens = (total.prompt_tokens, total.completion_tokens)
    return total.tenant, *map(str, numbers), *map(str, tokens), cost


def _second(time: datetime) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
