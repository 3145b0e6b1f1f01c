"""Which tests hold the promises of `docs/faults.md`, by their marks; `python -m tests.rig.fault_rows` lists them.

A test says `@pytest.mark.fault_row(12)` where it holds what row 12 of the table promises, and
`@pytest.mark.fault_row(12, removed=True)` where it shows that the promise is broken once the defence is taken out. One
that takes an argument `defended` does both.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "docs" / "faults.md"


class Marked(NamedTuple):
    """A test that speaks of a row. `slow` ones are not in the default run."""

    row: int
    place: str
    holds: bool
    removes: bool
    slow: bool


def rows() -> dict[int, str]:
    """Read the table: what goes wrong, by its number."""
    found = re.findall(r"^\| (\d+) \| ([^|]+) \|", TABLE.read_text(), re.MULTILINE)
    return {int(number): fault.strip() for number, fault in found}


def marked() -> list[Marked]:
    """Find all marked tests."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [each for file in files if "fault_row" in (text := file.read_text()) for each in _of(file, ast.parse(text))]


def _of(file: Path, module: ast.Module) -> Iterator[Marked]:
    slow = any(
        "pytest.mark.slow" in ast.unparse(each)
        for each in module.body
        if isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) == "pytestmark"
    )
    for test in module.body:
        if not isinstance(test, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        both = any(argument.arg == "defended" for argument in test.args.args)
        slowly = slow or any(ast.unparse(each).startswith("pytest.mark.slow") for each in test.decorator_list)
        for mark in test.decorator_list:
            if not isinstance(mark, ast.Call) or ast.unparse(mark.func) != "pytest.mark.fault_row":
                continue
            removed = any(keyword.arg == "removed" for keyword in mark.keywords)
            place = f"{file.relative_to(ROOT)}::{test.name}"
            for row in mark.args:
                yield Marked(int(ast.unparse(row)), place, both or not removed, both or removed, slowly)


def listing() -> str:
    """Lay out every row with its tests."""
    tests = defaultdict(list)
    for each in marked():
        tests[each.row].append(each)
    lines = []
    for number, fault in rows().items():
        lines.append(f"{number}. {fault}")
        for each in tests[number]:
            arms = "both" if each.holds and each.removes else "holds" if each.holds else "removed"
            lines.append(f"    {arms:8}{each.place}{'  (slow)' if each.slow else ''}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(listing())
