"""A model's chat template: messages into the text of a prompt, as Hugging Face renders it."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2

from engine.errors import ModelError, TemplateError
from engine.text.sandbox import BUDGET, Budget, ChatEnvironment, Limits
from engine.text.shield import Json, Shield
from engine.text.tokenizer import Tokenizer, read_json

__all__ = ["ChatTemplate", "Message", "TemplateError"]  # the error too: whoever renders here needs no other door

Message = Mapping[str, Json]

_CUT_HERE = "PENSTOCK CONTINUES HERE "
_RESERVED = frozenset(["messages", "tools", "documents", "add_generation_prompt", BUDGET])
_REASONING = ("reasoning_content", "thinking", "reasoning")
# What templates raise by accident or on purpose. Everything else is a defect of ours.
_REFUSALS = (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


class ChatTemplate:
    """The templates of one model, compiled once. `named` may hold `tool_use` beside `default`, for chats with tools.

    `variables` (`bos_token`, …) are at every rendering's hand. `reads_clock` says that the same chat may look otherwise
    tomorrow. Raises `ModelError` for a template that does not compile.
    """

    def __init__(
        self,
        named: Mapping[str, str],
        variables: Mapping[str, str],
        shield: Shield,
        *,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.thread_time,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        environment = ChatEnvironment(now)
        try:
            self._named = {name: environment.compile_chat(source) for name, source in named.items()}
        except jinja2.TemplateError as error:
            raise ModelError(f"the chat template does not compile: {error}") from error
        if "default" not in named:
            raise ModelError(f"no chat template is called default, there are: {', '.join(sorted(named))}")
        self._reads_parts = {name for name, source in named.items() if _reads_parts(environment.parse(source))}
        self.reads_clock = any("strftime_now" in source for source in named.values())
        self._variables = dict(variables)
        self._shield = shield
        self._limits = limits or Limits()
        self._clock = clock

    @classmethod
    def from_dir(cls, path: Path, tokenizer: Tokenizer) -> "ChatTemplate | None":
        """The template of a model directory, or None if it has none: such a model continues texts and does not chat."""
        named = _sources(path)
        return cls(named, tokenizer.named_tokens, tokenizer.shield) if named else None

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Json] | None = None,
        documents: Sequence[Json] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Json] | None = None,
    ) -> tuple[str, ...]:
        """The prompt's text in pieces, for `Tokenizer.encode_pieces`: one, unless a caller's text spelled a control
        token.

        Messages are OpenAI's. `variables` are the caller's own (`enable_thinking`, …) and may not replace ours.
        Raises `TemplateError` for what the template refuses or cannot print within its limits.
        """
        name = "tool_use" if tools and "tool_use" in self._named else "default"
        if taken := (_RESERVED | self._variables.keys()) & (variables or {}).keys():
            raise TemplateError(f"{', '.join(sorted(taken))}: not for callers to set")
        try:
            prepared: Sequence[Message] = [_prepared(message, name in self._reads_parts) for message in messages]
            if continue_final_message:
                prepared = _opened(prepared)
            covered, mark = self._shield.cover(prepared, tools, documents, dict(variables or {}))
            text = self._print(name, covered, add_generation_prompt and not continue_final_message)
        except _REFUSALS as error:
            raise TemplateError(f"the chat template failed: {error}") from error
        if continue_final_message:
            text = _cut(text)
        return (text,) if mark is None else tuple(text.split(mark))

    def _print(self, name: str, covered: Any, add_generation_prompt: bool) -> str:
        messages, tools, documents, variables = covered
        chunks = self._named[name].generate(
            {
                **self._variables,
                **variables,
                "messages": messages,
                "tools": tools,
                "documents": documents,
                "add_generation_prompt": add_generation_prompt,
                BUDGET: Budget(self._limits, self._clock),
            }
        )
        return "".join(chunks)


def _sources(path: Path) -> dict[str, str]:
    """The templates of a directory by name: of `chat_template.jinja` and its neighbours, or of
    `tokenizer_config.json`.
    """
    file = path / "chat_template.jinja"
    if file.is_file():
        files = {each.stem: each for each in (path / "additional_chat_templates").glob("*.jinja")} | {"default": file}
        return {name: each.read_text(encoding="utf-8") for name, each in files.items()}
    match read_json(path / "tokenizer_config.json").get("chat_template"):
        case None:
            return {}
        case str(source):
            return {"default": source}
        case list() as listed:
            try:
                return {str(each["name"]): str(each["template"]) for each in listed}
            except (TypeError, KeyError) as error:
                raise ModelError(
                    "tokenizer_config.json: each chat_template of a list needs name and template"
                ) from error
        case other:
            raise ModelError(f"tokenizer_config.json: chat_template: expected a text or a list, got {other!r}")


def _reads_parts(tree: jinja2.nodes.Template) -> bool:
    """Whether a template goes through the parts of a message's content, rather than printing it as one text."""
    loops = (loop.iter for loop in tree.find_all(jinja2.nodes.For))
    return any(_last_name(looped) == "content" for looped in loops)


def _last_name(node: jinja2.nodes.Node) -> str | None:
    match node:
        case jinja2.nodes.Getattr(attr=str(name)) | jinja2.nodes.Name(name=str(name)):
            return name
        case jinja2.nodes.Getitem(arg=jinja2.nodes.Const(value=str(name))):
            return name
        case jinja2.nodes.Filter(node=jinja2.nodes.Node() as inner):
            return _last_name(inner)
    return None


def _prepared(message: Message, reads_parts: bool) -> dict[str, Json]:
    """A message as templates expect it: content never null, text parts as one text if the template wants a text, the
    arguments of tool calls as objects (OpenAI sends them as JSON in a string), reasoning under its usual name.
    """
    given = dict(message)
    content = given.get("content")
    if content is None:
        given["content"] = ""
    elif isinstance(content, (list, tuple)) and not reads_parts:
        given["content"] = "\n".join(map(_part_text, content))
    calls = given.get("tool_calls")
    if isinstance(calls, (list, tuple)):
        given["tool_calls"] = [_with_arguments(call) for call in calls]
    reasoning = next((given[name] for name in _REASONING if given.get(name) is not None), None)
    if reasoning is not None:
        given = {"thinking": reasoning, **given, "reasoning_content": reasoning}
    return given


def _part_text(part: Json) -> str:
    match part:
        case str(text) | {"type": "text", "text": str(text)}:
            return text
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise TemplateError(f"a content part of type {kind!r}: this model reads text only")


def _with_arguments(call: Json) -> Json:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping):
        return call
    text = function.get("arguments")
    if not isinstance(text, str):
        return call
    try:
        arguments: Json = json.loads(text or "{}")
    except ValueError as error:
        raise TemplateError(f"the arguments of a tool call are not JSON: {error}") from error
    return {**call, "function": {**function, "arguments": arguments}}


def _opened(messages: Sequence[Message]) -> Sequence[Message]:
    """The same with a mark behind the last message's text, to find where the answer goes on."""
    *before, last = messages
    match last.get("content"):
        case str(text):
            return [*before, {**last, "content": text + _CUT_HERE}]
        case [*parts, {"type": "text", "text": str(text)}]:
            return [*before, {**last, "content": [*parts, {"type": "text", "text": text + _CUT_HERE}]}]
    raise TemplateError("continue_final_message needs a last message with a text")


def _cut(text: str) -> str:
    """What stands before the mark. Templates that trim contents took the mark's space, and the text's own with it."""
    place = text.rfind(_CUT_HERE.rstrip())
    if place < 0:
        raise TemplateError("the chat template does not print the message that is to be continued")
    return text[:place] if text.startswith(_CUT_HERE, place) else text[:place].rstrip()
