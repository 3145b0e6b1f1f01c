"""One field changes, and not a byte besides."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocols.strict_json import parse_object
from gateway.upstreams.splice import find_value, put_field, rename_model

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.just("model") | st.just('"model":"x"'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.just("model"), inner, max_size=3),
    max_leaves=15,
)
LAYOUTS = st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t:\r\n ")])


@given(
    before=st.dictionaries(st.text(), JSON, max_size=3),
    after=st.dictionaries(st.text(), JSON, max_size=3),
    name=st.text(),
    to=st.text(),
    layout=LAYOUTS,
    ascii_only=st.booleans(),
)
def test_a_renamed_model_leaves_every_other_byte(
    before: dict[str, object],
    after: dict[str, object],
    name: str,
    to: str,
    layout: tuple[str, str],
    ascii_only: bool,
) -> None:
    tree = {**before, "model": None} | after
    tree["model"] = name
    body = json.dumps(tree, separators=layout, ensure_ascii=ascii_only).encode()
    span = find_value(body, "model")

    assert span is not None
    assert json.loads(body[span[0] : span[1]]) == name
    renamed = rename_model(body, to)
    assert renamed.startswith(body[: span[0]])
    assert renamed.endswith(body[span[1] :])
    assert parse_object(renamed) == tree | {"model": to}


@pytest.mark.parametrize(
    ("body", "renamed"),
    [
        (b'{"model":"a"}', b'{"model":"new"}'),
        (
            b' { "x" : 1.50 , "model"\n:\t"a" , "y" : "\xc3\xa9" } ',
            b' { "x" : 1.50 , "model"\n:\t"new" , "y" : "\xc3\xa9" } ',
        ),
        (b'{"mod\\u0065l":"a"}', b'{"mod\\u0065l":"new"}'),
        (b'{"a":{"model":"b"},"model":"a"}', b'{"a":{"model":"b"},"model":"new"}'),
        (b'{"a":{"model":"b"},"mod\\u0065l":"a"}', b'{"a":{"model":"b"},"mod\\u0065l":"new"}'),
        (b'{"a \\"model":"b","model":"a"}', b'{"a \\"model":"b","model":"new"}'),
        (b'{"x":"\\"model\\":\\"b\\"","model":"a"}', b'{"x":"\\"model\\":\\"b\\"","model":"new"}'),
        (b'{"x":"model","model":"a\\"}\\\\"}', b'{"x":"model","model":"new"}'),
        (b'{"x":["model","b"],"model":"a","z":[]}', b'{"x":["model","b"],"model":"new","z":[]}'),
    ],
)
def test_the_right_model_is_renamed(body: bytes, renamed: bytes) -> None:
    assert rename_model(body, "new") == renamed


@pytest.mark.parametrize(
    ("body", "written"),
    [
        (b'{"model":"a"}', b'{"stream_options":{"include_usage":true},"model":"a"}'),
        (b'{"stream_options":null,"a":1}', b'{"stream_options":{"include_usage":true},"a":1}'),
        (b'{"a":1,"stream_options" : {"x":[1,{}]} }', b'{"a":1,"stream_options" : {"include_usage":true} }'),
        (b"{ }", b'{"stream_options":{"include_usage":true} }'),
    ],
)
def test_a_field_is_set_in_its_place_or_at_the_front(body: bytes, written: bytes) -> None:
    assert put_field(body, "stream_options", {"include_usage": True}) == written


def test_a_field_that_is_not_there_is_not_found() -> None:
    assert find_value(b'{"a":{"b":1},"c":"b"}', "b") is None
