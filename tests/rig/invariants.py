"""What must hold whatever goes wrong, judged over an event log when all is over.

Each judge takes the history and yields a sentence for each violation; nothing is wrong where none yields any. What
stays uncertain in an honest run is no violation: a caller that left before it heard anything may never have been
seen, and of an answer that broke off the charge lies between what its caller heard and what upstreams wrote.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from tests.rig.event_log import Asked, End, History, Listed, Meddled, Told

CANCELLED = "request_cancelled"


def violations(history: History) -> list[str]:
    """Give everything that is wrong with a history, judged request by request."""
    judges = (answered_once, streams_end, logged_once, told_alike, charged_what_was_produced, crossings)
    return [sentence for judge in judges for sentence in judge(history)]


def answered_once(history: History) -> Iterator[str]:
    """Every request has one outcome at its caller, and one that its caller may have."""
    for name, asked in history.asked.items():
        told = history.told.get(name, [])
        if len(told) != 1:
            yield f"{name}: {len(told)} outcomes at its caller"
        yield from (f"{name}: {each.end}, status {each.status}" for each in told if each.end not in allowed(asked))
    yield from (f"{name}: an outcome of nobody's request" for name in history.told.keys() - history.asked.keys())


def allowed(asked: Asked) -> tuple[End, ...]:
    """Say how a request may end: only who leaves may have left, and only who did not read may be cut off."""
    return (End.WHOLE, *((End.LEFT,) * asked.leaves), *((End.BROKEN,) * asked.may_be_cut))


def streams_end(history: History) -> Iterator[str]:
    """A whole answer of 200 to who wanted a stream ends with its terminal event or with an error event, never both."""
    for name, asked in history.asked.items():
        for told in history.told.get(name, ()):
            ended = told.end is End.WHOLE and told.status == 200 and asked.stream
            if ended and told.done + told.errors != 1:
                yield f"{name}: a stream with {told.done} terminal and {told.errors} error events"
            elif told.done > 1 or told.errors > 1:
                yield f"{name}: {told.done} terminal and {told.errors} error events"


def logged_once(history: History) -> Iterator[str]:
    """Every request has one line in the access log; none or one if its caller left before it heard anything."""
    for name in history.asked:
        lines = len(history.lines.get(name, ()))
        heard = any(told.status for told in history.told.get(name, ()))
        if lines > 1 or (lines == 0 and (heard or name in history.attempted)):
            yield f"{name}: {lines} lines in the access log"
    yield from (f"{name}: a line of nobody's request" for name in history.lines.keys() - history.asked.keys())


def told_alike(history: History) -> Iterator[str]:
    """What a line says of a request is what its caller was told, and who its caller was."""
    for asked, told, line in joined(history):
        if told.status and line["status"] != told.status:
            yield f"{asked.id}: logged {line['status']}, told {told.status}"
        if told.end is End.WHOLE and line["ending"] not in endings(told):
            yield f"{asked.id}: logged {line['ending']}, told {told.status} and {told.errors} error events"
        if line["ending"] != "ok" and "error" not in line:
            yield f"{asked.id}: logged {line['ending']} without an error"
        tenant = line.get("tenant", "")
        if tenant not in ("", asked.tenant) or (tenant == "" and told.status == 200):
            yield f"{asked.id}: logged as of {tenant!r}, asked by {asked.tenant!r}"


def endings(told: Told) -> tuple[str, ...]:
    """Say how an answer that was whole may stand in the log."""
    if told.code == CANCELLED:
        return ("left",)
    if told.status >= 400:
        return ("refused", "failed")
    return ("failed",) if told.errors else ("ok",)


def charged_what_was_produced(history: History) -> Iterator[str]:
    """A charge is the usage that its caller was told, and lies between what was heard and what was written."""
    for asked, told, line in joined(history):
        prompt, completion = line.get("prompt_tokens", 0), line.get("completion_tokens", 0)
        attempts = line.get("attempts", ())
        if line["ending"] == "refused" and (prompt or completion):
            yield f"{asked.id}: refused, and charged {prompt} and {completion}"
        lost = sum(1 for attempt in attempts if attempt.get("lost"))
        if told.completion is not None and not told.completion <= completion <= told.completion + lost:
            yield f"{asked.id}: charged {completion}, told {told.completion}"
        if told.prompt is not None and told.prompt != prompt:
            yield f"{asked.id}: charged a prompt of {prompt}, told {told.prompt}"
        if completion < told.pieces:
            yield f"{asked.id}: charged {completion}, heard {told.pieces}"
        written = sum(attempt.tokens for attempt in history.attempted.get(asked.id, ()))
        if not line.get("engine") and completion > written:
            yield f"{asked.id}: charged {completion}, upstreams wrote {written}"


def crossings(history: History) -> Iterator[str]:
    """Nobody is shown, or ends, what is somebody else's; the same prompt has the same answer, whoever else is there."""
    for told in history.of(Told):
        if told.foreign:
            yield f"{told.id}: was told {', '.join(told.foreign)}"
    for listed in history.of(Listed):
        shown = [history.asked[name] for name in listed.ids if name in history.asked]
        yield from (f"{listed.by}: was shown {asked.id}" for asked in shown if asked.tenant != listed.by)
    for meddled in history.of(Meddled):
        asked = history.asked[meddled.id]
        if asked.tenant != meddled.by and meddled.status != 404:
            yield f"{meddled.by}: was answered {meddled.status} when it tried to end {meddled.id}"


def joined(history: History) -> Iterator[tuple[Asked, Told, dict[str, Any]]]:
    """Give each request that has one outcome and one line, with both."""
    for name, asked in history.asked.items():
        told, lines = history.told.get(name, ()), history.lines.get(name, ())
        if len(told) == len(lines) == 1:
            yield asked, told[0], lines[0]


# What is judged over all requests together.


def charged_in_all(history: History, charged: Mapping[str, tuple[int, int]]) -> Iterator[str]:
    """What an organisation's budgets have lost, input and output, is the sum of what its lines say."""
    due: dict[str, Counter[str]] = {organisation: Counter() for organisation in charged}
    for lines in history.lines.values():
        for line in lines:
            if (organisation := line.get("organisation")) in due:
                due[organisation].update(
                    {"input": line.get("prompt_tokens", 0), "output": line.get("completion_tokens", 0)}
                )
    for organisation, (tokens_in, tokens_out) in charged.items():
        logged = due[organisation]
        if (logged["input"], logged["output"]) != (tokens_in, tokens_out):
            yield f"{organisation}: charged {tokens_in} and {tokens_out}, logged {dict(logged)}"


def engine_produced(history: History, generated: int) -> Iterator[str]:
    """What engines generated, as they count themselves, is what was charged for their models."""
    lines = [line for lines in history.lines.values() for line in lines if line.get("engine")]
    charged = sum(line.get("completion_tokens", 0) for line in lines)
    if charged != generated:
        yield f"engines generated {generated}, {charged} were charged"


def left_behind(before: Mapping[str, float], after: Mapping[str, float]) -> Iterator[str]:
    """At rest everything that was taken has been given back."""
    for name, was in before.items():
        if after[name] != was:
            yield f"{name}: {was:g} before the load, {after[name]:g} at rest after it"


def spilt(canaries: Iterable[str], places: Mapping[str, bytes]) -> Iterator[str]:
    """No prompt, answer, key or token stands where operators read."""
    for canary in canaries:
        yield from (f"{place}: holds {canary}" for place, text in places.items() if canary.encode() in text)


def troubled(said: Sequence[str]) -> Iterator[str]:
    """No exception reached the end of its way unhandled."""
    yield from (f"said: {line}" for line in said if "Traceback" in line or "ERROR" in line or "Error" in line)


def one_answer_each(texts: Mapping[str, Collection[str]]) -> Iterator[str]:
    """The same prompt of the same tenant is answered alike, whatever ran beside it."""
    yield from (f"{len(each)} answers to {prompt}: {sorted(each)}" for prompt, each in texts.items() if len(each) > 1)
