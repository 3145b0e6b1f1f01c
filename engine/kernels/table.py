"""Every kernel instance there is: what `kernels build` compiles and the tests hold to its limits.

Each stem adds its line; page sizes, windows and lengths are arguments at run time, not instances.
"""

from engine.kernels import (
    copy_blocks,
    decode_plan,
    embed,
    logits,
    logprobs,
    paged_decode,
    paged_decode_sm90,
    paged_prefill,
    paged_prefill_sm90,
    prefill_plan,
    rms_norm,
    rotary_kv_write,
    sample,
    scatter,
    silu_mul,
)
from engine.kernels.registry import Instance

INSTANCES: tuple[Instance, ...] = (
    *copy_blocks.INSTANCES,
    *decode_plan.INSTANCES,
    *embed.INSTANCES,
    *logits.INSTANCES,
    *logprobs.INSTANCES,
    *paged_decode.INSTANCES,
    *paged_decode_sm90.INSTANCES,
    *paged_prefill.INSTANCES,
    *paged_prefill_sm90.INSTANCES,
    *prefill_plan.INSTANCES,
    *rms_norm.INSTANCES,
    *rotary_kv_write.INSTANCES,
    *sample.INSTANCES,
    *scatter.INSTANCES,
    *silu_mul.INSTANCES,
)

MAX_INSTANCES = 150
