"""The judge of soaks finds whatever is wrong, each kind of it, and accuses nobody of what cannot be known."""

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.rig.event_log import (
    Asked,
    Attempted,
    End,
    EventLog,
    Faulted,
    Happening,
    History,
    Listed,
    Logged,
    Meddled,
    Told,
)
from tests.rig.invariants import (
    charged_in_all,
    engine_produced,
    left_behind,
    one_answer_each,
    spilt,
    troubled,
    violations,
)
from tests.rig.soak_caller import Hearing
from tests.rig.soak_wish import ENGINE, TENANTS, canary_of, draw
from tests.rig.vitals import trend

WEB, LAB = "acme/web", "umbra/lab"


def line(name: str, status: int = 200, ending: str = "ok", tokens: int = 3, **fields: Any) -> Logged:
    told = {"id": name, "status": status, "ending": ending, "tenant": WEB, "organisation": "acme"}
    usage = {"prompt_tokens": 7, "completion_tokens": tokens} if tokens else {}
    return Logged(told | usage | ({} if ending == "ok" else {"error": "x"}) | fields)


def streamed(name: str, *, leaves: bool = False, may_be_cut: bool = False) -> Asked:
    return Asked(name, WEB, "pair", True, leaves, may_be_cut)


# Histories in which all is well: what is uncertain in them is nobody's fault.
WELL: dict[str, list[Happening]] = {
    "a stream": [
        streamed("a"),
        Told("a", End.WHOLE, 200, done=1, pieces=3, prompt=7, completion=3),
        Attempted("a", "left", End.WHOLE, 3),
        line("a"),
    ],
    "a stream that broke off": [
        streamed("a"),
        Told("a", End.WHOLE, 200, errors=1, pieces=2),
        Attempted("a", "left", End.BROKEN, 4),
        line("a", ending="failed"),
    ],
    "a refusal": [Asked("a", WEB, "pair"), Told("a", End.WHOLE, 429), line("a", 429, "refused", 0)],
    "a retry": [
        Asked("a", WEB, "pair"),
        Told("a", End.WHOLE, 200, pieces=0, prompt=7, completion=3),
        Attempted("a", "left", End.BROKEN, 0),
        Attempted("a", "right", End.WHOLE, 3),
        line("a"),
    ],
    "a hedge whose loser had begun": [
        streamed("a"),
        Told("a", End.WHOLE, 200, done=1, pieces=3, prompt=7, completion=3),
        Attempted("a", "left", End.LEFT, 1),
        Attempted("a", "right", End.WHOLE, 3),
        line("a", tokens=4, attempts=[{"upstream": "left", "lost": True}, {"upstream": "right"}]),
    ],
    "left before the first byte, and never seen": [streamed("a", leaves=True), Told("a", End.LEFT)],
    "left before the first byte, and seen": [
        streamed("a", leaves=True),
        Told("a", End.LEFT),
        Attempted("a", "left", End.LEFT, 2),
        line("a", 499, "left", 1),
    ],
    "left when all had come": [
        streamed("a", leaves=True),
        Told("a", End.LEFT, 200, pieces=2),
        Attempted("a", "left", End.WHOLE, 3),
        line("a"),
    ],
    "read too slowly": [
        streamed("a", may_be_cut=True),
        Told("a", End.BROKEN, 200, pieces=1),
        Attempted("a", "left", End.LEFT, 9),
        line("a", ending="left", tokens=5),
    ],
    "cancelled": [
        Asked("a", WEB, "tiny"),
        Meddled("a", WEB, 200),
        Listed(WEB, ("a",)),
        Told("a", End.WHOLE, 499, code="request_cancelled"),
        line("a", 499, "left", 2, engine=True),
    ],
    "a cancellation by another tenant": [
        streamed("a"),
        Meddled("a", LAB, 404),
        Listed(LAB, ()),
        Told("a", End.WHOLE, 200, done=1),
        line("a", tokens=0),
    ],
    "a stranger": [Asked("a", ""), Told("a", End.WHOLE, 401), line("a", 401, "refused", 0, tenant="")],
}


@pytest.mark.parametrize("case", WELL)
def test_an_honest_run_is_not_accused(case: str) -> None:
    assert violations(History(WELL[case])) == []


def changed(case: str, kind: type, **fields: Any) -> list[Happening]:
    """A history in which the events of one kind say something else."""
    return [
        type(event)(**{name: getattr(event, name) for name in event.__struct_fields__} | fields)
        if isinstance(event, kind)
        else event
        for event in WELL[case]
    ]


def without(case: str, kind: type) -> list[Happening]:
    return [event for event in WELL[case] if not isinstance(event, kind)]


def relined(case: str, **fields: Any) -> list[Happening]:
    return [Logged(event.line | fields) if isinstance(event, Logged) else event for event in WELL[case]]


PLANTED: dict[str, tuple[list[Happening], str]] = {
    "no outcome": (without("a refusal", Told), "0 outcomes"),
    "two outcomes": ([*WELL["a refusal"], Told("a", End.WHOLE, 200)], "2 outcomes"),
    "an outcome of nobody's request": ([Told("b", End.WHOLE, 200)], "nobody's request"),
    "no answer": (changed("a refusal", Told, end=End.UNHEARD, status=0), "unheard"),
    "a hanging answer": (changed("a stream", Told, end=End.HUNG), "hung"),
    "an answer cut off for a caller who reads": (changed("a stream", Told, end=End.BROKEN), "broken"),
    "a caller said to have left who did not": (changed("a stream", Told, end=End.LEFT), "left"),
    "a stream without an end": (changed("a stream", Told, done=0), "0 terminal and 0 error events"),
    "a stream with two ends": (changed("a stream", Told, errors=1), "1 terminal and 1 error events"),
    "a terminal event twice, to one who left": (changed("left when all had come", Told, done=2), "2 terminal"),
    "no line": (without("a refusal", Logged), "0 lines"),
    "no line of one who was seen upstream": (
        without("left before the first byte, and seen", Logged),
        "0 lines in the access log",
    ),
    "two lines": ([*WELL["a refusal"], line("a", 429, "refused", 0)], "2 lines"),
    "a line of nobody's request": ([line("b")], "nobody's request"),
    "another status in the log": (relined("a refusal", status=503), "logged 503, told 429"),
    "a failure logged as a success": (relined("a stream that broke off", ending="ok"), "logged ok"),
    "a success logged as a failure": (relined("a stream", ending="failed", error="x"), "logged failed"),
    "a cancellation logged as a success": (relined("cancelled", ending="ok"), "logged ok"),
    "a failure without a label": (
        [event for event in WELL["a refusal"] if not isinstance(event, Logged)]
        + [Logged({"id": "a", "status": 429, "ending": "refused", "tenant": WEB})],
        "without an error",
    ),
    "another tenant in the log": (relined("a stream", tenant=LAB), "asked by 'acme/web'"),
    "an answer for a stranger": (
        [Asked("a", ""), Told("a", End.WHOLE, 200), line("a", tenant="", tokens=0)],
        "logged as of ''",
    ),
    "a refusal that is charged": (relined("a refusal", prompt_tokens=7), "refused, and charged"),
    "charged less than told": (relined("a stream", completion_tokens=2), "charged 2, told 3"),
    "charged twice": (relined("a retry", completion_tokens=6), "charged 6, told 3"),
    "a prompt charged twice": (relined("a retry", prompt_tokens=14), "charged a prompt of 14"),
    "charged less than heard": (relined("a stream that broke off", completion_tokens=1), "charged 1, heard 2"),
    "charged more than was written": (relined("a stream that broke off", completion_tokens=5), "upstreams wrote 4"),
    "told what is another tenant's": (changed("a stream", Told, foreign=(canary_of(LAB),)), "was told canary-lab"),
    "shown what is another tenant's": ([*WELL["a stream"], Listed(LAB, ("a",))], "was shown a"),
    "ended by another tenant": (changed("a cancellation by another tenant", Meddled, status=200), "answered 200"),
}


@pytest.mark.parametrize("case", PLANTED)
def test_what_is_wrong_is_found(case: str) -> None:
    events, sentence = PLANTED[case]

    assert [each for each in violations(History(events)) if sentence in each]


ALL_OVER: dict[str, tuple[Callable[[], Any], str]] = {
    "a charge that nobody was told": (
        lambda: charged_in_all(History(WELL["a stream"]), {"acme": (7, 4)}),
        "acme: charged 7 and 4",
    ),
    "tokens that nobody was charged": (lambda: engine_produced(History(WELL["cancelled"]), 3), "generated 3, 2 were"),
    "a task that stayed": (lambda: left_behind({"tasks": 3, "blocks": 0}, {"tasks": 4, "blocks": 0}), "tasks: 3"),
    "a block that stayed": (lambda: left_behind({"held_blocks": 0}, {"held_blocks": 2}), "held_blocks"),
    "a canary in a log": (lambda: spilt(["canary-x"], {"log": b'{"a": "canary-x"}'}), "log: holds canary-x"),
    "an exception": (lambda: troubled(["penstock: serving", "Traceback (most recent call last):"]), "Traceback"),
    "an answer that depends on who else is there": (lambda: one_answer_each({"p": {"Paris", "Rome"}}), "2 answers"),
}


@pytest.mark.parametrize("case", ALL_OVER)
def test_what_is_wrong_in_all_is_found(case: str) -> None:
    judge, sentence = ALL_OVER[case]

    assert [each for each in judge() if sentence in each]


def test_nothing_in_all_is_accused_where_all_is_well() -> None:
    assert [
        *charged_in_all(History(WELL["a stream"]), {"acme": (7, 3)}),
        *engine_produced(History(WELL["cancelled"]), 2),
        *left_behind({"tasks": 3}, {"tasks": 3}),
        *spilt(["canary-x"], {"log": b"canary-y"}),
        *troubled(["penstock: serving tiny", "penstock: policy.yaml:3: expected a mapping"]),
        *one_answer_each({"p": {"Paris"}}),
    ] == []


def test_memory_that_grows_is_told_from_memory_that_scatters() -> None:
    chance = Random(1)
    scattered = [(float(at), 100 + chance.uniform(-3, 3)) for at in range(100)]
    growing = [(at, value + at * 0.2) for at, value in scattered]

    assert trend(scattered).flat(allowed=1)
    assert not trend(growing).flat(allowed=1)
    assert trend(growing).rise == pytest.approx(20, abs=3)


def test_a_log_gives_back_what_was_written(tmp_path: Path) -> None:
    events = [*WELL["cancelled"], Faulted("reset"), *WELL["a retry"]]
    with EventLog(tmp_path / "events") as log:
        for event in events:
            log.add(event)

        history = log.read()

    assert history.events == events
    assert history.faults() == {"reset": 1}


def test_a_caller_hears_what_is_foreign_wherever_it_stands() -> None:
    hearing = Hearing(Asked("a.1", WEB, "pair", True))
    hearing.head(b"HTTP/1.1 200 OK\r\nx: " + canary_of(LAB).encode() + b"\r\n\r\n")
    hearing.event(b'data: {"choices": [{"delta": {"content": "' + canary_of(WEB).encode() + b' mark-a.1 mark-b.7"}}]}')

    assert hearing.told().foreign == (canary_of(LAB), "mark-b.7")


def test_the_same_seed_draws_the_same_callers_and_every_kind_of_them() -> None:
    def drawn(seed: int) -> list[Any]:
        chance = Random(seed)
        return [draw(chance, f"x.{number}") for number in range(2000)]

    wishes = drawn(1)

    assert wishes == drawn(1)
    assert wishes != drawn(2)
    assert {wish.asked.tenant for wish in wishes} == {*TENANTS, ""}
    assert len({wish.fault for wish in wishes}) == 16
    assert not [wish for wish in wishes if wish.asked.model != ENGINE and b"mark-" not in wish.body and not wish.fault]
