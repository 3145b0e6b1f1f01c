"""JSON has one reading, or is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import BadRequest
from gateway.protocols.strict_json import MAX_DEPTH, parse_object

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=30,
)


@given(tree=st.dictionaries(st.text(), JSON), ascii_only=st.booleans())
def test_valid_json_is_read_as_it_stands(tree: dict[str, object], ascii_only: bool) -> None:
    body = json.dumps(tree, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")

    assert parse_object(body) == json.loads(body)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "no body"),
        (b"  ", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"a":1}x', "trailing"),
        (b'{"a":1,}', "trailing comma"),
        (b"{'a':1}", "not valid JSON"),
        (b'{"a":NaN}', "not valid JSON"),
        (b'{"a":Infinity}', "not valid JSON"),
        (b'{"a":01}', "not valid JSON"),
        (b'{"a":1e999}', "not valid JSON"),
        (b'{"a":"\x01"}', "not valid JSON"),
        (b'{"a":"\\ud800"}', "surrogate"),
        (b'{"a":"\\udc00\\ud800"}', "surrogate"),
        (b'{"\\ud800":1}', "surrogate"),
        (b'{"a":"\xff"}', "not UTF-8"),
        (b'{"a":"\xed\xa0\x80"}', "not UTF-8"),
        (b"\xef\xbb\xbf{}", "not valid JSON"),
        (b'{"a":' + b"9" * 100_000 + b"}", "not valid JSON"),
        (b"[]", "an array"),
        (b"null", "null"),
        (b'"x"', "a string"),
        (b"true", "a boolean"),
        (b"1", "a number"),
    ],
)
def test_what_is_no_json_object_is_refused_with_the_reason(body: bytes, told: str) -> None:
    with pytest.raises(BadRequest, match=told):
        parse_object(body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":1,"a":2}',
        b'{"a":1,"a" :2}',
        b'{"a":1,"a"\n\t:2}',
        b'{"a":{"b":1,"b":1}}',
        b'{"a":[{"b":1},{"c":1,"c":2}]}',
        b'{"\\u0061":1,"a":2}',
        b'{"a":"x:y","b":":","a":2}',
        b'{"a\\\\":1,"a\\\\":2}',
        b'{"a\\"":1,"a\\"":2}',
        b'{"model":"cheap","messages":[],"model":"dear"}',
    ],
)
def test_a_key_that_stands_twice_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest, match="same key twice"):
        parse_object(body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":"\\":\\":","b":1}',
        b'{"a":"{\\"b\\":1,\\"b\\":2}"}',
        b'{"a\\\\":":","b":"\\\\"}',
        b'{"a":{"b":1},"c":{"b":1}}',
    ],
)
def test_colons_and_quotes_within_strings_are_no_keys(body: bytes) -> None:
    assert parse_object(body) == json.loads(body)


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
@pytest.mark.parametrize("depth", [MAX_DEPTH, MAX_DEPTH + 1, 1_000, 100_000])
def test_nesting_is_bounded(opening: bytes, depth: int) -> None:
    closing = b"]" if opening == b"[" else b"}"
    body = b'{"a":' + opening * (depth - 1) + b"1" + closing * (depth - 1) + b"}"

    if depth <= MAX_DEPTH:
        assert parse_object(body)
    else:
        with pytest.raises(BadRequest, match="nested"):
            parse_object(body)


def test_brackets_within_strings_are_no_nesting() -> None:
    body = json.dumps({"a": "[" * 10_000, "b": [{"c": "{" * 10_000}] * 300}).encode()

    assert parse_object(body)["a"] == "[" * 10_000
