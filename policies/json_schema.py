"""The policy document as a JSON Schema, for editors. What it allows is what types and patterns can say: names that lead
nowhere and limits that contradict each other are found by `penstock check`.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from policies.amount import DECIMAL, MAX_PRICE, MOMENT, RATE, SPENDING, Amount, Moment, Rate, Spending, TokenPrice
from policies.key import KEY_HASH, KeyHash
from policies.schema import Document

# How classes that are read from text look to an editor, whose YAML has numbers.
WRITTEN: Mapping[type, Mapping[str, Any]] = MappingProxyType(
    {
        Rate: {"type": "string", "pattern": RATE},
        Spending: {"type": "string", "pattern": SPENDING},
        Moment: {"type": "string", "pattern": MOMENT},
        KeyHash: {"type": "string", "pattern": KEY_HASH},
        TokenPrice: {"type": ["number", "string"], "minimum": 0, "maximum": MAX_PRICE, "pattern": f"^{DECIMAL}$"},
        Amount: {"type": ["number", "string"], "exclusiveMinimum": 0, "pattern": f"^{DECIMAL}$"},
    }
)


def json_schema() -> dict[str, Any]:
    """Give the schema, in the 2020-12 dialect."""
    (root,), components = msgspec.json.schema_components([Document], ref_template="#/$defs/{name}")
    for written, schema in WRITTEN.items():
        about = (written.__doc__ or "").partition("\n")[0]
        components[written.__name__] = {"title": written.__name__, "description": about, **schema}
    named: set[str] = set()
    _collect(root, components, named)
    definitions = {name: components[name] for name in sorted(named)}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$ref": root["$ref"], "$defs": definitions}


def _collect(schema: Any, components: Mapping[str, Any], named: set[str]) -> None:
    """Find the components that a schema leads to: what texts are made of is none of an editor's business."""
    if isinstance(schema, dict):
        name = str(schema.get("$ref", "")).rpartition("/")[2]
        if name and name not in named:
            named.add(name)
            _collect(components[name], components, named)
    for part in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list | tuple) else ():
        _collect(part, components, named)
