"""Event streams as upstreams write them, well and badly: each as bytes, to be cut anywhere."""

from collections.abc import Callable, Iterator
from itertools import product

EVENT = '{"choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":null}]}'
LAST = '{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}'
USAGE = '{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}'
DONE = "[DONE]"

LINE_ENDS = {"LF": "\n", "CRLF": "\r\n", "CR": "\r"}
FIELDS: dict[str, Callable[[str], list[str]]] = {
    "a space": lambda data: [f"data: {data}"],
    "no space": lambda data: [f"data:{data}"],
    "two lines": lambda data: [f"data: {data[:1]}", f"data: {data[1:]}"] if data != DONE else [f"data: {data}"],
    "other fields": lambda data: ["event: message", f"data: {data}", "id: 7", "retry: 10", "nonsense"],
}
BETWEEN = {"nothing": [], "comments": [": still here", ""]}
MARKS = {"no mark": b"", "a mark": b"\xef\xbb\xbf"}
ENDINGS = {"done": [DONE], "usage and done": [USAGE, DONE], "done twice": [DONE, DONE], "no done": []}


def sound() -> Iterator[tuple[str, bytes]]:
    """Everything that the standard allows and some servers do, with characters of one to four bytes."""
    for end, form, between, mark, ending in product(LINE_ENDS, FIELDS, BETWEEN, MARKS, ENDINGS):
        lines: list[str] = []
        for data in (EVENT % "a", EVENT % "é…😀", LAST, *ENDINGS[ending]):
            lines += [*BETWEEN[between], *FIELDS[form](data), ""]
        yield (
            ", ".join((end, form, between, mark, ending)),
            MARKS[mark] + "".join(line + LINE_ENDS[end] for line in lines).encode(),
        )


def _after(garbage: bytes) -> bytes:
    return f"data: {EVENT % 'a'}\n\n".encode() + garbage


BROKEN: dict[str, bytes] = {
    "nothing": b"",
    "blank lines": b"\n\n\n\n",
    "comments alone": b": one\n\n: two\n\n",
    "a page": b"<html><body>Bad Gateway</body></html>",
    "JSON and no stream": b'{"choices":[]}',
    "compressed": b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff",
    "zeros": b"\x00" * 64,
    "no end": _after(b""),
    "cut in an event": _after(b'data: {"choices":[{"ind'),
    "cut in a character": _after(b'data: {"choices":[{"index":0,"delta":{"content":"\xc3'),
    "cut behind the colon": _after(b"data:"),
    "a word": _after(b"data: oops\n\n"),
    "a list": _after(b"data: []\n\n"),
    "a number": _after(b"data: 5\n\n"),
    "null": _after(b"data: null\n\n"),
    "choices of a wrong kind": _after(b'data: {"choices":5}\n\n'),
    "usage of a wrong kind": _after(b'data: {"usage":"much"}\n\n'),
    "not a number": _after(b'data: {"a":NaN}\n\n'),
    "an open brace": _after(b'data: {"choices":\n\n'),
    "no UTF-8": _after(b'data: {"choices":[{"delta":{"content":"\xff"}}]}\n\n'),
    "half a pair": _after(b'data: {"choices":[{"delta":{"content":"\xed\xa0\x80"}}]}\n\n'),
    "UTF-16": "data: {}\n\n".encode("utf-16"),
    "deep": _after(b"data: " + b"[" * 5_000 + b"\n\n"),
    "a long line": _after(b"data: " + b"x" * 1_100_000),
    "many lines of one event": _after(b"data: x\n" * 150_000),
    "an error": _after(b'data: {"error":{"message":"broke","type":"server_error","code":null}}\n\n'),
    "an error of one word": _after(b'data: {"error":"broke"}\n\n'),
    "an error with a name": _after(b'event: error\ndata: {"error":{"message":"broke"}}\n\n'),
    "done in lower case": _after(b"data: [done]\n\n"),
}
