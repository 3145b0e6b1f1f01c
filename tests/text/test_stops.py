"""The automaton of stop strings agrees with looking at the text."""

from hypothesis import given
from hypothesis import strategies as st

from engine.text.stops import StopStrings


@given(st.lists(st.text(alphabet="ab", min_size=1, max_size=5), min_size=1, max_size=5), st.text(alphabet="ab"))
def test_hits_and_withheld_suffixes_are_those_of_the_text(strings: list[str], text: str) -> None:
    stops = StopStrings(strings)
    state = StopStrings.ROOT
    for end in range(1, len(text) + 1):
        state = stops.step(state, text[end - 1])
        read = text[:end]

        assert stops.hit(state) == max((s for s in strings if read.endswith(s)), key=len, default=None)
        beginnings = {string[:length] for string in strings for length in range(1, len(string))}
        assert stops.withheld(state) == max((len(b) for b in beginnings if read.endswith(b)), default=0)


def test_no_strings_make_no_automaton() -> None:
    assert not StopStrings([])
    assert StopStrings(["x"])
