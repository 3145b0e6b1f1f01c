"""Whether what an upstream says it has used is what we counted.

We count with the tokenizer and the template that the configuration names, the upstream with its own. A few tokens more
or less are another template's marks; beyond that one of the two has the wrong tokenizer or the wrong template, or the
upstream bills what it likes. The prompt is compared wherever it was counted exactly. The answer is where a limit on
output has its text looked at, and it came whole and short (a stream's pieces, each counted by itself, are too many by
nature), with more room: a text does not tell in which tokens it was produced, nor what was left out of it.
"""

from gateway.call import Call, Departure

PROMPT_SLACK = (8, 0.02)  # tokens, and a share of what was counted: either is allowed
COMPLETION_SLACK = (16, 0.1)


def departure_of(call: Call) -> Departure | None:
    """Tell by how much the upstream's usage is more than was counted (less: negative); None where they agree."""
    generation = call.generation
    usage = generation.usage
    if usage is None:
        return None
    prompt = completion = 0
    if call.tokens.exact and usage.prompt:
        prompt = _beyond(usage.prompt, call.tokens.input, PROMPT_SLACK)
    if generation.counted is not None and usage.completion:
        completion = _beyond(usage.completion, generation.counted, COMPLETION_SLACK)
    return Departure(prompt, completion) if prompt or completion else None


def _beyond(said: int, counted: int, slack: tuple[int, float]) -> int:
    tokens, share = slack
    return 0 if abs(said - counted) <= max(tokens, share * counted) else said - counted
