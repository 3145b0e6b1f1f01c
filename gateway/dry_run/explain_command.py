"""`penstock explain FILE`: has a running gateway explain a request, and tells it so that people can read it."""

import os
import sys
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from gateway.dry_run.explanation import ErrorBody, Explanation, Limited
from gateway.dry_run.table import table
from gateway.quotas.error import amount, go_duration
from policies.holder import Measure
from policies.secret import Secret

WITHIN_S = 60.0
MAX_BYTES = 64 << 20


class CannotExplain(Exception):
    """There is nothing to tell; one clear line."""


def explain(file: str, url: str, key: str | None, *, as_json: bool) -> int:
    """Print what would become of the request in a file (`-`: stdin); 0 where it would be admitted, 1 where not."""
    try:
        answer = ask(read(file), url, None if key is None else Secret.from_text(key).resolve(os.environ))
        told = msgspec.json.decode(answer, type=Explanation)
    except (CannotExplain, ValueError) as error:
        print(f"penstock: {error}", file=sys.stderr)
        return 2
    print(msgspec.json.format(answer, indent=2).decode() if as_json else describe(told))
    return 0 if told.verdict.admitted else 1


def read(file: str) -> bytes:
    """Give the request. Raises `CannotExplain`."""
    try:
        return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise CannotExplain(f"cannot read {file}: {error.strerror}") from None


def ask(body: bytes, url: str, key: str | None) -> bytes:
    """Send a request to be explained. Raises `CannotExplain`."""
    if urlsplit(url).scheme not in ("http", "https"):
        raise CannotExplain(f"got {url!r}, expected the URL of a gateway, such as http://127.0.0.1:8080")
    headers = {"content-type": "application/json"} | ({} if key is None else {"authorization": f"Bearer {key}"})
    request = urllib.request.Request(f"{url.rstrip('/')}/v1/explain", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=WITHIN_S) as response:
            answer: bytes = response.read(MAX_BYTES)
            return answer
    except urllib.error.HTTPError as error:
        raise CannotExplain(f"{url} answered {error.code}: {_message(error.read(MAX_BYTES))}") from None
    except (OSError, ValueError) as error:
        raise CannotExplain(f"cannot ask {url}: {getattr(error, 'reason', error)}") from None


def describe(told: Explanation) -> str:
    """Write an explanation for people."""
    parts = [_verdict(told), _facts(told)]
    if told.limits:
        head = ("limit", "capacity", "free", "takes", "at most", "remains", "reset", "fits")
        parts.append(table(head, [_row(limit) for limit in told.limits]))
    parts.append("\n".join(f"{name}: {value}" for name, value in told.headers.items()))
    return "\n\n".join(parts)


def _verdict(told: Explanation) -> str:
    verdict = told.verdict
    if verdict.admitted:
        return "admitted" + (f", once there is room (at most {verdict.max_wait_s:g} s)" if verdict.waits else "")
    message = "" if verdict.error is None else verdict.error.error.message
    return f"refused with {verdict.status}: {message}"


def _facts(told: Explanation) -> str:
    caller, model, request = told.caller, told.model, told.request
    facts = [
        ("caller", f"{caller.tenant}, key {caller.key or '-'}, policy {told.policy or '-'}"),
        ("request", f"{request.path}, {request.choices} choice(s)" + (", streamed" if request.stream else "")),
    ]
    if model is not None:
        where = "runs here" if model.engine else "runs elsewhere"
        facts.append(("model", f"{model.name}, {where}{'' if model.allowed else ', not allowed'}"))
    if told.input is not None:
        exactly = told.input.counted if told.input.exact else f"an estimate, by {told.input.counted}"
        cap = "" if told.input.max_input is None else f", allowed {told.input.max_input}"
        facts.append(("input", f"{told.input.tokens} tokens ({exactly}){cap}"))
    if told.output is not None:
        asked = "nothing" if request.max_tokens is None else str(request.max_tokens)
        each = "unbounded" if told.output.each is None else f"{told.output.each} tokens"
        caps = f"default {told.output.default or '-'}, cap {told.output.cap or '-'} ({told.output.over})"
        facts.append(("output", f"{each} a choice; asked {asked}, {caps}"))
    if told.reservation is not None:
        most = told.reservation.output_at_most
        cut = "" if told.reservation.cut_by is None else f", cut by {told.reservation.cut_by}"
        further = "unbounded" if most is None else f"at most {told.reservation.input + most}"
        facts.append(("reserves", f"{told.reservation.tokens} tokens at its start, {further}{cut}"))
    if told.cost is not None:
        facts.append(("cost", f"${told.cost.input_usd} for the input, at most ${told.cost.at_most_usd or '?'}"))
    if told.priority is not None:
        facts.append(("priority", told.priority.value))
    for candidate in told.route:
        room = "room" if candidate.room is None else f"room for {candidate.room}"
        facts.append(("upstream", f"{candidate.upstream}: {candidate.refuses or room}"))
    if told.degraded:
        facts.append(("store", "down: these are the shares of one process"))
    return "\n".join(f"{name:<10}{fact}" for name, fact in facts)


def _row(limit: Limited) -> tuple[str, ...]:
    def told(number: int | None) -> str:
        if number is None:
            return "-"
        sign = "-" if number < 0 else ""
        return sign + ("$" if limit.measure is Measure.COST else "") + amount(abs(number), limit.measure)

    fits = "-" if limit.fits is None else "yes" if limit.fits else _never_or(limit.wait_ms)
    return (
        limit.limit + (" (shadow)" if limit.shadow else ""),
        *map(told, (limit.capacity, limit.free, limit.takes, limit.takes_at_most, limit.remains)),
        "-" if limit.resets_ms is None else go_duration(limit.resets_ms * 1_000),
        fits,
    )


def _never_or(wait_ms: int | None) -> str:
    return "never" if wait_ms is None else f"in {go_duration(wait_ms * 1_000)}"


def _message(body: bytes) -> str:
    """Give the sentence of an error."""
    try:
        return msgspec.json.decode(body, type=ErrorBody).error.message
    except msgspec.DecodeError:
        return body[:200].decode("utf-8", "replace")
