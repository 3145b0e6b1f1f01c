"""Tool calls out of a model's text, in the format of Hermes and Qwen:

    <tool_call>
    {"name": "get_weather", "arguments": {"city": "Oslo"}}
    </tool_call>

A call goes out whole: only its end tells whether it is one. What is not (broken JSON, no name) was text and goes out as
text, markup included. White space around calls belongs to the markup. Reading in pieces gives the same as reading at
once.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_SPACE = " \t\r\n"
# What matters on the way through JSON to the closing tag. In a string a tag means nothing.
_OUTSIDE_STRING = re.compile(f'"|{_OPEN}|{_CLOSE}')
_FIRST = re.compile(f"[^{_SPACE}]")
_INSIDE_STRING = re.compile(r'\\.|"', re.DOTALL)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call that the model asks for. `arguments` is the text of a JSON object, as OpenAI has it."""

    name: str
    arguments: str


class ToolCallStream:
    """Separates one answer's text from its calls. `push` and `finish` give what has become certain, in order."""

    def __init__(self) -> None:
        self._held = ""  # outside a call: white space, the beginning of a tag; inside: the same, the tag and its body
        self._body = 0  # where in `_held` the body of a call begins; 0 is outside
        self._read = 0  # how far the body was read
        self._in_string = False
        self._after_call = False

    def push(self, text: str) -> list[str | ToolCall]:
        """Read more text."""
        self._held += text
        out: list[str | ToolCall] = []
        while self._close(out) if self._body else self._open(out):
            pass
        return _joined(out)

    def finish(self) -> list[str | ToolCall]:
        """The text is over: give what was held. A last call without its closing tag counts if its JSON is whole."""
        call = _parsed(self._held[self._body :]) if self._body else None
        out: list[str | ToolCall] = [call or (self._held.lstrip(_SPACE) if self._after_call else self._held)]
        self._held, self._body = "", 0
        return _joined(out)

    def _open(self, out: list[str | ToolCall]) -> bool:
        """Give the text before a call, or as much of it as no call can claim; whether a call begins."""
        if self._after_call:
            self._held = self._held.lstrip(_SPACE)
        place = self._held.find(_OPEN)
        claimed = len(self._held) - place if place >= 0 else _beginning(self._held, _OPEN)
        sure = len(self._held[: len(self._held) - claimed].rstrip(_SPACE))
        self._let_go(sure, out)
        if place >= 0:
            self._enter(place - sure)
        return place >= 0

    def _close(self, out: list[str | ToolCall]) -> bool:
        """Give the call if its end has come, or the text if it is none; whether either happened."""
        first = _FIRST.search(self._held, self._body)
        if first is not None and first.group() != "{":
            return self._leave_as_text(self._body, out)
        tag = self._next_tag()
        if tag is None:
            return False
        if tag.group() == _OPEN:
            return self._leave_as_text(tag.start(), out)
        call = _parsed(self._held[self._body : tag.start()])
        if call is None:
            return self._leave_as_text(tag.end(), out)
        out.append(call)
        self._held, self._body, self._after_call = self._held[tag.end() :], 0, True
        return True

    def _next_tag(self) -> re.Match[str] | None:
        """The next tag outside JSON's strings. Each character is read once."""
        while True:
            found = (_INSIDE_STRING if self._in_string else _OUTSIDE_STRING).search(self._held, self._read)
            if found is None:
                unread = self._held.endswith("\\") if self._in_string else len(_CLOSE) - 1
                self._read = max(self._read, len(self._held) - unread)
                return None
            self._read = found.end()
            if found.group() == '"':
                self._in_string = not self._in_string
            elif not self._in_string:
                return found

    def _enter(self, place: int) -> None:
        self._body = self._read = place + len(_OPEN)
        self._in_string = False

    def _leave_as_text(self, end: int, out: list[str | ToolCall]) -> bool:
        self._body = 0
        self._let_go(end, out)
        return True

    def _let_go(self, end: int, out: list[str | ToolCall]) -> None:
        if end:
            out.append(self._held[:end])
            self._held = self._held[end:]
            self._after_call = False


def split_tool_calls(text: str) -> tuple[str, list[ToolCall]]:
    """A whole answer's text without its calls, and the calls."""
    stream = ToolCallStream()
    parts = stream.push(text) + stream.finish()
    return "".join(part for part in parts if isinstance(part, str)), [
        part for part in parts if isinstance(part, ToolCall)
    ]


def _beginning(text: str, tag: str) -> int:
    """How long the suffix of a text is that begins a tag."""
    return next((length for length in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:length])), 0)


def _parsed(body: str) -> ToolCall | None:
    try:
        match json.loads(body, parse_constant=_refuse):
            case {"name": str(name), **rest} if name and isinstance(arguments := rest.get("arguments", {}), dict):
                call = ToolCall(name, json.dumps(arguments, ensure_ascii=False))
                (call.name + call.arguments).encode()  # a lone surrogate, escaped in JSON, is not text
                return call
    except (ValueError, RecursionError):
        pass
    return None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _joined(parts: Sequence[str | ToolCall]) -> list[str | ToolCall]:
    """Neighbouring texts as one, empty ones left out."""
    joined: list[str | ToolCall] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        elif part:
            joined.append(part)
    return joined
