"""What OpenAI's two kinds of stream share: the frame around each chunk, the chunk of usage, the end."""

import msgspec

from gateway.call import Call, Event, Json
from gateway.generation import usage_of
from gateway.identifier import new_id

DONE = b"data: [DONE]\n\n"

_json = msgspec.json.Encoder().encode


class Frame:
    """The bytes before and after the choices of each chunk, made once per stream."""

    def __init__(self, call: Call, head: dict[str, Json]) -> None:
        self._call = call
        self._head = b"data: " + _json(head)[:-1]
        self.before = self._head + b',"choices":['
        # With usage asked for, every chunk but the last says that it has none, as OpenAI's do.
        self.after = b'],"usage":null}\n\n' if call.request.include_usage else b"]}\n\n"
        self._limited = False

    def behind(self, event: Event) -> bytes:
        """Give the bytes after a choice that ended.

        Where a quota ended it they name the limit. A stream that one was ended in tells its usage in any case: with
        nobody having asked for the chunk without choices, which many clients stumble over, the last one has it.
        """
        limit = b"" if event.limit is None else b',"penstock":%b' % _json(limit_json(event.limit))
        self._limited = self._limited or event.limit is not None
        if not self._limited:
            return self.after
        if self._call.request.include_usage:
            usage = b',"usage":null'
        else:
            usage = b"" if event.usage is None else b',"usage":%b' % _json(usage_json(self._call))
        return b"]%b%b}\n\n" % (usage, limit)

    def usage_event(self) -> bytes:
        """Give the chunk that has no choices, empty where nobody asked."""
        if not self._call.request.include_usage:
            return b""
        return b'%b,"choices":[],"usage":%b}\n\n' % (self._head, _json(usage_json(self._call)))


def limit_json(key: str) -> dict[str, Json]:
    """Name the limit that ended an answer: the value of our own field `penstock` beside `finish_reason`."""
    return {"limit": key}


def answer_head(call: Call, prefix: str, kind: str, created: int) -> dict[str, Json]:
    """Give what an answer, and each chunk of it, begins with."""
    return {
        "id": f"{prefix}-{new_id()}",
        "object": kind,
        "created": created,
        "model": call.model.name,
        "system_fingerprint": call.model.fingerprint,
    }


def usage_json(call: Call) -> dict[str, Json]:
    """Tell a call's usage in OpenAI's words."""
    usage = usage_of(call)
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
    }
