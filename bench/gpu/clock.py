"""How long a kernel takes: medians of single runs, each after the caches were emptied."""

import statistics
import time
from collections.abc import Callable

import torch

from engine.device import Device

FLUSH_BYTES = 256 << 20  # several times the second-level cache
ROUNDS = 25


class Clock:
    """Times what runs on a device, by its own events on a GPU."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._on_card = device.torch_device.type == "cuda"
        self._flushed = device.zeros((FLUSH_BYTES,), torch.uint8) if self._on_card else None

    def seconds(self, run: Callable[[], object], *, cold: bool = True, rounds: int = ROUNDS) -> float:
        """Give the median of one run. `cold`: nothing of its data is in a cache."""
        if not self._on_card:
            started = time.perf_counter()
            run()
            return time.perf_counter() - started
        for _ in range(3):
            run()
        times = []
        for _ in range(rounds):
            if cold and self._flushed is not None:
                self._flushed.zero_()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            run()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1e3)
        return statistics.median(times)
