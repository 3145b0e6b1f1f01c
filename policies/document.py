"""YAML text as a tree of nodes that know where they stand, and the problems that point into it.

The text is read from the parser's events, without recursion and within bounds on size, depth and count. The YAML that
surprises is refused rather than guessed at: aliases and merge keys (bombs, and action at a distance), tags, duplicate
keys, several documents. What a plain scalar means is decided later by the type that is expected there, so that `no`,
`1:30` and `007` are never quietly a boolean, ninety and seven.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import yaml

MAX_CHARS = 4 << 20
MAX_DEPTH = 32
MAX_NODES = 200_000
MAX_PROBLEMS = 100  # then it is enough; and what is said of a hostile file stays within bounds
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml where PyYAML was built with it: ten times faster
MAX_SHOWN_CHARS = 128  # of one name or value
DIRECTIVE = re.compile("^%TAG", re.MULTILINE)  # libyaml takes quadratic time for many

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a file, counted from 1 as editors do."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Scalar:
    """A single value as it was written; `plain` when it had no quotes."""

    mark: Mark
    text: str
    plain: bool

    @property
    def empty(self) -> bool:
        """Whether nothing, or null, was written."""
        return self.plain and self.text in ("", "~", "null", "Null", "NULL")


@dataclass(frozen=True, slots=True)
class Listing:
    """A list of nodes."""

    mark: Mark
    items: list["Node"] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Mapping:
    """Nodes by key; `keys` tells where each key stands."""

    mark: Mark
    items: dict[str, "Node"] = field(default_factory=dict)
    keys: dict[str, Mark] = field(default_factory=dict)


Node = Scalar | Listing | Mapping


@dataclass(frozen=True, slots=True)
class Flaw:
    """Something wrong at a path of keys; becomes a `Problem` once its place in the file is looked up."""

    path: Path
    message: str


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong at a place in a file: what an operator is told, one line each."""

    file: str
    mark: Mark
    path: Path
    message: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.mark.line}:{self.mark.column}"
        return f"{where}: {dotted(self.path)}: {self.message}" if self.path else f"{where}: {self.message}"


class DocumentError(ValueError):
    """A document cannot be used. `problems` holds everything that was found, in the files' order."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = tuple(
            sorted(problems, key=lambda problem: (problem.file, problem.mark.line, problem.mark.column))
        )
        super().__init__("\n".join(str(problem) for problem in self.problems))


def dotted(path: Path) -> str:
    """Write a path as people do: `models.demo.upstreams[0]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{shortened(part)}" if text else shortened(part)
    return text


def shortened(text: str) -> str:
    """Write what stands in a file so that it fits into a line."""
    return text if len(text) <= MAX_SHOWN_CHARS else text[:MAX_SHOWN_CHARS] + "…"


def locate(root: Node, path: Path) -> Mark:
    """Find the place of a path: its key's, its item's, or that of the deepest part that exists."""
    node, mark = root, root.mark
    for part in path:
        if isinstance(node, Mapping) and isinstance(part, str) and part in node.items:
            mark, node = node.keys[part], node.items[part]
        elif isinstance(node, Listing) and isinstance(part, int) and part < len(node.items):
            node = node.items[part]
            mark = node.mark
        else:
            break
    return mark


def parse(text: str, file: str) -> Node:
    """Read one YAML document; an empty one is an empty scalar. Raises `DocumentError`."""
    builder = _Builder(file)
    if len(text) > MAX_CHARS:
        builder.refuse(Mark(1, 1), f"the file has {len(text)} characters, allowed: {MAX_CHARS}")
    directive = DIRECTIVE.search(text)
    if directive is not None:
        builder.refuse(Mark(text.count("\n", 0, directive.start()) + 1, 1), "a tag directive; tags are not supported")
    try:
        for event in _events(text):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        at = error.problem_mark or error.context_mark
        builder.refuse(_mark(at), f"not YAML: {error.problem or error.context}")
    except yaml.YAMLError as error:  # the reader's: a character that YAML forbids
        place = getattr(error, "position", 0)
        before = text[: place if isinstance(place, int) else 0]
        mark = Mark(before.count("\n") + 1, len(before) - before.rfind("\n"))
        builder.refuse(mark, f"not YAML: {getattr(error, 'reason', error)}")
    if builder.problems:
        raise DocumentError(builder.problems)
    return builder.root or Scalar(Mark(1, 1), "", plain=True)


def _events(text: str) -> Iterator[yaml.Event]:
    yield from yaml.parse(text, Loader=LOADER)


class _ParserMark(Protocol):
    """PyYAML's own marks, of either parser; counted from 0."""

    line: int
    column: int


def _mark(mark: _ParserMark | None) -> Mark:
    return Mark(1, 1) if mark is None else Mark(mark.line + 1, mark.column + 1)


class _Builder:
    """Puts events together into nodes. `_open` holds the containers being filled, `_key` the key that waits in each."""

    def __init__(self, file: str) -> None:
        self.root: Node | None = None
        self.problems: list[Problem] = []
        self._file = file
        self._open: list[Listing | Mapping] = []
        self._key: list[str | None] = []
        self._count = 0

    def refuse(self, mark: Mark, message: str) -> None:
        """Stop at what cannot be read past. Raises `DocumentError`."""
        self._note(mark, message)
        raise DocumentError(self.problems)

    def take(self, event: yaml.Event) -> None:
        """Take the parser's next event."""
        mark = _mark(event.start_mark)
        match event:
            case yaml.DocumentStartEvent() if self.root is not None:
                self.refuse(mark, "a second document; one file holds one")
            case yaml.AliasEvent():
                self.refuse(mark, f"an alias (*{shortened(event.anchor or '')}); write the value out")
            case yaml.ScalarEvent():
                self._check_node(event, mark)
                self._scalar(Scalar(mark, event.value, plain=not event.style))
            case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                self._check_node(event, mark)
                node = Mapping(mark) if isinstance(event, yaml.MappingStartEvent) else Listing(mark)
                self._place(node)
                self._open.append(node)
                self._key.append(None)
                if len(self._open) > MAX_DEPTH:
                    self.refuse(mark, f"nested deeper than {MAX_DEPTH}")
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                self._open.pop()
                self._key.pop()

    def _check_node(self, event: yaml.Event, mark: Mark) -> None:
        self._count += 1
        if self._count > MAX_NODES:
            self.refuse(mark, f"more than {MAX_NODES} values")
        tag = getattr(event, "tag", None)
        if tag is not None:
            self.refuse(mark, f"a tag ({shortened(tag)}); tags are not supported")

    def _scalar(self, node: Scalar) -> None:
        if self._open and isinstance(parent := self._open[-1], Mapping) and self._key[-1] is None:
            if node.text == "<<" and node.plain:
                self.refuse(node.mark, "a merge key (<<); write the values out")
            if node.text in parent.items:
                first = parent.keys[node.text].line
                self._note(node.mark, f"duplicate key {shortened(node.text)!r}; it stands in line {first} already")
            self._key[-1] = node.text
            parent.keys.setdefault(node.text, node.mark)
        else:
            self._place(node)

    def _place(self, node: Node) -> None:
        if not self._open:
            self.root = node
            return
        parent = self._open[-1]
        if isinstance(parent, Listing):
            parent.items.append(node)
            return
        key, self._key[-1] = self._key[-1], None
        if key is None:
            self.refuse(node.mark, "a key must be a single value")
        else:
            parent.items.setdefault(key, node)

    def _note(self, mark: Mark, message: str) -> None:
        self.problems.append(Problem(self._file, mark, (), message))
        if len(self.problems) >= MAX_PROBLEMS:
            raise DocumentError(self.problems)
