"""POST /v1/completions, the way out: events into `text_completion` objects, whole or streamed."""

from collections.abc import Sequence

import msgspec

from gateway.call import Call, Event, FinishReason, Json, TextPrompt, TokenLogprob
from gateway.protocols.sse import DONE, Frame, answer_head, limit_json, usage_json
from gateway.protocols.token_logprobs import CompletionLogprobs

_json = msgspec.json.Encoder().encode


class Choice:
    """What a choice shows besides its events: the echoed prompt in front, and log-probabilities as lists."""

    def __init__(self, call: Call, index: int) -> None:
        prompt = call.request.prompt
        assert isinstance(prompt, TextPrompt)
        self.echoed = _prompt_text(call, prompt, index // call.request.n) if prompt.echo else ""
        self._logprobs: CompletionLogprobs | None = None
        if call.request.sampling.logprobs is not None and call.model.encoder is not None:
            self._logprobs = CompletionLogprobs(call.model.encoder, len(self.echoed))

    def logprobs(self, entries: Sequence[TokenLogprob]) -> Json:
        """Give the lists for the next entries, None where nobody asked."""
        return None if self._logprobs is None else self._logprobs.piece(entries)


class CompletionStream:
    """Encodes one streamed completion. About 1 µs an event without log-probabilities."""

    def __init__(self, call: Call, created: int) -> None:
        self._call = call
        self._frame = Frame(call, answer_head(call, "cmpl", "text_completion", created))
        self._choices: dict[int, Choice] = {}

    def encode(self, event: Event) -> bytes:
        choice, text = self._choices.get(event.index), event.text
        if choice is None:
            choice = self._choices[event.index] = Choice(self._call, event.index)
            text = choice.echoed + text
        if not text and not event.logprobs and event.finish is None:
            return b""
        logprobs = b"null" if not event.logprobs else _json(choice.logprobs(event.logprobs))
        finish, after = b"null", self._frame.after
        if event.finish is not None:
            finish, after = _json(event.finish), self._frame.behind(event)
        return b'%b{"index":%d,"text":%b,"logprobs":%b,"finish_reason":%b}%b' % (
            self._frame.before,
            event.index,
            _json(text),
            logprobs,
            finish,
            after,
        )

    def end(self) -> bytes:
        return self._frame.usage_event() + DONE


class CompletionWhole:
    """Gathers one completion."""

    def __init__(self, call: Call, created: int) -> None:
        self._call = call
        self._created = created
        self._texts: dict[int, list[str]] = {}
        self._logprobs: dict[int, list[TokenLogprob]] = {}
        self._finishes: dict[int, FinishReason] = {}
        self._limit: str | None = None

    def add(self, event: Event) -> None:
        self._texts.setdefault(event.index, []).append(event.text)
        self._logprobs.setdefault(event.index, []).extend(event.logprobs)
        if event.finish is not None:
            self._finishes[event.index] = event.finish
            self._limit = event.limit or self._limit

    def body(self) -> bytes:
        call = self._call
        choices = []
        for index in sorted(self._texts):
            choice = Choice(call, index)
            told = {
                "text": choice.echoed + "".join(self._texts[index]),
                "index": index,
                "logprobs": choice.logprobs(self._logprobs[index]),
                "finish_reason": self._finishes.get(index),
            }
            choices.append(told)
        return _json(
            {
                **answer_head(call, "cmpl", "text_completion", self._created),
                "choices": choices,
                "usage": usage_json(call),
                **({} if self._limit is None else {"penstock": limit_json(self._limit)}),
            }
        )


def _prompt_text(call: Call, prompt: TextPrompt, position: int) -> str:
    asked = prompt.prompts[position]
    if isinstance(asked, str):
        return asked
    assert call.model.encoder is not None  # ids came here because an engine took them
    return call.model.encoder.detokenize(asked)
