"""What this card can do at most, and what it is: `python -m bench.gpu.ceilings`."""

import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

import torch

from bench.gpu.clock import Clock
from bench.gpu.report import Figure, tell
from engine.device import Device, open_device

PACKAGES = (
    "torch",
    "numpy",
    "cuda-bindings",
    "cuda-core",
    "nvidia-cuda-nvrtc",
    "safetensors",
    "tokenizers",
    "transformers",
)


def main(kind: str = "cuda") -> int:
    """Print versions, then measure."""
    device = open_device(kind)
    print(f"{device.name}, {device.arch}, {device.num_multiprocessors} multiprocessors")
    packages = ", ".join(f"{name} {found}" for name in PACKAGES if (found := _version(name)))
    print(f"Python {platform.python_version()}, {packages}")
    if (tool := shutil.which("nvidia-smi")) is not None:
        query = "driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit"
        print(
            subprocess.run(
                [tool, f"--query-gpu={query}", "--format=csv"], capture_output=True, text=True
            ).stdout.strip()
        )
    tell(
        [
            Figure("device copy, read and written", copy_bandwidth(device) / 1e9, "GB/s"),
            Figure("bf16 matrix product, torch", matrix_rate(device) / 1e12, "TFLOPS"),
        ]
    )
    return 0


def copy_bandwidth(device: Device) -> float:
    """Bytes a second, read and written together, of a large copy."""
    size = (4 << 30) if device.torch_device.type == "cuda" else (1 << 20)
    source, target = (device.zeros((size,), torch.uint8) for _ in range(2))
    return 2 * size / Clock(device).seconds(lambda: target.copy_(source), cold=False)


def matrix_rate(device: Device) -> float:
    """Operations a second of a large product."""
    n = 8192 if device.torch_device.type == "cuda" else 64
    a, b = (device.upload(torch.randn(n, n).to(torch.bfloat16)) for _ in range(2))
    return 2 * n**3 / Clock(device).seconds(lambda: a @ b, cold=False)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
