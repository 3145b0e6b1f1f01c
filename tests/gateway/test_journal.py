"""The journal of what is in flight, and what several deaths of the process say together."""

from gateway.process.journal import NOTHING, PLACES, QUARANTINE_S, STRIKE_S, Docket, Journal, Verdict

A, B, C, D = (bytes([letter]) * 16 for letter in b"ABCD")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_what_is_in_flight_stands_in_the_journal_and_what_ended_does_not() -> None:
    journal = Journal()
    first, second = journal.enter(A), journal.enter(B)
    journal.enter(A)
    journal.leave(first)

    assert journal.in_flight() == {A, B}

    journal.leave(second)

    assert journal.in_flight() == {A}


def test_whoever_finds_no_place_is_let_by() -> None:
    journal = Journal()
    places = [journal.enter(A) for _ in range(PLACES)]

    assert journal.enter(B) == -1

    journal.leave(-1)
    for place in places:
        journal.leave(place)

    assert journal.in_flight() == set()


def test_a_sealed_journal_keeps_what_is_in_flight() -> None:
    journal = Journal()
    place = journal.enter(A)
    journal.seal()
    journal.leave(place)

    assert journal.in_flight() == {A}


def test_a_fingerprint_tells_tenants_and_bodies_apart_and_nothing_else() -> None:
    docket, other = Docket(), Docket()
    names = {docket.fingerprint(tenant, body) for tenant in ("a", "b") for body in (b"x", b"y", b"\0x")}

    assert len(names) == 6
    assert docket.fingerprint("a", b"x") in names
    assert other.fingerprint("a", b"x") not in names  # without the key nobody can look for a known prompt
    assert NOTHING not in names


def test_the_first_death_accuses_nobody() -> None:
    docket = Docket()

    assert docket.died([A, B], []) is None
    assert [docket.verdict(name) for name in (A, B, C)] == [Verdict.FREE] * 3


def test_who_alone_is_there_again_is_quarantined_at_the_second_death() -> None:
    docket = Docket()
    docket.died([A, B], [])

    assert docket.died([A, C], []) == A
    assert [docket.verdict(name) for name in (A, B, C)] == [Verdict.QUARANTINED, Verdict.FREE, Verdict.FREE]
    assert docket.count(Verdict.QUARANTINED) == 1


def test_several_that_are_there_again_are_tried_one_at_a_time_until_one_is_found() -> None:
    docket = Docket()
    docket.died([A, B, C], [])

    assert docket.died([A, B, D], []) is None
    assert [docket.verdict(name) for name in (A, B, C, D)] == [
        Verdict.SUSPECT,
        Verdict.SUSPECT,
        Verdict.FREE,
        Verdict.FREE,
    ]
    assert docket.died([B, C, D], []) == B
    assert docket.verdict(A) is Verdict.SUSPECT


def test_who_ended_well_meanwhile_is_no_suspect() -> None:
    docket = Docket()
    docket.died([A, B], [])

    assert docket.died([A, B], [B]) == A
    assert docket.verdict(B) is Verdict.FREE


def test_the_quarantined_are_not_acquitted() -> None:
    docket = Docket()
    docket.died([A], [])
    docket.died([A], [])

    assert not docket.acquit(A)
    assert docket.verdict(A) is Verdict.QUARANTINED


def test_strikes_and_quarantine_expire() -> None:
    clock = Clock()
    docket = Docket(clock=clock)
    docket.died([A], [])
    clock.now += STRIKE_S

    assert docket.died([A], []) is None  # the first is forgotten
    assert docket.died([A], []) == A

    clock.now += QUARANTINE_S

    assert docket.verdict(A) is Verdict.FREE
    assert docket.count(Verdict.QUARANTINED) == 0
