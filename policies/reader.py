"""Reads a YAML document into msgspec structs, strictly, and says everything that is wrong with it at once.

The struct is the schema: its annotations give types and ranges (`Annotated[int, Meta(ge=1, le=65535)]`), its defaults
what may be left out. Unknown keys are refused with the likeliest that was meant. Text that is not just text has a class
with `from_text(text)`, which raises `ValueError`; its message is told without the value, so that a secret is not shown.
"""

import math
import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from itertools import islice
from typing import Any, Protocol, TypeVar, cast

from msgspec import inspect

from policies.document import (
    MAX_PROBLEMS,
    DocumentError,
    Flaw,
    Listing,
    Mapping,
    Mark,
    Node,
    Path,
    Problem,
    Scalar,
    locate,
    parse,
)

T = TypeVar("T")

INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*(_[0-9]+)*)")
NUMBER = re.compile(r"[-+]?([0-9]+(_[0-9]+)*)?(\.[0-9]*)?([eE][-+]?[0-9]+)?")
BOOLEANS = {"true": True, "True": True, "false": False, "False": False}
MAX_SHOWN_CHARS = 60
MAX_SHOWN_NAMES = 20
MAX_COMPARED_NAMES = 200  # comparing takes some 10 µs each
UNSEEN = {"unseen": True}  # in a key type's `Meta(extra=…)`: a key that is wrong is not told, it may hold a secret


class FromText(Protocol):
    """A class whose values are written as text in a document."""

    @classmethod
    def from_text(cls, text: str) -> object: ...


class _Invalid(Exception):
    """A value could not be made; the flaw is noted already."""


class _Enough(Exception):
    """So much is wrong that the rest need not be known."""


def read(text: str, file: str, schema: type[T], check: Callable[[T], Iterable[Flaw]] = lambda _: ()) -> T:
    """Make a `schema` of YAML text; `check` looks at what types cannot say, once the types are right.

    Raises `DocumentError` with every problem found: each with its place, its key, the value and what is allowed.
    """
    root = parse(text, file)
    reader = _Reader()
    flaws: Iterable[Flaw]
    try:
        value: T = reader.value(root, inspect.type_info(schema), ())
        flaws = () if reader.flaws else check(value)
    except (_Invalid, _Enough):
        flaws = ()
    problems = [Problem(file, mark, path, message) for mark, path, message in reader.flaws]
    problems += [
        Problem(file, locate(root, flaw.path), flaw.path, flaw.message) for flaw in islice(flaws, MAX_PROBLEMS)
    ]
    if problems:
        raise DocumentError(problems)
    return value


class _Reader:
    """Walks nodes and types together; notes flaws and goes on, so that one run shows them all."""

    def __init__(self) -> None:
        self.flaws: list[tuple[Mark, Path, str]] = []

    def value(self, node: Node, kind: inspect.Type, path: Path) -> Any:
        """Make the value that `kind` describes. Raises `_Invalid` after noting why it cannot."""
        match kind:
            case inspect.Metadata():
                return self.value(node, kind.type, path)
            case inspect.UnionType():
                return self._optional(node, kind, path)
            case inspect.StructType():
                return self._struct(node, kind, path)
            case inspect.DictType():
                return self._mapping(node, kind, path)
            case inspect.ListType() | inspect.VarTupleType():
                return self._listing(node, kind, path)
            case _:
                return self._scalar(node, kind, path)

    def _note(self, mark: Mark, path: Path, message: str) -> None:
        self.flaws.append((mark, path, message))
        if len(self.flaws) >= MAX_PROBLEMS:
            raise _Enough

    def _refuse(self, mark: Mark, path: Path, message: str) -> _Invalid:
        self._note(mark, path, message)
        return _Invalid()

    def _optional(self, node: Node, kind: inspect.UnionType, path: Path) -> Any:
        some = [member for member in kind.types if not isinstance(member, inspect.NoneType)]
        assert len(some) == 1, f"a setting has one type, or None beside it; {kind} is more"
        if isinstance(node, Scalar) and node.empty:
            return None
        return self.value(node, some[0], path)

    def _struct(self, node: Node, kind: inspect.StructType, path: Path) -> Any:
        mapping = self._expect_mapping(node, path)
        fields = {field.encode_name: field for field in kind.fields}
        values: dict[str, Any] = {}
        before = len(self.flaws)
        for key, item in mapping.items.items():
            if key not in fields:
                self._note(mapping.keys[key], (*path, key), "unknown key" + choice(key, fields))
                continue
            try:
                values[fields[key].name] = self.value(item, fields[key].type, (*path, key))
            except _Invalid:
                continue
        for name, field in fields.items():
            if field.required and name not in mapping.items:
                self._note(mapping.mark, (*path, name), f"missing; expected {expectation(field.type)}")
        if len(self.flaws) > before:
            raise _Invalid
        return kind.cls(**values)

    def _mapping(self, node: Node, kind: inspect.DictType, path: Path) -> dict[str, Any]:
        mapping = self._expect_mapping(node, path)
        values: dict[str, Any] = {}
        for key, item in mapping.items.items():
            try:
                self._key(Scalar(mapping.keys[key], key, plain=False), kind.key_type, path)
                values[key] = self.value(item, kind.value_type, (*path, key))
            except _Invalid:
                continue
        return values

    def _key(self, node: Scalar, kind: inspect.Type, path: Path) -> None:
        if isinstance(kind, inspect.Metadata) and kind.extra == UNSEEN:
            try:
                convert(node, kind.type)
            except ValueError:
                raise self._refuse(node.mark, path, f"a key that is not {expectation(kind)}") from None
        else:
            self._scalar(node, _bare(kind), (*path, node.text))

    def _listing(self, node: Node, kind: inspect.ListType | inspect.VarTupleType, path: Path) -> Any:
        if isinstance(node, Scalar) and node.empty:
            node = Listing(node.mark)
        if not isinstance(node, Listing):
            raise self._refuse(node.mark, path, f"got {shape(node)}, expected {expectation(kind)}")
        if not (kind.min_length or 0) <= len(node.items) <= (kind.max_length or math.inf):
            raise self._refuse(node.mark, path, f"got {len(node.items)} items, expected {expectation(kind)}")
        values = []
        for index, item in enumerate(node.items):
            try:
                values.append(self.value(item, kind.item_type, (*path, index)))
            except _Invalid:
                continue
        return tuple(values) if isinstance(kind, inspect.VarTupleType) else values

    def _scalar(self, node: Node, kind: inspect.Type, path: Path) -> Any:
        if not isinstance(node, Scalar):
            raise self._refuse(node.mark, path, f"got {shape(node)}, expected {expectation(kind)}")
        if node.empty:
            raise self._refuse(node.mark, path, f"got nothing, expected {expectation(kind)}; leave the key out instead")
        made = _from_text(kind)
        if made is not None:
            try:
                return made.from_text(node.text)
            except ValueError as error:
                raise self._refuse(node.mark, path, str(error)) from None
        try:
            return convert(node, kind)
        except ValueError:
            got = node.text if len(node.text) <= MAX_SHOWN_CHARS else node.text[:MAX_SHOWN_CHARS] + "…"
            raise self._refuse(node.mark, path, f"got {got!r}, expected {expectation(kind)}") from None

    def _expect_mapping(self, node: Node, path: Path) -> Mapping:
        if isinstance(node, Scalar) and node.empty:
            return Mapping(node.mark)
        if not isinstance(node, Mapping):
            raise self._refuse(node.mark, path, f"got {shape(node)}, expected a mapping of keys to values")
        return node


def convert(node: Scalar, kind: inspect.Type) -> Any:
    """Give a scalar the meaning its type asks for. Raises `ValueError` where it has none, or is out of range."""
    text = node.text
    value: Any
    match kind:
        case inspect.BoolType() if node.plain:
            if text not in BOOLEANS:
                raise ValueError(text)
            return BOOLEANS[text]
        case inspect.IntType() if node.plain and INTEGER.fullmatch(text):
            value = int(text)
        case inspect.FloatType() if node.plain and NUMBER.fullmatch(text):
            value = float(text)
            if not math.isfinite(value):
                raise ValueError(text)
        case inspect.StrType():
            value = text
        case inspect.LiteralType() | inspect.EnumType():
            choices = {str(member): member for member in _choices(kind)}
            if text not in choices:
                raise ValueError(text)
            return choices[text] if isinstance(kind, inspect.LiteralType) else kind.cls(choices[text])
        case _:
            raise ValueError(text)
    if not within(value, kind):
        raise ValueError(text)
    return value


def within(value: Any, kind: inspect.Type) -> bool:
    """Whether a value keeps to the limits of its type."""
    if isinstance(kind, inspect.StrType):
        long_enough = (kind.min_length or 0) <= len(value) <= (kind.max_length or math.inf)
        # `$` would let a line's end pass, and a pattern means one line
        return long_enough and (
            kind.pattern is None or ("\n" not in value and re.search(kind.pattern, value) is not None)
        )
    assert isinstance(kind, inspect.IntType | inspect.FloatType)
    return (
        (kind.ge is None or value >= kind.ge)
        and (kind.gt is None or value > kind.gt)
        and (kind.le is None or value <= kind.le)
        and (kind.lt is None or value < kind.lt)
    )


def expectation(kind: inspect.Type) -> str:
    """Say what a type allows, in words."""
    match kind:
        case inspect.Metadata():
            return expectation(kind.type)
        case inspect.UnionType():
            return " or ".join(expectation(member) for member in kind.types if not isinstance(member, inspect.NoneType))
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType():
            return "a whole number" + _range(kind)
        case inspect.FloatType():
            return "a number" + _range(kind)
        case inspect.StrType():
            return "text" + (
                f" like {kind.pattern}" if kind.pattern else " that is not empty" if kind.min_length else ""
            )
        case inspect.LiteralType() | inspect.EnumType():
            return "one of " + ", ".join(str(member) for member in _choices(kind))
        case inspect.ListType() | inspect.VarTupleType():
            few = f" of at least {kind.min_length}" if kind.min_length else ""
            many = f" of at most {kind.max_length}" if kind.max_length else ""
            return f"a list{few}{many}, each {expectation(kind.item_type)}"
        case inspect.StructType() | inspect.DictType():
            return "a mapping of keys to values"
    made = _from_text(kind)
    if made is not None:
        return (made.__doc__ or made.__name__).partition("\n")[0].rstrip(".")
    raise TypeError(f"a schema cannot hold {kind}")


def choice(name: str, known: Iterable[str]) -> str:
    """Name what could stand in place of a name that is not known, the likeliest first."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1, cutoff=0.6) if len(names) <= MAX_COMPARED_NAMES else ()
    meant = f" (did you mean {near[0]!r}?)" if near else ""
    more = f" and {len(names) - MAX_SHOWN_NAMES} more" if len(names) > MAX_SHOWN_NAMES else ""
    return f"{meant}; allowed: {', '.join(names[:MAX_SHOWN_NAMES]) or 'none'}{more}"


def shape(node: Node) -> str:
    """Name what kind of node was found, without its text: a misplaced secret is not shown."""
    match node:
        case Mapping():
            return "a mapping"
        case Listing():
            return "a list"
        case Scalar():
            return "nothing" if node.empty else "a single value"


def _range(kind: inspect.IntType | inspect.FloatType) -> str:
    if kind.ge is not None and kind.le is not None:
        return f" from {kind.ge} to {kind.le}"
    bounds = (("at least", kind.ge), ("above", kind.gt), ("at most", kind.le), ("below", kind.lt))
    said = ", ".join(f"{word} {bound}" for word, bound in bounds if bound is not None)
    return f" {said}" if said else ""


def _choices(kind: inspect.LiteralType | inspect.EnumType) -> list[Any]:
    return list(kind.values) if isinstance(kind, inspect.LiteralType) else [member.value for member in kind.cls]


def _from_text(kind: inspect.Type) -> type[FromText] | None:
    made = kind.cls if isinstance(kind, inspect.CustomType | inspect.DataclassType) else None
    return cast(type[FromText], made) if hasattr(made, "from_text") else None


def _bare(kind: inspect.Type) -> inspect.Type:
    return kind.type if isinstance(kind, inspect.Metadata) else kind
