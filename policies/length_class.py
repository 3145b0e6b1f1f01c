"""Prompts by their length, in six classes: what takes 256 tokens is compared with its like, not with 60,000.

The time to a first token grows with the prompt, so that a mean or a quantile over all prompts measures who happens to
ask and not how the upstream does. Within a class it differs by the factor four at the most.
"""

NUM_CLASSES = 6  # up to 256, 1,024, 4,096, 16,384, 65,536 tokens, and above


def length_class(prompt_tokens: int) -> int:
    """Give the class of a prompt, 0 to 5."""
    bits = max(prompt_tokens - 1, 0).bit_length()
    return min(max((bits - 7) // 2, 0), NUM_CLASSES - 1)
