"""wgmma of every N, every kind of operand and every swizzle, against layouts derived from the manual in Python."""

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.device import Device
from engine.kernels.compiler import Compiler
from engine.kernels.cuda_device import CudaDevice
from engine.kernels.disk_cache import DiskCache
from engine.kernels.emulator import Emulator
from engine.kernels.registry import HOPPER, Instance
from engine.kernels.sources import Sources, installed_sources
from tests.kernels import fragments

PROBES = Sources(Path(__file__).parent / "probes", installed_sources())
THREADS = 128
SWIZZLES = (0, 32, 64, 128)
KINDS = {"BF16": torch.bfloat16, "F16": torch.float16, "E4M3": torch.float8_e4m3fn}


def instance(kind: str, *, transposed: bool, from_registers: bool) -> Instance:
    expression = f"products<{kind}, {str(transposed).lower()}, {str(from_registers).lower()}>"
    return Instance("products.cu", expression, "PPPiiiiiiiiiii", (THREADS, 1, 1), shared_bytes=96 * 1024, archs=HOPPER)


INSTANCES = {
    (kind, transposed, from_registers): instance(kind, transposed=transposed, from_registers=from_registers)
    for kind, transposed, from_registers in [
        ("BF16", False, False),
        ("BF16", True, True),
        ("F16", True, False),
        ("F16", False, True),
        ("E4M3", False, False),
        ("E4M3", False, True),
    ]
}


@pytest.fixture(scope="module")
def emulator_library(kernel_cache: DiskCache) -> Emulator:
    return Emulator(kernel_cache, PROBES)


@pytest.fixture(scope="module")
def card(kernel_cache: DiskCache) -> Device:
    return CudaDevice(Compiler(kernel_cache, PROBES))


def whole_numbers(rows: int, columns: int, dtype: torch.dtype, seed: int) -> Tensor:
    """From -8 to 8: sums of their products are exact."""
    chance = random.Random(seed)
    return torch.tensor([[chance.randint(-8, 8) for _ in range(columns)] for _ in range(rows)]).to(dtype)


def raw_rows(matrix: Tensor) -> list[bytes]:
    return [row.contiguous().view(torch.uint8).numpy().tobytes() for row in matrix]


def registers(matrix: Tensor) -> bytes:
    """Each thread's four words of a 64-row operand: the rows of its warp as for mma.sync."""
    place = fragments.mma_a_8bit if matrix.element_size() == 1 else fragments.mma_a_16bit
    out = b""
    for thread in range(THREADS):
        warp, lane = divmod(thread, 32)
        elements = []
        for i in range(16 // matrix.element_size()):
            row, column = place(lane, i)
            elements.append(matrix[16 * warp + row, column])
        out += torch.stack(elements).view(torch.uint8).numpy().tobytes()
    return out


def run(
    device: Device, kind: str, columns: int, *, a_swizzle: int, b_swizzle: int, transposed: bool, from_registers: bool
) -> None:
    dtype = KINDS[kind]
    k = 32 if kind == "E4M3" else 16
    first, second = (whole_numbers(64, k, dtype, seed) for seed in (1, 2))
    third, fourth = (whole_numbers(k, columns, dtype, seed) for seed in (3, 4))
    exact = first.double() @ third.double() + second.double() @ fourth.double()

    lay_a = [fragments.k_major(raw_rows(m), a_swizzle) for m in (first, second)]
    if transposed:
        lay_b = [fragments.mn_major(raw_rows(m), b_swizzle) for m in (third, fourth)]
    else:
        lay_b = [fragments.k_major(raw_rows(m.t()), b_swizzle) for m in (third, fourth)]
    # Each image begins where the swizzle's pattern does.
    images = [image.ljust(-(-len(image) // 1024) * 1024, b"\xff") for image, _, _ in (*lay_a, *lay_b)]
    b_at = len(images[0]) + len(images[1])
    whole = b"".join(images)
    words = [registers(first), registers(second)]
    of_threads = b"".join(half[16 * t : 16 * t + 16] for t in range(THREADS) for half in words)

    out = device.empty((THREADS, columns // 2), torch.float32)
    image, a = (device.upload(torch.frombuffer(bytearray(data), dtype=torch.uint8)) for data in (whole, of_threads))
    device.launch(
        INSTANCES[kind, transposed, from_registers],
        (1, 1, 1),
        out.data_ptr(),
        image.data_ptr(),
        a.data_ptr(),
        columns,
        *(a_swizzle, lay_a[0][1], lay_a[0][2], len(images[0])),
        *(b_at, b_swizzle, lay_b[0][1], lay_b[0][2], len(images[2])),
        len(whole),
    )
    device.synchronize()
    result = out.cpu()
    for thread in range(THREADS):
        places = [fragments.wgmma_d(thread, i) for i in range(columns // 2)]
        expected = torch.stack([exact[place] for place in places]).float()

        assert torch.equal(result[thread], expected), f"thread {thread}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("swizzle", SWIZZLES)
def test_operands_may_lie_in_rows_of_k(device: Device, kind: str, swizzle: int) -> None:
    from_registers = kind == "F16"
    for columns in (8, 40):
        run(
            device, kind, columns, a_swizzle=swizzle, b_swizzle=swizzle, transposed=False, from_registers=from_registers
        )


@pytest.mark.parametrize("kind", ["BF16", "F16"])
@pytest.mark.parametrize("swizzle", SWIZZLES)
def test_the_right_operand_may_lie_in_columns_of_k(device: Device, kind: str, swizzle: int) -> None:
    for columns in (64, 136):
        run(device, kind, columns, a_swizzle=128, b_swizzle=swizzle, transposed=True, from_registers=kind == "BF16")


def test_the_left_operand_may_be_in_registers(device: Device) -> None:
    run(device, "E4M3", 24, a_swizzle=128, b_swizzle=64, transposed=False, from_registers=True)


def test_every_number_of_columns_can_be_asked_for(fastest: Device) -> None:
    for columns in range(8, 257, 8):
        run(fastest, "BF16", columns, a_swizzle=128, b_swizzle=128, transposed=False, from_registers=False)


@pytest.mark.parametrize("which", INSTANCES, ids=str)
def test_every_product_assembles(kernel_cache: DiskCache, which: tuple[str, bool, bool]) -> None:
    usage = Compiler(kernel_cache, PROBES).compile(INSTANCES[which], HOPPER[0]).usage

    assert usage.is_clean, usage
