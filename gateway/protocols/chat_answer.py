"""POST /v1/chat/completions, the way out: events into chat objects, whole or streamed.

Both ways run the same `Voice` over a choice's text, so a stream says what the whole answer says: the first chunk names
the role, further ones bring content or tool calls, the last one the reason for the end.
"""

from collections.abc import Sequence

import msgspec

from engine.text.tool_calls import ToolCall, ToolCallStream
from gateway.call import Call, ChatPrompt, Event, FinishReason, Json, TokenLogprob
from gateway.identifier import new_id
from gateway.protocols.sse import DONE, Frame, answer_head, limit_json, usage_json
from gateway.protocols.token_logprobs import chat_logprobs

_json = msgspec.json.Encoder().encode

ROLE = b'"delta":{"role":"assistant","content":"","refusal":null},"logprobs":null,"finish_reason":null}'


class Voice:
    """What one choice says: its text, with tool calls told apart where the request offered tools."""

    def __init__(self, call: Call) -> None:
        prompt = call.request.prompt
        offered = isinstance(prompt, ChatPrompt) and prompt.tools and prompt.tool_choice != "none"
        self._calls = ToolCallStream() if offered else None
        self.called = 0

    def hear(self, event: Event) -> Sequence[str | ToolCall]:
        """Give what has become certain with this event."""
        if self._calls is None:
            return (event.text,) if event.text else ()
        parts = self._calls.push(event.text)
        if event.finish is not None:
            parts += self._calls.finish()
        self.called += sum(isinstance(part, ToolCall) for part in parts)
        return parts

    def finish(self, reason: FinishReason) -> FinishReason:
        """Give the reason for the end as the caller shall see it."""
        return FinishReason.TOOL_CALLS if self.called and reason is FinishReason.STOP else reason


class StreamedChoice:
    """One choice of a stream: its voice, the bytes before its content, log-probabilities that wait for their text."""

    __slots__ = ("calls_sent", "content", "numbered", "pending", "voice")

    def __init__(self, call: Call, before: bytes, index: int) -> None:
        self.voice = Voice(call)
        self.numbered = b'%b{"index":%d,' % (before, index)
        self.content = self.numbered + b'"delta":{"content":'
        self.calls_sent = 0
        self.pending: list[TokenLogprob] = []


class ChatStream:
    """Encodes one streamed chat. About 1 µs an event without log-probabilities."""

    def __init__(self, call: Call, created: int) -> None:
        self._call = call
        self._frame = Frame(call, answer_head(call, "chatcmpl", "chat.completion.chunk", created))
        self._choices: dict[int, StreamedChoice] = {}

    def encode(self, event: Event) -> bytes:
        after = self._frame.after
        choice = self._choices.get(event.index)
        out = b""
        if choice is None:
            choice = self._choices[event.index] = StreamedChoice(self._call, self._frame.before, event.index)
            out = choice.numbered + ROLE + after
        if event.logprobs:
            choice.pending += event.logprobs
        for part in choice.voice.hear(event):
            if isinstance(part, str):
                logprobs = self._logprobs(choice)
                out += b'%b%b},"logprobs":%b,"finish_reason":null}%b' % (choice.content, _json(part), logprobs, after)
            else:
                delta = _json({"tool_calls": [{"index": choice.calls_sent, **tool_call_json(part)}]})
                choice.calls_sent += 1
                out += b'%b"delta":%b,"logprobs":null,"finish_reason":null}%b' % (choice.numbered, delta, after)
        if event.finish is not None:
            finish = _json(choice.voice.finish(event.finish))
            logprobs = self._logprobs(choice)
            after = self._frame.behind(event)
            out += b'%b"delta":{},"logprobs":%b,"finish_reason":%b}%b' % (choice.numbered, logprobs, finish, after)
        return out

    def end(self) -> bytes:
        return self._frame.usage_event() + DONE

    def _logprobs(self, choice: StreamedChoice) -> bytes:
        encoder = self._call.model.encoder
        if not choice.pending or encoder is None:
            return b"null"
        entries, choice.pending = choice.pending, []
        return _json(chat_logprobs(encoder, entries))


class ChatWhole:
    """Gathers one chat."""

    def __init__(self, call: Call, created: int) -> None:
        self._call = call
        self._created = created
        self._voices: dict[int, Voice] = {}
        self._parts: dict[int, list[str | ToolCall]] = {}
        self._logprobs: dict[int, list[TokenLogprob]] = {}
        self._finishes: dict[int, FinishReason] = {}
        self._limit: str | None = None

    def add(self, event: Event) -> None:
        voice = self._voices.get(event.index)
        if voice is None:
            voice = self._voices[event.index] = Voice(self._call)
            self._parts[event.index] = []
            self._logprobs[event.index] = []
        self._parts[event.index] += voice.hear(event)
        self._logprobs[event.index] += event.logprobs
        if event.finish is not None:
            self._finishes[event.index] = voice.finish(event.finish)
            self._limit = event.limit or self._limit

    def body(self) -> bytes:
        return _json(
            {
                **answer_head(self._call, "chatcmpl", "chat.completion", self._created),
                "choices": [self._choice(index) for index in sorted(self._parts)],
                "usage": usage_json(self._call),
                **({} if self._limit is None else {"penstock": limit_json(self._limit)}),
            }
        )

    def _choice(self, index: int) -> dict[str, Json]:
        parts = self._parts[index]
        text = "".join(part for part in parts if isinstance(part, str))
        calls: list[Json] = [tool_call_json(part) for part in parts if isinstance(part, ToolCall)]
        message: dict[str, Json] = {"role": "assistant", "content": text or None if calls else text, "refusal": None}
        if calls:
            message["tool_calls"] = calls
        encoder, wanted = self._call.model.encoder, self._call.request.sampling.logprobs is not None
        return {
            "index": index,
            "message": message,
            "logprobs": chat_logprobs(encoder, self._logprobs[index]) if wanted and encoder is not None else None,
            "finish_reason": self._finishes.get(index),
        }


def tool_call_json(call: ToolCall) -> dict[str, Json]:
    """Tell a tool call in OpenAI's words, under a new name."""
    told: dict[str, Json] = {"name": call.name, "arguments": call.arguments}
    return {"id": f"call_{new_id()}", "type": "function", "function": told}
