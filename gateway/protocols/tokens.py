"""POST /tokenize and /detokenize, in vLLM's shapes."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from gateway.call import ChatPrompt
from gateway.errors import BadRequest
from gateway.protocols.chat_request import check_messages
from gateway.protocols.fields import TokenId, read_fields
from gateway.protocols.strict_json import parse_object

ModelName = Annotated[str, Meta(min_length=1, max_length=512)]


class TokenizeBody(msgspec.Struct):
    """A text, or a chat as the model's template lays it out."""

    model: ModelName
    prompt: str | None = None
    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)] | None = None
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = True
    return_token_strs: bool = False

    def chat(self) -> ChatPrompt:
        """Give the chat to lay out."""
        return ChatPrompt(
            self.messages or [],
            self.tools or None,
            None,
            self.chat_template_kwargs,
            self.add_generation_prompt and not self.continue_final_message,
            self.continue_final_message,
        )


class TokenizeAnswer(msgspec.Struct):
    """The ids, and how many a context holds, where that is known."""

    count: int
    max_model_len: int | None
    tokens: tuple[int, ...]
    token_strs: list[str] | None = None


class DetokenizeBody(msgspec.Struct):
    """Ids to spell."""

    model: ModelName
    tokens: list[TokenId]


class DetokenizeAnswer(msgspec.Struct):
    """Their text."""

    prompt: str


def decode_tokenize(body: bytes) -> TokenizeBody:
    """Read a request to tokenise. Raises `BadRequest`."""
    fields = read_fields(parse_object(body), TokenizeBody)
    if (fields.prompt is None) == (fields.messages is None):
        raise BadRequest("Expected either 'prompt' or 'messages'.", param="prompt")
    check_messages(fields.messages or [])
    return fields


def decode_detokenize(body: bytes) -> DetokenizeBody:
    """Read a request to detokenise. Raises `BadRequest`."""
    return read_fields(parse_object(body), DetokenizeBody)
