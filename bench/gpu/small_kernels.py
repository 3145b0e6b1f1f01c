"""The kernels between the products, and sampling, at Llama-3.1-8B's sizes: `python -m bench.gpu.small_kernels`."""

import sys
from collections.abc import Callable

import torch

from bench.gpu.attention import filled, integers
from bench.gpu.ceilings import copy_bandwidth
from bench.gpu.clock import Clock
from bench.gpu.report import Figure, tell
from engine.device import Device, open_device
from engine.kernels.embed import embed
from engine.kernels.logits import logits
from engine.kernels.rms_norm import rms_norm
from engine.kernels.rotary_kv_write import rotary_kv_write
from engine.kernels.sample import Draws, sample
from engine.kernels.silu_mul import silu_mul

DTYPE = torch.bfloat16


def main(kind: str = "cuda") -> int:
    """Measure each at 256 tokens; bytes are what must be read and written once."""
    device, on_card = open_device(kind), kind.startswith("cuda")
    clock, copied = Clock(device), copy_bandwidth(device)
    tokens, hidden, inner, vocab = (256, 4096, 14_336, 128_256) if on_card else (3, 64, 64, 500)
    figures = []

    def add(name: str, size: int, run: Callable[[], object]) -> None:
        seconds = clock.seconds(run)
        figures.append(Figure(f"{name}, {tokens} rows", seconds * 1e6, "µs"))
        figures.append(Figure(f"{name}, {tokens} rows: of the copy bandwidth", 100 * size / seconds / copied, "%"))

    x, residual, out = (filled(device, (tokens, hidden), DTYPE) for _ in range(3))
    weight = filled(device, (hidden,), DTYPE)
    add("add and norm", 4 * x.numel() * 2, lambda: rms_norm(device, out, x, weight, 1e-5, residual=residual))
    gate_up, mixed = filled(device, (tokens, 2 * inner), DTYPE), filled(device, (tokens, inner), DTYPE)
    add("silu and mul", 3 * mixed.numel() * 2, lambda: silu_mul(device, mixed, gate_up))
    ids = integers(device, [number % vocab for number in range(tokens)])
    table = filled(device, (vocab, hidden), DTYPE)
    add("embedding", 2 * out.numel() * 2, lambda: embed(device, out, table, ids))
    qkv, pool = filled(device, (tokens, 48, 128), DTYPE), filled(device, (tokens, 2, 8, 16, 128), DTYPE)
    turns, slots = filled(device, (1024, 64, 2), torch.float32), integers(device, [16 * n for n in range(tokens)])
    positions = integers(device, [number % 1024 for number in range(tokens)])
    add(
        "rotary and KV write",
        qkv.numel() * 2 * 2,
        lambda: rotary_kv_write(device, qkv, pool, turns, positions, slots, paired=True),
    )
    _add_sampling(device, add, tokens, vocab)
    tell(figures)
    return 0


def _add_sampling(device: Device, add: Callable[[str, int, Callable[[], object]], None], rows: int, vocab: int) -> None:
    raw, law = filled(device, (rows, vocab), DTYPE), device.empty((rows, vocab), torch.float32)
    temperatures = device.upload(torch.full((rows,), 0.8))
    add("logits to a law", raw.numel() * 6, lambda: logits(device, law, raw, temperatures))
    drawn = device.empty((2, rows), torch.int32)
    numbers = device.upload(torch.arange(rows, dtype=torch.int64))
    for name, top_k, top_p in (("plain", 0, 1.0), ("top-p", 0, 0.9), ("top-k and top-p", 50, 0.9)):
        draws = Draws(
            temperatures,
            integers(device, [top_k] * rows),
            device.upload(torch.full((rows,), top_p, dtype=torch.float64)),
            device.upload(torch.zeros(rows)),
            numbers,
            numbers,
            integers(device, [0] * rows),
        )
        add(f"sampling, {name}", law.numel() * 4, lambda draws=draws: sample(device, drawn[0], drawn[1], law, draws))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
