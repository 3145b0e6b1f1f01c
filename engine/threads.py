"""How many threads torch computes with, of the whole process and of a small step.

Every product of a layer ends at a barrier where all threads spin. That is fastest while each has a core to itself.
Where something else takes one of the cores for a moment, an event loop for instance, the spinning thread keeps its
core busy while the one it waits for does not run. Measured with a model of 3 million parameters, 8 decodes a step, on
two cores: 2.0 ms with two threads and 2.4 ms with one on a quiet machine; 7.0 and 2.7 ms beside a process that takes
60 % of a core. So a step that has little to divide runs on one thread.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

SMALL_STEP = 25_000_000
"""Tokens times parameters up to which a step runs on one thread: a few milliseconds."""


def set_threads(count: int | None) -> int:
    """Set how many threads torch computes with, of the whole process; by default the cores this process may use."""
    torch.set_num_threads(count or len(os.sched_getaffinity(0)))
    return torch.get_num_threads()


@contextmanager
def threads_for(work: int) -> Iterator[None]:
    """Compute a step of so many tokens times parameters; setting the number costs less than a microsecond."""
    before = torch.get_num_threads()
    if work > SMALL_STEP or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
