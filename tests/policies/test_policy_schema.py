"""The JSON Schema for editors and the reference are written from the structs, and agree with what is read."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest

from gateway.cli import main
from gateway.configuration.policy_reference import describe_policies
from policies.compile import Source, compile_policy
from policies.document import DocumentError, Listing, Mapping, Node, parse
from policies.json_schema import json_schema

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "policies" / "examples").glob("*.yaml"))
NUMBER = re.compile(r"-?[0-9][0-9_]*(\.[0-9]+)?")
HASH = "blake2b:" + "A" * 43


def values(node: Node) -> Any:
    """Give a document as an editor sees it: plain numbers and booleans are such, everything else is text."""
    if isinstance(node, Mapping):
        return {key: values(item) for key, item in node.items.items()}
    if isinstance(node, Listing):
        return [values(item) for item in node.items]
    if not node.plain:
        return node.text
    if node.empty:
        return None
    if NUMBER.fullmatch(node.text):
        return float(node.text) if "." in node.text else int(node.text)
    return {"true": True, "false": False}.get(node.text, node.text)


def accepted(text: str) -> bool:
    validator = jsonschema.Draft202012Validator(json_schema())
    return bool(validator.is_valid(values(parse(text, "p.yaml"))))


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_keep_to_the_schema(path: Path) -> None:
    assert accepted(path.read_text())


@pytest.mark.parametrize(
    "text",
    [
        "unknown: 1",
        "organisations: {acme: {tenants: {web: {limit: []}}}}",
        "organisations: {acme/search: {}}",
        "organisations: {acme: {limits: [{requests: -1/min}]}}",
        "organisations: {acme: {limits: [{requests: 1/fortnight}]}}",
        "organisations: {acme: {limits: [{requests: 1.5/min}]}}",
        "organisations: {acme: {limits: [{concurrency: 0}]}}",
        "organisations: {acme: {limits: [{concurrency: 1, burst: 0}]}}",
        "organisations: {acme: {limits: {concurrency: 1}}}",
        "organisations: {acme: {priority: highest}}",
        "organisations: {acme: {max_output_tokens: 100}}",
        "organisations: {acme: {tenants: {web: {keys: {web.1: {hash: '" + HASH + "'}}}}}}",
        "organisations: {acme: {tenants: {web: {keys: {web-1: {}}}}}}",
        "organisations: {acme: {tenants: {web: {keys: {web-1: {hash: secret}}}}}}",
        "organisations: {acme: {tenants: {web: {keys: {web-1: {hash: '" + HASH + "', expires: tomorrow}}}}}}",
        "prices: {demo: {input: 1}}",
        "prices: {demo: {input: -1, output: 1}}",
        "prices: {demo: {input: 1, output: 10_001}}",
        "issuers: {https://id: {audiences: [], jwks: a, organisation: acme}}",
        "issuers: {https://id: {audiences: [a], jwks: a, algorithms: [none]}}",
        "issuers: {https://id: {audiences: [a], jwks: a, algorithms: [HS256]}}",
        "issuers: {id: {audiences: [a], jwks: a}}",
    ],
)
def test_what_an_editor_marks_is_refused_when_it_is_read_too(text: str) -> None:
    with pytest.raises(DocumentError):
        compile_policy([Source("p.yaml", text)])

    assert not accepted(text)


def test_the_reference_is_what_the_schema_says(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["settings", "--policies"])

    assert status == 0
    assert capsys.readouterr().out == describe_policies() == (ROOT / "docs" / "policies.md").read_text()


def test_the_command_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["schema"])

    assert status == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(json_schema()))


def test_everything_that_can_be_written_is_explained() -> None:
    def described(schema: dict[str, Any]) -> bool:
        return "description" in schema or "$ref" in schema or any(described(each) for each in schema.get("anyOf", ()))

    silent = [
        (name, key)
        for name, section in json_schema()["$defs"].items()
        for key, schema in section.get("properties", {}).items()
        if not described(schema)
    ]

    assert silent == []
    assert all(section.get("description") for section in json_schema()["$defs"].values())
