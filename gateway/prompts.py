"""A served model's own tokenizer and chat template, as the pipeline asks for them.

A prompt is looked for in a memory twice: as a whole where it is short, before its template is rendered, and then in
parts (`engine/text/cuts.py`), so that a chat that grew costs what it grew by. What is remembered for one tenant is
found by no other. What is left to encode is encoded here and now where it is little, on a thread where it is more.
"""

from array import array
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec

from engine.text.memo import MAX_BYTES, IdMemo, key_of
from engine.text.template import ChatTemplate, TemplateError
from engine.text.tokenizer import Encoding, Tokenizer
from gateway.call import ChatPrompt, TextPrompt
from gateway.counting import CountingThreads
from gateway.errors import BadRequest

# A longer prompt is laid out and looked up on a thread, not on the loop (0.1 ms; one that is nothing but spelt control
# tokens, 3 ms), and remembered in parts only, as a growing chat would fill the memory with itself.
SHORT_BYTES = 16 << 10
INLINE_BYTES = 2048  # encoded on the loop: 0.3 ms

_json = msgspec.json.Encoder().encode


class ModelPrompts:
    """Implements `PromptEncoder` over a model directory's texts. Needs no torch.

    `vocab_size` is the model's, which may be padded beyond the tokenizer's: ids from there on are refused. `max_bytes`
    bounds what is remembered.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        max_context: int | None,
        vocab_size: int | None = None,
        *,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.max_context = max_context
        self._tokenizer = tokenizer
        self._template = template
        self._vocab_size = tokenizer.vocab_size if vocab_size is None else vocab_size
        self._memo = IdMemo(max_bytes)
        self._threads = CountingThreads()

    async def encode(self, prompt: ChatPrompt | TextPrompt, salt: bytes) -> tuple[tuple[int, ...], ...]:
        """Give the ids of each prompt. Raises `BadRequest`."""
        return tuple([tuple(ids) for ids in await self._ids(prompt, salt)])

    async def count(self, prompt: ChatPrompt | TextPrompt, salt: bytes) -> tuple[int, ...]:
        """Give how many ids each prompt has. Raises `BadRequest`."""
        return tuple([len(ids) for ids in await self._ids(prompt, salt)])

    async def encode_text(self, text: str, salt: bytes, *, special: bool = True) -> tuple[int, ...]:
        """Give a text's ids, with what the tokenizer puts in front unless `special` is off."""
        if len(text) <= INLINE_BYTES // 4:
            return self.tokenize(text, special=special)
        begin = partial(self._tokenizer.begin, (text,), self._memo, salt, add_special=special)
        return tuple(await self._threads.run(lambda: begin().ids()))

    def tokenize(self, text: str, *, special: bool = True) -> tuple[int, ...]:
        """Give a short text's ids, at once, with what the tokenizer puts in front unless `special` is off."""
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

    def close(self) -> None:
        """End the threads."""
        self._threads.close()

    async def _ids(self, prompt: ChatPrompt | TextPrompt, salt: bytes) -> Sequence[Sequence[int]]:
        if isinstance(prompt, TextPrompt) and all(isinstance(each, tuple) for each in prompt.prompts):
            return [self._given(each) for each in prompt.prompts if isinstance(each, tuple)]
        told = _json(prompt)
        if len(told) > SHORT_BYTES:
            return await self._threads.run(lambda: _ids_of(self._begin(prompt, salt)))
        key = key_of(told, salt, b"prompt") if self._is_constant(prompt) else None
        if key is not None:
            (known,) = self._memo.find((key,))
            if known is not None:
                return (known,)
        begun = self._begin(prompt, salt)
        missing = sum(each.missing_bytes for each in begun if isinstance(each, Encoding))
        ids = _ids_of(begun) if missing <= INLINE_BYTES else await self._threads.run(lambda: _ids_of(begun))
        if key is not None and isinstance(ids[0], array):
            self._memo.keep(key, ids[0])
        return ids

    def _is_constant(self, prompt: ChatPrompt | TextPrompt) -> bool:
        """Whether it has one list of ids, and tomorrow the same."""
        if isinstance(prompt, ChatPrompt):
            return self._template is not None and not self._template.reads_clock
        return len(prompt.prompts) == 1

    def _begin(self, prompt: ChatPrompt | TextPrompt, salt: bytes) -> list[Encoding | tuple[int, ...]]:
        begin, memo = self._tokenizer.begin, self._memo
        if isinstance(prompt, ChatPrompt):
            return [begin(self._render(prompt), memo, salt)]
        return [
            self._given(each) if isinstance(each, tuple) else begin((each,), memo, salt, add_special=True)
            for each in prompt.prompts
        ]

    def _render(self, prompt: ChatPrompt) -> tuple[str, ...]:
        if self._template is None:
            raise BadRequest("This model has no chat template; use /v1/completions.", param="messages")
        try:
            return self._template.render(
                prompt.messages,
                tools=None if prompt.tool_choice == "none" else prompt.tools,
                add_generation_prompt=prompt.add_generation_prompt,
                continue_final_message=prompt.continue_final_message,
                variables=prompt.template_kwargs,
            )
        except TemplateError as error:
            raise BadRequest(f"The messages do not fit the model's chat template: {error}", param="messages") from error

    def _given(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        self._check_ids(ids, "prompt")
        return ids

    def _check_ids(self, token_ids: Sequence[int], param: str) -> None:
        if token_ids and not 0 <= min(token_ids) <= max(token_ids) < self._vocab_size:
            message = f"'{param}' holds an id that is no token; the model's are 0 to {self._vocab_size - 1}."
            raise BadRequest(message, param=param)


def _ids_of(begun: Sequence[Encoding | tuple[int, ...]]) -> list[Sequence[int]]:
    found: list[Sequence[int]] = []
    for each in begun:
        ids = each.ids() if isinstance(each, Encoding) else each
        if not ids:
            raise BadRequest("'prompt' is empty, and this model has no token to begin with.", param="prompt")
        found.append(ids)
    return found


def open_prompts(directory: Path, max_context: int | None) -> ModelPrompts:
    """Read a model directory's tokenizer and template. Raises `engine.errors.ModelError`."""
    tokenizer = Tokenizer.from_dir(directory)
    return ModelPrompts(tokenizer, ChatTemplate.from_dir(directory, tokenizer), max_context)
