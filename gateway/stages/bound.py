"""Bound: how many tokens go in, how many may come out, and does that fit the model?"""

from gateway.call import Call, ChatPrompt, Handler, Model, Reply, Request, TextPrompt, TokenCount
from gateway.errors import BadRequest, ContextTooLong


class Bound:
    """Refuses with 400 what cannot fit: `context_length_exceeded` with both numbers. Nothing is ever cut.

    Counting is local and costs as little as will do. A token is at least one byte, so where the body's bytes and the
    answer's tokens fit together, the prompt fits, and nothing is tokenised, unless the engine needs the ids. Where we
    do not own the tokenizer and the bytes do not fit, the upstream decides. Acquires nothing.
    """

    async def __call__(self, call: Call, inner: Handler) -> Reply:
        call.tokens = count_tokens(call.request, call.model, len(call.body))
        return await inner(call)


def count_tokens(request: Request, model: Model, body_bytes: int) -> TokenCount:
    """Count, or bound, a request's tokens. Raises `ContextTooLong`, or `BadRequest` for what cannot be encoded."""
    asked, most = request.max_tokens, model.max_output
    if asked is not None and most is not None and asked > most:
        message = f"max_tokens is too large: {asked}. This model supports at most {most} completion tokens."
        raise BadRequest(message, param="max_tokens", code="invalid_value")
    output = most if asked is None else asked
    context = model.max_context
    # Token ids in the body are more than one byte each as well: "0," is two.
    if model.encoder is None or (not model.needs_ids and context is not None and body_bytes + (output or 1) <= context):
        return TokenCount(input=body_bytes, exact=False, output=output)
    prompts = model.encoder.encode(request.prompt)
    context = model.encoder.max_context if context is None else min(context, model.encoder.max_context)
    longest = max(map(len, prompts))
    if longest + (1 if asked is None else max(asked, 1)) > context:
        raise _too_long(request.prompt, longest, asked, context)
    room = context - longest
    return TokenCount(
        input=sum(map(len, prompts)),
        exact=True,
        output=room if output is None else min(output, room),
        prompts=prompts if model.needs_ids else None,
    )


def _too_long(prompt: ChatPrompt | TextPrompt, longest: int, asked: int | None, context: int) -> ContextTooLong:
    what = "messages" if isinstance(prompt, ChatPrompt) else "prompt"
    limit = f"This model's maximum context length is {context} tokens."
    if asked is None:
        message = f"{limit} However, your {what} resulted in {longest} tokens, and the answer needs at least one."
    else:
        message = (
            f"{limit} However, you requested {longest + asked} tokens "
            f"({longest} in the {what}, {asked} in the completion)."
        )
    return ContextTooLong(f"{message} Please reduce the length.", param=what, code="context_length_exceeded")
