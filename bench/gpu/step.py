"""Whole decode steps of Llama-3.1-8B's sizes with random weights, as the engine runs them: `python -m bench.gpu.step`.

One sequence gives the tokens a second of a single stream; 256 give what the host costs: how much of a step the device
waits (idle gaps), and how long the host works. How long the device works is what its profiler saw of kernels and
copies.
"""

import sys
import time

import torch
from torch.profiler import ProfilerActivity, profile

from bench.gpu.random_model import LLAMA_8B, random_decoder, small
from bench.gpu.report import Figure, tell
from engine.batch import Batch, Row
from engine.cuda_runner import BLOCK_SIZE, CudaRunner
from engine.device import Device, open_device
from engine.params import SamplingParams
from engine.sequence import Sequence

STEPS = 48
GREEDY = SamplingParams(max_tokens=1, temperature=0.0)


def main(kind: str = "cuda") -> int:
    """Measure; in the emulator a small model, to see that it runs."""
    device, on_card = open_device(kind), kind.startswith("cuda")
    config = LLAMA_8B if on_card else small(LLAMA_8B)
    batch, context, steps = (256, 1024, STEPS) if on_card else (5, 60, 3)
    blocks_each = -(-(context + 2 * steps) // BLOCK_SIZE) + 1
    runner = CudaRunner(device, random_decoder(device, config), num_blocks=batch * blocks_each, max_sequences=batch)
    for layer in runner._pools.layers:
        layer.zero_()
    one, wall_one, _ = measure(device, runner, 1, context, steps)
    busy, wall, host = measure(device, runner, batch, context, steps)
    prompt_s = prefill_seconds(device, runner, min(context * 4, config.max_positions - 1, len_of(runner)))
    figures = [
        Figure(f"one stream, context {context}", 1 / wall_one, "tokens/s", 250),
        Figure(f"one stream, context {context}: the device works", one * 1e3, "ms/step"),
        Figure(f"{batch} sequences, context {context}", batch / wall, "tokens/s"),
        Figure(f"{batch} sequences: the device works", busy * 1e3, "ms/step"),
        Figure(f"{batch} sequences: idle gaps between steps", 100 * (1 - busy / wall), "%", 3, below=True),
        Figure(f"{batch} sequences: host work a step", host * 1e3, "ms", 0.5, below=True),
        Figure("a prompt's chunks of 2,048 tokens", prompt_s[0] / prompt_s[1], "tokens/s"),
    ]
    tell(figures)
    return 0


def len_of(runner: CudaRunner) -> int:
    """How many tokens the pool holds."""
    return runner.num_blocks * BLOCK_SIZE


def rows_of(batch: int, context: int, blocks_each: int) -> list[Row]:
    """Decodes of so many sequences, each behind `context` tokens."""
    rows = []
    for number in range(batch):
        sequence = Sequence(str(number), 0, [number % 300 + 1] * (context + 1), context + 1, GREEDY)
        sequence.block_table = list(range(number * blocks_each, (number + 1) * blocks_each))
        rows.append(Row(sequence, context, 1, True))
    return rows


def step(runner: CudaRunner, rows: list[Row]) -> list[Row]:
    """Run one step, and give the rows of the next."""
    results = runner.run(Batch(tuple(rows), len(rows)))
    for row, result in zip(rows, results, strict=True):
        row.sequence.token_ids += result.token_ids or (1,)
    return [Row(row.sequence, row.start + 1, 1, True) for row in rows]


def measure(device: Device, runner: CudaRunner, batch: int, context: int, steps: int) -> tuple[float, float, float]:
    """Seconds a step: that the device works, in all, and that the host works."""
    rows = rows_of(batch, context, runner.num_blocks // max(batch, 1) if batch > 1 else -(-(context + 2 * steps) // 16))
    for _ in range(4):
        rows = step(runner, rows)
    device.synchronize()
    started = time.perf_counter()
    for _ in range(steps):
        rows = step(runner, rows)
    device.synchronize()
    wall = (time.perf_counter() - started) / steps
    on_card = device.torch_device.type == "cuda"
    few = max(2, steps // 6)
    with profile(activities=[ProfilerActivity.CUDA if on_card else ProfilerActivity.CPU]) as seen:
        for _ in range(few):
            rows = step(runner, rows)
        device.synchronize()
    events = seen.key_averages()
    busy = sum(event.self_device_time_total if on_card else event.self_cpu_time_total for event in events) / few / 1e6
    return busy, wall, max(wall - busy, 0.0)


def prefill_seconds(device: Device, runner: CudaRunner, length: int) -> tuple[int, float]:
    """How many tokens of one prompt were computed, in how many seconds."""
    chunk = min(2048, length)
    length -= length % chunk
    sequence = Sequence("prompt", 0, [token % 300 + 1 for token in range(length)], length, GREEDY)
    sequence.block_table = list(range(-(-length // BLOCK_SIZE)))
    seconds = 0.0
    for _ in range(2):  # the first warms
        device.synchronize()
        started = time.perf_counter()
        for start in range(0, length, chunk):
            runner.run(Batch((Row(sequence, start, chunk, start + chunk == length),), chunk))
        device.synchronize()
        seconds = time.perf_counter() - started
    return length, seconds


if __name__ == "__main__":
    with torch.inference_mode():
        sys.exit(main(*sys.argv[1:]))
