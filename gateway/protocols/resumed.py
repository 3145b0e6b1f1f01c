"""Going on, in our own words, in a stream of OpenAI's kind that was forwarded as an upstream wrote it."""

import re

import msgspec

from gateway.call import Call, Event, Json, Operation
from gateway.protocols.sse import DONE, Frame, answer_head

_EVENT = re.compile(rb"^data: ?(\{.*\})\s*$", re.MULTILINE)
_json = msgspec.json.Encoder().encode


class Head(msgspec.Struct, omit_defaults=True):
    """What every chunk of a stream repeats."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str | None = None


class ResumedStream:
    """Ends the choices of a stream under the name that the upstream gave it. `last` are the last bytes forwarded."""

    def __init__(self, call: Call, last: bytes) -> None:
        self._frame = Frame(call, head_of(call, last))
        self._gains = b'"delta":{}' if call.request.operation is Operation.CHAT else b'"text":""'

    def encode(self, event: Event) -> bytes:
        """Give the chunk that ends a choice."""
        finish = _json(event.finish)
        return b'%b{"index":%d,%b,"logprobs":null,"finish_reason":%b}%b' % (
            self._frame.before,
            event.index,
            self._gains,
            finish,
            self._frame.behind(event),
        )

    def end(self) -> bytes:
        return self._frame.usage_event() + DONE


def head_of(call: Call, last: bytes) -> dict[str, Json]:
    """Give what the stream's chunks begin with; one of our own where nothing usable came before."""
    events = _EVENT.findall(last)
    try:
        head: dict[str, Json] = msgspec.to_builtins(msgspec.json.decode(events[-1], type=Head))
    except (IndexError, msgspec.DecodeError, UnicodeDecodeError):
        if call.request.operation is Operation.CHAT:
            return answer_head(call, "chatcmpl", "chat.completion.chunk", call.model.created)
        return answer_head(call, "cmpl", "text_completion", call.model.created)
    return head
