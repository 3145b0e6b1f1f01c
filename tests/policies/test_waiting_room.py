"""Who waits for room, in which order they go, and who has to leave when it is full."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.waiting_room import WaitingRoom


def joined(*items: str, most: int = 100) -> WaitingRoom[str]:
    """A room that was joined by items such as `a1` (client a) or `b2:1` (client b, priority 1)."""
    room: WaitingRoom[str] = WaitingRoom(most)
    for item in items:
        name, _, priority = item.partition(":")
        room.join(name, name[0], priority=int(priority or 0))
    return room


def admit(room: WaitingRoom[str], cost: float = 10) -> str:
    item = next(iter(room))
    room.start(item, cost)
    return item


def test_clients_take_turns_and_each_goes_in_order_of_arrival() -> None:
    room = joined("a1", "a2", "a3", "b1", "b2")

    assert [admit(room) for _ in range(5)] == ["b1", "a1", "b2", "a2", "a3"]  # among equals who has fewer waiting


def test_a_higher_priority_goes_first() -> None:
    room = joined("a1", "b1:1", "c1:2", "a2:1")

    assert list(room) == ["c1", "b1", "a2", "a1"]


def test_weights_are_shares() -> None:
    room: WaitingRoom[str] = WaitingRoom(100)
    for number in range(30):
        room.join(f"h{number}", "h", weight=2.0)
        room.join(f"l{number}", "l", weight=1.0)
    first = [admit(room)[0] for _ in range(30)]

    assert (first.count("h"), first.count("l")) == (20, 10)


def test_a_cheap_client_goes_more_often_than_a_dear_one() -> None:
    room = joined(*[f"a{n}" for n in range(10)], *[f"b{n}" for n in range(10)])
    first = []
    for _ in range(11):
        item = next(iter(room))
        room.start(item, 100 if item[0] == "a" else 10)
        first.append(item[0])

    assert first.count("b") == 10


def test_what_was_produced_counts_too_even_for_who_never_had_to_wait() -> None:
    room = joined("a1", "b1")
    room.charge("a", 500)

    assert list(room) == ["b1", "a1"]
    room.charge("c", 5, priority=3)


def test_whoever_leaves_is_not_charged() -> None:
    room = joined("a1", "a2", "b1")
    room.leave("a1")

    assert ("a1" in room, list(room)) == (False, ["a2", "b1"])


def test_a_full_room_makes_place_for_who_has_less_of_it() -> None:
    room = joined("a1", "a2", "a3", "b1", most=4)

    assert room.loser("c", 0) == "a3"
    assert room.loser("b", 0) == "a3"
    assert room.loser("a", 0) is None


def test_in_a_full_room_nobody_is_sent_away_for_an_equal() -> None:
    room = joined("a1", "b1", most=2)

    assert room.loser("c", 0) is None
    assert room.loser("c", 0, weight=3.0) is not None


def test_in_a_full_room_the_lowest_priority_goes_and_never_for_a_lower_one() -> None:
    room = joined("a1:1", "b1:0", "c1:2", most=3)

    assert room.loser("d", 2) == "b1"
    assert room.loser("d", -1) is None


def test_a_newcomer_knows_how_many_go_first() -> None:
    room = joined(*[f"a{n}" for n in range(50)], "b1", "b2", "h1:1")

    assert room.ahead("c") == 1 + 1 + 1  # the high one, and one each of the others
    assert room.ahead("b") == 1 + 2 + 3
    assert room.ahead("a") == 1 + 50 + 2
    assert room.ahead("c", 1) == 1
    assert room.ahead("c", 0, weight=0.1) == 1 + 10 + 2


@given(st.integers(0, 2**32))
def test_everybody_who_joins_is_given_once_and_the_count_is_right(seed: int) -> None:
    room, rng = WaitingRoom[int](30), Random(seed)
    inside: set[int] = set()
    for item in range(150):
        key, priority = rng.choice("abcde"), rng.choice([0, 0, 1])
        if len(room) == 30:
            loser = room.loser(key, priority)
            if loser is None:
                continue
            room.leave(loser)
            inside.remove(loser)
        room.join(item, key, priority=priority, weight=rng.choice([1.0, 2.0]))
        inside.add(item)
        while inside and rng.random() < 0.4:
            gone = rng.choice(sorted(inside)) if rng.random() < 0.3 else next(iter(room))
            inside.remove(gone)
            room.start(gone, rng.random() * 50) if rng.random() < 0.7 else room.leave(gone)

        assert len(room) == len(inside) == sum(room.snapshot().waiting.values())
        assert set(room) == inside
    assert room.snapshot().clients <= 10


def test_the_room_is_bounded() -> None:
    with pytest.raises(AssertionError, match="full"):
        joined("a1", "a2", "a3", most=2)
    with pytest.raises(ValueError, match="at least 1"):
        WaitingRoom[str](0)
