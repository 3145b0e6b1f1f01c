"""What parts of the run share: how they tell figures with their goals, and how tests are started."""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

MARK = "RESULT "
ROOT = Path(__file__).resolve().parent.parent.parent
TESTS = ("-m", "pytest", "-c", str(Path(__file__).parent / "pytest.ini"), "--rootdir", str(ROOT))


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number. `goal`: at least so much, or at most where `below`; None where it is only a peer's."""

    name: str
    value: float
    unit: str
    goal: float | None = None
    below: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the goal was reached; None where there is none."""
        if self.goal is None:
            return None
        return self.value <= self.goal if self.below else self.value >= self.goal


def tell(figures: list[Figure]) -> None:
    """Print figures so that the one who started this part finds them."""
    for figure in figures:
        print(line_of(figure))
    print(MARK + json.dumps([asdict(figure) for figure in figures]))
    sys.stdout.flush()


def told(output: str) -> list[Figure]:
    """Find the figures in a part's output."""
    return [
        Figure(**each)
        for line in output.splitlines()
        if line.startswith(MARK)
        for each in json.loads(line[len(MARK) :])
    ]


def line_of(figure: Figure) -> str:
    """Give a figure as a line of a table."""
    verdict = {True: "met", False: "MISSED", None: ""}[figure.met]
    goal = "" if figure.goal is None else f"goal {'≤' if figure.below else '≥'} {figure.goal:g}"
    return f"  {figure.name:<58} {figure.value:>11.4g} {figure.unit:<10} {goal:<12} {verdict}".rstrip()
