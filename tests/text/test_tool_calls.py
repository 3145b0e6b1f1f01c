"""Calls come out of text whole, text stays text, and pieces give what the whole gives."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.text.tool_calls import ToolCall, ToolCallStream, split_tool_calls

OSLO = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
CALL = ToolCall("get_weather", '{"city": "Oslo"}')


def streamed(text: str, cuts: list[int]) -> tuple[str, list[ToolCall]]:
    stream = ToolCallStream()
    places = [0, *sorted(cuts), len(text)]
    parts = [part for a, b in pairwise(places) for part in stream.push(text[a:b])]
    parts += stream.finish()
    return "".join(p for p in parts if isinstance(p, str)), [p for p in parts if isinstance(p, ToolCall)]


def test_a_call_is_read() -> None:
    assert split_tool_calls(OSLO) == ("", [CALL])


def test_white_space_around_calls_belongs_to_the_markup() -> None:
    assert split_tool_calls(f"I look.\n\n{OSLO}\n{OSLO}\n") == ("I look.", [CALL, CALL])
    assert split_tool_calls(f"{OSLO}\n\nDone. ") == ("Done. ", [CALL])


@pytest.mark.parametrize("text", ["", " ", "\n", "a", " a ", "a < b", "<tool", "<tool_call", "</tool_call>", "a\n\n"])
def test_a_text_without_a_call_stays_as_it_is(text: str) -> None:
    assert split_tool_calls(text) == (text, [])
    assert streamed(text, list(range(len(text)))) == (text, [])


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>not json</tool_call> and more",
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "", "arguments": {}}</tool_call>',
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"x": NaN}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"x": "\\ud800"}}</tool_call>',
        '<tool_call>{"name": "f"',
        '<tool_call>{"name": "f", "arguments": {"x": "unfinished',
        "  <tool_call>",
        "say <tool_call> to call",
    ],
)
def test_what_is_no_call_is_left_as_text(text: str) -> None:
    assert split_tool_calls(text) == (text, [])
    assert streamed(text, list(range(len(text)))) == (text, [])


def test_a_tag_that_is_only_mentioned_does_not_hide_a_call() -> None:
    assert split_tool_calls(f"`<tool_call>` opens. {OSLO}") == ("`<tool_call>` opens.", [CALL])
    assert split_tool_calls('<tool_call>{"a": 1 ' + OSLO) == ('<tool_call>{"a": 1 ', [CALL])


def test_tags_in_the_strings_of_arguments_mean_nothing() -> None:
    arguments = {"html": 'a "quoted" </tool_call> <tool_call> \\'}
    text = f"<tool_call>{json.dumps({'name': 'f', 'arguments': arguments})}</tool_call>"

    for cuts in ([], list(range(len(text)))):
        assert streamed(text, cuts) == ("", [ToolCall("f", json.dumps(arguments))])


def test_a_call_whose_closing_tag_never_came_counts_if_it_is_whole() -> None:
    assert split_tool_calls('<tool_call>{"name": "f", "arguments": {}}') == ("", [ToolCall("f", "{}")])
    assert split_tool_calls('<tool_call>{"name": "f"}</tool_') == ('<tool_call>{"name": "f"}</tool_', [])


def test_no_markup_leaks_before_the_call_is_known() -> None:
    stream = ToolCallStream()
    out = [part for character in f"Well. {OSLO}" for part in stream.push(character)]

    assert [part for part in out if isinstance(part, ToolCall)] == [CALL]
    assert "".join(part for part in out if isinstance(part, str)) == "Well."


FRAGMENTS = ["<tool_call>", "</tool_call>", OSLO, "{", '"', "\\", "text", " ", "\n", '{"name": "f"}', "<", "tool_call>"]


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=8), st.lists(st.integers(0, 400), max_size=8))
def test_pieces_give_what_the_whole_gives(fragments: list[str], places: list[int]) -> None:
    text = "".join(fragments)
    whole = split_tool_calls(text)

    assert streamed(text, [min(place, len(text)) for place in places]) == whole
    assert streamed(text, list(range(len(text)))) == whole
