"""How a GPU's memory is shared out: weights, what a step needs besides, and all the rest for KV blocks.

Nothing is guessed that can be measured: what is free is asked of the driver, what the largest step needs is seen by
running it once. So there is no setting for a share of the memory, and no allocation fails later.
"""

from engine.errors import ModelError
from engine.models.config import ModelConfig

GIB = 1 << 30
MARGIN_BYTES = GIB // 2
"""Left alone: the allocator rounds up, and captured graphs and libraries keep some for themselves."""


def weight_bytes(config: ModelConfig, itemsize: int) -> int:
    """Say how much the weights take."""
    return config.num_parameters * itemsize


def check_weights(config: ModelConfig, itemsize: int, free_bytes: int) -> None:
    """Refuse a model whose weights do not fit, before any is read. Raises `ModelError` naming the GiB."""
    needed = weight_bytes(config, itemsize) + MARGIN_BYTES
    if needed > free_bytes:
        raise ModelError(f"the weights need {_gib(needed)} of the device's memory, and {_gib(free_bytes)} are free")


def blocks_that_fit(free_bytes: int, step_bytes: int, block_bytes: int, context_blocks: int) -> int:
    """Say how many KV blocks there is room for beside what a step needs.

    `context_blocks` is what one sequence of the longest allowed length takes: the least that makes sense.
    Raises `ModelError` naming the GiB.
    """
    room = free_bytes - step_bytes - MARGIN_BYTES
    num_blocks = max(room, 0) // block_bytes
    if num_blocks < context_blocks:
        needed = context_blocks * block_bytes + step_bytes + MARGIN_BYTES
        message = f"one sequence of {context_blocks * 16} tokens, and a step, need {_gib(needed)} beside the weights"
        raise ModelError(f"{message}, and {_gib(free_bytes)} are free; set max_model_len to less")
    return num_blocks


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
