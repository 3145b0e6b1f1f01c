"""POST /v1/chat/completions, the way in: OpenAI's body into the one `Request`."""

from typing import Annotated, Any

from msgspec import Meta
from msgspec.structs import replace

from gateway.call import ChatPrompt, Operation, Request
from gateway.errors import BadRequest
from gateway.protocols.fields import MAX_LOGPROBS, Count, SharedFields, read_fields
from gateway.protocols.strict_json import parse_object

MAX_TOOLS = 128


class ChatBody(SharedFields, kw_only=True):
    """The fields of a chat that we read."""

    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    tools: Annotated[list[dict[str, Any]], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Any = None
    response_format: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


def decode_chat(body: bytes) -> Request:
    """Read a chat. Raises `BadRequest` naming the parameter at fault."""
    fields = read_fields(parse_object(body), ChatBody)
    check_messages(fields.messages)
    if fields.top_logprobs is not None and not fields.logprobs:
        raise BadRequest("'top_logprobs' is only allowed when 'logprobs' is true.", param="top_logprobs")
    if fields.tool_choice is not None:
        _check_tool_choice(fields.tool_choice, fields.tools)
    formatted = fields.response_format
    if formatted is not None and not isinstance(formatted.get("type"), str):
        raise BadRequest("'response_format' must have a 'type'.", param="response_format.type")
    prompt = ChatPrompt(fields.messages, fields.tools or None, fields.tool_choice, fields.chat_template_kwargs)
    if fields.add_generation_prompt is not None or fields.continue_final_message:
        continues = bool(fields.continue_final_message)
        if continues and fields.add_generation_prompt:
            message = "'continue_final_message' and 'add_generation_prompt' exclude each other."
            raise BadRequest(message, param="continue_final_message")
        opens = fields.add_generation_prompt is not False and not continues
        prompt = replace(prompt, add_generation_prompt=opens, continue_final_message=continues)
    return Request(
        operation=Operation.CHAT,
        model=fields.model,
        prompt=prompt,
        stream=bool(fields.stream),
        include_usage=fields.include_usage(),
        n=fields.n or 1,
        max_tokens=fields.max_tokens if fields.max_completion_tokens is None else fields.max_completion_tokens,
        sampling=fields.sampling((fields.top_logprobs or 0) if fields.logprobs else None),
        response_format=None if formatted is None or formatted["type"] == "text" else formatted,
        user=fields.user,
    )


def check_messages(messages: list[dict[str, Any]]) -> None:
    """Check what every chat template relies on; roles and parts of content are the model's own business."""
    for index, message in enumerate(messages):
        if type(message.get("role")) is not str or type(message.get("content")) is not str:
            _check_message(index, message)


def _check_message(index: int, message: dict[str, Any]) -> None:
    role = message.get("role")
    if type(role) is not str:
        told = "Missing required parameter:" if role is None else "Invalid type for"
        raise BadRequest(f"{told} 'messages[{index}].role'; expected a string.", param=f"messages[{index}].role")
    content = message.get("content")
    if content is None or type(content) is str:
        return
    if type(content) is not list or not all(type(part) is dict for part in content):
        at = f"messages[{index}].content"
        raise BadRequest(f"Invalid type for '{at}': expected a string or a list of parts.", param=at)


def _check_tool_choice(choice: object, tools: list[dict[str, Any]] | None) -> None:
    if not isinstance(choice, str | dict):
        raise BadRequest("'tool_choice' must be a string or an object.", param="tool_choice")
    if not tools and choice not in ("none", "auto"):
        raise BadRequest("'tool_choice' is only allowed when 'tools' are given.", param="tool_choice")
