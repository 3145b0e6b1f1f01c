"""Every setting with its meaning, written from the schema: the reference that cannot drift from the code."""

from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import inspect

from gateway.configuration.config import Config
from policies.reader import expectation

HEADER = """# Settings of penstock.yaml

Written by `penstock settings`; a test compares.
"""


def describe() -> str:
    """Give the reference as Markdown: a table a section."""
    root = inspect.type_info(Config)
    assert isinstance(root, inspect.StructType)
    return HEADER + "".join(_section("", root))


def _section(prefix: str, kind: inspect.StructType) -> Iterator[str]:
    yield f"\n## {prefix.rstrip('.') or 'The file'}\n\n{sentence_of(kind)}\n\n"
    yield "| key | is | default | meaning |\n|---|---|---|---|\n"
    inner: list[tuple[str, inspect.StructType]] = []
    for field in kind.fields:
        bare, about = unwrap(field.type)
        name = prefix + field.encode_name
        if isinstance(bare, inspect.StructType):
            inner.append((f"{name}.", bare))
        elif isinstance(bare, inspect.DictType) and isinstance(
            nested := unwrap(bare.value_type)[0], inspect.StructType
        ):
            inner.append((f"{name}.NAME.", nested))
        yield f"| `{field.encode_name}` | {expectation(bare)} | {default_of(field)} | {about} |\n"
    for path, nested in inner:
        yield from _section(path, nested)


def sentence_of(kind: inspect.StructType) -> str:
    """Give the sentence that describes a section."""
    return (kind.cls.__doc__ or "").partition("\n")[0]


def unwrap(kind: inspect.Type) -> tuple[inspect.Type, str]:
    """Give the type without `None` and annotations, and its sentence."""
    about = ""
    while True:
        if isinstance(kind, inspect.Metadata):
            schema: dict[str, Any] = kind.extra_json_schema or {}
            about = about or str(schema.get("description", ""))
            kind = kind.type
        elif isinstance(kind, inspect.UnionType):
            kind = next(member for member in kind.types if not isinstance(member, inspect.NoneType))
        else:
            return kind, about


def default_of(field: inspect.Field) -> str:
    """Say what holds where a key is left out."""
    if field.required:
        return "required"
    value = field.default
    if value is None or value is msgspec.NODEFAULT or isinstance(value, msgspec.Struct) or value == ():
        return "–"
    if isinstance(value, bool):
        return "`true`" if value else "`false`"
    if isinstance(value, tuple):
        return ", ".join(f"`{each}`" for each in value)
    return f"`{getattr(value, 'kind', value)}`"
