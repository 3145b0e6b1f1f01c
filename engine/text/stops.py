"""Stop strings as one automaton (Aho and Corasick, 1975): one step a character, however many and long the strings are.

The state is the longest suffix of the text so far that begins some stop string. Its length is exactly how much must be
withheld, and a state that is a whole stop string is a hit. Reading character by character also makes the result
independent of how the text was cut into tokens: the string that *ends* first wins, of several ending together the
longest.
"""

from collections import deque
from collections.abc import Sequence


class StopStrings:
    """The automaton of some stop strings; immutable, so that the choices of a request share one."""

    ROOT = 0

    def __init__(self, strings: Sequence[str]) -> None:
        self._next: list[dict[str, int]] = [{}]
        self._fail: list[int] = [0]
        self._hit: list[str | None] = [None]
        self.depth: list[int] = [0]
        for string in strings:
            self._hit[self._insert(string)] = string
        self._link()

    def _insert(self, string: str) -> int:
        state = self.ROOT
        for character in string:
            following = self._next[state].get(character)
            if following is None:
                following = len(self._next)
                self._next[state][character] = following
                self._next.append({})
                self._fail.append(self.ROOT)
                self._hit.append(None)
                self.depth.append(self.depth[state] + 1)
            state = following
        return state

    def _link(self) -> None:
        """Give each state its failure: the longest proper suffix of it that is a state too. Breadth first."""
        queue = deque(self._next[self.ROOT].values())
        while queue:
            state = queue.popleft()
            if self._hit[state] is None:
                self._hit[state] = self._hit[self._fail[state]]
            for character, following in self._next[state].items():
                self._fail[following] = self.step(self._fail[state], character)
                queue.append(following)

    def __bool__(self) -> bool:
        return len(self._next) > 1

    def step(self, state: int, character: str) -> int:
        """The state after one more character."""
        while True:
            following = self._next[state].get(character)
            if following is not None:
                return following
            if state == self.ROOT:
                return state
            state = self._fail[state]

    def hit(self, state: int) -> str | None:
        """The longest stop string that ends here, if any does."""
        return self._hit[state]

    def withheld(self, state: int) -> int:
        """How many characters back the earliest stop string begins that may still become whole, hits let go."""
        while not self._next[state]:
            state = self._fail[state]
        return self.depth[state]
