"""Bound: how many tokens go in, how many may come out, and does that fit the model and the tenant's policy?"""

from collections.abc import Awaitable
from math import ceil

from gateway.call import Call, ChatPrompt, Handler, Model, Reply, Request, TextPrompt, TokenCount
from gateway.errors import BadRequest, ContextTooLong
from policies.tenant import OutputRule, Terms


class Bound:
    """Refuses with 400 what cannot fit, naming both numbers: `context_length_exceeded` for the model's context,
    `input_too_long` and `output_too_long` for the policy's caps. Nothing is ever cut. Acquires nothing.

    Counting costs as little as will do:

    - An engine needs the ids, so its prompts are always counted, and where limits count tokens or the policy caps the
      input, those of every model with a tokenizer are.
    - Else the bytes decide where they suffice: where body and answer fit the context together, nothing is tokenised. A
      token stands for at least one byte of *text*, but a template adds tokens that are in no body (a system prompt of
      its own), and a normaliser can make three bytes of one. So bytes are no proof, and are asked only where somebody
      else has the last word: an HTTP upstream, which refuses for itself what does not fit after all.
    - Without a tokenizer the count is an estimate, body bytes divided by the model's `bytes_per_token`, and is called
      one (`exact` false); a cap of the input holds against it all the same.
    """

    def __call__(self, call: Call, inner: Handler) -> Awaitable[Reply]:
        model, terms = call.model, call.terms
        output, imposed = output_of(call.request, model, terms.output)
        if model.encoder is None or bytes_decide(call, model, terms, output):
            tokens, exact = estimate(call, model, terms)
            call.tokens = TokenCount(tokens, exact, output, None, imposed)
            return inner(call)
        return self._counted(call, inner, output, imposed)

    async def _counted(self, call: Call, inner: Handler, output: int | None, imposed: bool) -> Reply:
        call.tokens = await count_tokens(call, call.model, call.terms, output, imposed)
        return await inner(call)


def output_of(request: Request, model: Model, rule: OutputRule) -> tuple[int | None, bool]:
    """Tell how much each choice may bring, and whether it is the policy that says so. Raises `BadRequest`."""
    asked, most = request.max_tokens, model.max_output
    if asked is None:
        policy = rule.cap if rule.default is None else rule.default
        if policy is None:
            return most, False
        return min(limit for limit in (policy, rule.cap, most) if limit is not None), True
    if most is not None and asked > most:
        message = f"max_tokens is too large: {asked}. This model supports at most {most} completion tokens."
        raise BadRequest(message, param="max_tokens", code="invalid_value")
    if rule.cap is None or asked <= rule.cap:
        return asked, False
    if not rule.clamp:
        message = f"max_tokens is too large: {asked}. Your policy allows at most {rule.cap} completion tokens."
        raise BadRequest(message, param="max_tokens", code="output_too_long")
    return rule.cap, True


def bytes_decide(call: Call, model: Model, terms: Terms, output: int | None) -> bool:
    """Tell whether the prompt's tokens need not be known, because even its bytes fit."""
    if model.needs_ids or model.max_context is None or terms.max_input is not None or terms.account.tokens:
        return False
    # Token ids in the body are more than one byte each as well: "0," is two.
    return len(call.body) + (output or 1) <= model.max_context


def estimate(call: Call, model: Model, terms: Terms) -> tuple[int, bool]:
    """Tell about how many tokens the prompts have, and whether that is exact: prompts of ids need no tokenizer.

    Raises `ContextTooLong` where the policy allows less.
    """
    prompt = call.request.prompt
    tokens, exact = ceil(len(call.body) / model.bytes_per_token), False
    longest = tokens
    if isinstance(prompt, TextPrompt):
        counts = [len(ids) for ids in prompt.prompts if isinstance(ids, tuple)]
        if len(counts) == len(prompt.prompts):
            tokens, exact, longest = sum(counts), True, max(counts)
    if terms.max_input is not None and longest > terms.max_input:
        raise _over_cap(prompt, longest, terms.max_input, "" if exact else "about ")
    return tokens, exact


async def count_tokens(call: Call, model: Model, terms: Terms, output: int | None, imposed: bool) -> TokenCount:
    """Count exactly. Raises `ContextTooLong`, or `BadRequest` for what cannot be encoded."""
    encoder, request = model.encoder, call.request
    assert encoder is not None, "who has no tokenizer estimates"
    prompts: tuple[tuple[int, ...], ...] | None = None
    if model.needs_ids:
        prompts = await encoder.encode(request.prompt, call.tenant.salt)
        counts = tuple([len(ids) for ids in prompts])
    else:
        counts = await encoder.count(request.prompt, call.tenant.salt)
    longest = max(counts)
    if terms.max_input is not None and longest > terms.max_input:
        raise _over_cap(request.prompt, longest, terms.max_input)
    contexts = [context for context in (model.max_context, encoder.max_context) if context is not None]
    if contexts:
        # A clamped wish still has to fit, and a default takes what room there is.
        asked = None if request.max_tokens is None else output
        context = min(contexts)
        if longest + (1 if asked is None else max(asked, 1)) > context:
            raise _too_long(request.prompt, longest, asked, context)
        room = context - longest
        output = room if output is None else min(output, room)
    return TokenCount(sum(counts), True, output, prompts, imposed)


def _over_cap(prompt: ChatPrompt | TextPrompt, tokens: int, cap: int, about: str = "") -> ContextTooLong:
    what = "messages" if isinstance(prompt, ChatPrompt) else "prompt"
    message = f"Your policy allows at most {cap} input tokens. However, your {what} resulted in {about}{tokens} tokens."
    return ContextTooLong(f"{message} Please reduce the length.", param=what, code="input_too_long")


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
