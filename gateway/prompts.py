"""A served model's own tokenizer and chat template, as the pipeline asks for them."""

from collections.abc import Sequence

from engine.text.template import ChatTemplate, TemplateError
from engine.text.tokenizer import Tokenizer
from gateway.call import ChatPrompt, TextPrompt
from gateway.errors import BadRequest


class ModelPrompts:
    """Implements `PromptEncoder` over a model directory's texts. Needs no torch.

    `vocab_size` is the model's, which may be padded beyond the tokenizer's: ids from there on are refused.
    """

    def __init__(
        self, tokenizer: Tokenizer, template: ChatTemplate | None, max_context: int, vocab_size: int | None = None
    ) -> None:
        self.max_context = max_context
        self._tokenizer = tokenizer
        self._template = template
        self._vocab_size = tokenizer.vocab_size if vocab_size is None else vocab_size

    def encode(self, prompt: ChatPrompt | TextPrompt) -> tuple[tuple[int, ...], ...]:
        """Give the ids of each prompt. Raises `BadRequest`."""
        if isinstance(prompt, ChatPrompt):
            return (self._chat(prompt),)
        return tuple(self._text(each) for each in prompt.prompts)

    def tokenize(self, text: str, *, special: bool = True) -> tuple[int, ...]:
        """Give a text's ids, with what the tokenizer puts in front unless `special` is off."""
        return tuple(self._tokenizer.encode(text, add_special=special))

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """Give the text of ids, control tokens spelt out. Raises `BadRequest` for what is no token."""
        self._check_ids(token_ids, "tokens")
        return self._tokenizer.decode(token_ids, skip_special=False)

    def token_text(self, token_id: int) -> str:
        """Give one token as text; bytes that are no character alone show as the replacement character."""
        return self._tokenizer.token_bytes(token_id).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Give the exact bytes of one token."""
        return self._tokenizer.token_bytes(token_id)

    def _chat(self, prompt: ChatPrompt) -> tuple[int, ...]:
        if self._template is None:
            raise BadRequest("This model has no chat template; use /v1/completions.", param="messages")
        try:
            pieces = self._template.render(
                prompt.messages,
                tools=None if prompt.tool_choice == "none" else prompt.tools,
                add_generation_prompt=prompt.add_generation_prompt,
                continue_final_message=prompt.continue_final_message,
                variables=prompt.template_kwargs,
            )
        except TemplateError as error:
            raise BadRequest(f"The messages do not fit the model's chat template: {error}", param="messages") from error
        return tuple(self._tokenizer.encode_pieces(pieces))

    def _text(self, prompt: str | tuple[int, ...]) -> tuple[int, ...]:
        if isinstance(prompt, tuple):
            self._check_ids(prompt, "prompt")
            return prompt
        ids = tuple(self._tokenizer.encode(prompt))
        if not ids:
            raise BadRequest("'prompt' is empty, and this model has no token to begin with.", param="prompt")
        return ids

    def _check_ids(self, token_ids: Sequence[int], param: str) -> None:
        if token_ids and not 0 <= min(token_ids) <= max(token_ids) < self._vocab_size:
            message = f"'{param}' holds an id that is no token; the model's are 0 to {self._vocab_size - 1}."
            raise BadRequest(message, param=param)
