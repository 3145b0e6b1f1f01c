"""JSON read so that there is one reading of it: RFC 8259 to the letter, no key twice, bounded depth.

The body is forwarded as it came, so whatever we read in it the upstream must read too. Two parsers differ in what
RFC 8259 leaves open: which of two equal keys counts, what NaN or half a surrogate pair is, how deep is too deep. All
of that is refused here, before anything is decided on it.

msgspec's untyped decoder is strict about the grammar, UTF-8, surrogates and numbers. What it leaves is told by
counting: an object's keys are the only thing that a colon outside a string can follow, so a body has a key twice
exactly when it has more such colons than the decoded tree has keys. Most bodies have no colon within a string and need
no second look.
"""

import re
from collections.abc import Iterable

import msgspec

from gateway.call import Json
from gateway.errors import BadRequest

MAX_DEPTH = 128

_decode = msgspec.json.Decoder().decode
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse_object(body: bytes) -> dict[str, Json]:
    """Decode a body that must be one JSON object. Raises `BadRequest`. About 2 µs for 200 bytes."""
    if not body:
        raise BadRequest("The request has no body; a JSON object was expected.")
    try:
        tree: Json = _decode(body)
    except UnicodeDecodeError as error:
        raise BadRequest(f"The body is not UTF-8: {error.reason}.") from None
    except RecursionError:
        raise _too_deep() from None
    except msgspec.DecodeError as error:
        reason = "half a surrogate pair" if _SURROGATE.search(body) else str(error).removeprefix("JSON is malformed: ")
        raise BadRequest(f"The body is not valid JSON: {reason}.") from None
    if type(tree) is not dict:
        raise BadRequest(f"The body must be a JSON object, not {_kind(tree)}.")
    num_keys = _count_keys(tree)
    if num_keys != body.count(b":") and num_keys != _outside_strings(body).count(b":"):
        raise BadRequest("The body holds an object with the same key twice.")
    return tree


def _count_keys(tree: dict[str, Json]) -> int:
    """Count the keys of all objects, level by level. Raises `BadRequest` below `MAX_DEPTH` levels."""
    num_keys = 0
    level: list[dict[str, Json] | list[Json]] = [tree]
    for _ in range(MAX_DEPTH):
        below: list[dict[str, Json] | list[Json]] = []
        for node in level:
            if type(node) is dict:
                num_keys += len(node)
                children: Iterable[Json] = node.values()
            else:
                children = node
            for child in children:
                if type(child) is dict or type(child) is list:
                    below.append(child)  # noqa: PERF401 (up to Python 3.11 a comprehension is a call of its own)
        if not below:
            return num_keys
        level = below
    raise _too_deep()


def _outside_strings(body: bytes) -> bytes:
    """Give what stands between the strings of valid JSON: with escapes gone, every other piece between quotes."""
    return b"".join(body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])


def _too_deep() -> BadRequest:
    return BadRequest(f"The body is nested more than {MAX_DEPTH} levels deep.")


def _kind(value: Json) -> str:
    if value is None:
        return "null"
    return {list: "an array", str: "a string", bool: "a boolean"}.get(type(value), "a number")
