"""Wrong kernels made from right ones, one change each, by rules that know the wrappers' names and nothing of a kernel.

- a call that orders or waits is left out;
- a count, a phase or a number of bytes is another: of groups that may still be under way, of arrivals, of parity;
- a predicate of a copy is always true;
- a comparison (a loop's bound, a mask, a guard) takes one more or one less; a loop ends one turn earlier;
- one of two conditions is dropped.

What the emulator does not execute at all is left alone: `wgmma_regs_fence`, `pdl_wait`, `setmaxnreg`, prefetches.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

LEFT_OUT = (
    "__syncthreads",
    "__syncwarp",
    "__threadfence",
    "bar_sync",
    "bar_arrive",
    "cp_async_commit",
    "cp_async_wait",
    "fence_proxy_async",
    "mbar_arrive",
    "mbar_expect_tx",
    "mbar_fence_init",
    "mbar_init",
    "mbar_wait",
    "st_release",
    "tma_store_commit",
    "tma_store_wait",
    "wgmma_commit",
    "wgmma_fence",
    "wgmma_wait",
)
# For calls whose last argument is a number: what it becomes.
SHIFTED = {
    "bar_sync": ("({}) + 32",),
    "bar_arrive": ("({}) + 32",),
    "mbar_init": ("({}) + 1", "({}) - 1"),
    "mbar_expect_tx": ("({}) + 16", "({}) - 16"),
    "mbar_wait": ("({}) ^ 1",),
}
CALL = re.compile(r"(?<![\w.>])(\w+)(<[^<>();]*>)?\(")
WAITS = re.compile(r"\b(cp_async_wait|wgmma_wait|tma_store_wait)<([^<>]+)>\(\)")
COMPARISON = re.compile(r" (<|<=|>|>=) ")
LOOP = re.compile(r"\bfor \([^;]*; *([^;]+?) < ([^;]+);")
ONE_MORE_OR_LESS = {"<": "<=", "<=": "<", ">": ">=", ">=": ">"}
EVERY_COPY = re.compile(r"\bcp_async16\(")


@dataclass(frozen=True, slots=True)
class Mutant:
    """One file with one line changed. `before` and `after` are that line without its margins and its comment."""

    file: str
    line: int
    occurrence: int  # 1 for the first line that reads like this and is changed like this
    before: str
    after: str
    text: str

    @property
    def name(self) -> str:
        """The same as long as the line is the same, wherever in the file it stands."""
        which = f" #{self.occurrence}" if self.occurrence > 1 else ""
        return f"{self.file}: `{self.before}` -> `{self.after}`{which}"


def mutants(file: str, text: str) -> Iterator[Mutant]:
    """Every mutant of a file, in the order of its lines."""
    lines = text.split("\n")
    seen: Counter[tuple[str, str]] = Counter()
    for number, line in enumerate(lines):
        code = line.split("//")[0]
        if not code.strip() or code.lstrip().startswith(("#", "template", "static_assert", "*")):
            continue
        for changed in dict.fromkeys(_changes(code)):
            whole = "\n".join([*lines[:number], changed, *lines[number + 1 :]])
            change = code.strip(), changed.strip()
            seen[change] += 1
            yield Mutant(file, number + 1, seen[change], *change, whole)


def _changes(code: str) -> Iterator[str]:
    yield from _left_out(code)
    yield from _shifted(code)
    yield from _always_copied(code)
    yield from _compared_otherwise(code)
    yield from _dropped(code)


def _arguments(code: str, opening: int) -> tuple[list[str], int] | None:
    """The arguments of the call whose bracket opens there and where it closes; None if it does not on this line."""
    depth, start, found = 0, opening + 1, []
    for at in range(opening, len(code)):
        if code[at] in "([{":
            depth += 1
        elif code[at] in ")]}":
            depth -= 1
            if depth == 0:
                return [*found, code[start:at]], at + 1
        elif code[at] == "," and depth == 1:
            found.append(code[start:at])
            start = at + 1
    return None


def _left_out(code: str) -> Iterator[str]:
    for match in CALL.finditer(code):
        read = _arguments(code, match.end() - 1)
        if match[1] in LEFT_OUT and read and not code.lstrip().startswith("DEV "):
            yield f"{code[: match.start()]}((void)0){code[read[1] :]}"


def _shifted(code: str) -> Iterator[str]:
    for match in WAITS.finditer(code):
        yield f"{code[: match.start()]}{match[1]}<({match[2]}) + 1>(){code[match.end() :]}"
    for match in CALL.finditer(code):
        read = _arguments(code, match.end() - 1)
        if read and not code.lstrip().startswith("DEV "):
            arguments, end = read
            for form in SHIFTED.get(match[1], ()):
                changed = [*arguments[:-1], " " + form.format(arguments[-1].strip())]
                yield f"{code[: match.end()]}{','.join(changed)}){code[end:]}"


def _always_copied(code: str) -> Iterator[str]:
    for match in EVERY_COPY.finditer(code):
        read = _arguments(code, match.end() - 1)
        if read and len(read[0]) == 3 and read[0][2].strip() != "true":
            yield f"{code[: match.end()]}{','.join(read[0][:2])}, true){code[read[1] :]}"


def _compared_otherwise(code: str) -> Iterator[str]:
    for match in COMPARISON.finditer(code):
        yield f"{code[: match.start(1)]}{ONE_MORE_OR_LESS[match[1]]}{code[match.end(1) :]}"
    for match in LOOP.finditer(code):
        yield f"{code[: match.start(2)]}({match[2]}) - 1{code[match.end(2) :]}"


def _dropped(code: str) -> Iterator[str]:
    """Of `if (a && b)` and `x = a && b;`, only a, and only b, where each is simple enough to be seen on the line."""
    for match in re.finditer(r"(?<=\()([^()&|?:]+(?:\([^()]*\))?[^()&|?:]*) && ([^()&|?:]+)(?=\))", code):
        for kept in (match[1], match[2]):
            yield f"{code[: match.start()]}{kept}{code[match.end() :]}"
    for match in re.finditer(r"(?<== )([^=()&|?:]+) && ([^()&|?:]+)(?=;)", code):
        for kept in (match[1], match[2]):
            yield f"{code[: match.start()]}{kept}{code[match.end() :]}"
