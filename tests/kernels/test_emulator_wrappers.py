"""Every wrapper of ptx.cuh, by itself: random bits in, raw bits out, against the PTX ISA's words written in Python.

The probes run wherever kernels run. On a card, `WRITE_GOLDENS=tests/kernels/goldens` keeps what it answered there;
where a golden is kept, the emulator is held to it. So the emulator is proven against the definition here, and against
the thing itself once it was at hand.
"""

import os
import re
from pathlib import Path

import pytest
import torch

from engine.device import Device
from engine.kernels.compiler import Compiler
from engine.kernels.cuda_device import CudaDevice
from engine.kernels.disk_cache import DiskCache
from engine.kernels.emulated_device import EmulatedDevice
from engine.kernels.emulator import Emulator
from engine.kernels.registry import EVERYWHERE, Instance
from engine.kernels.sources import Sources, installed_sources
from tests.kernels.wrapper_probes import PROBED, Probe, Words, as_bytes, as_words, question

HERE = Path(__file__).parent
PROBES = Sources(HERE / "probes", installed_sources())
GOLDENS = HERE / "goldens"
WRAPPERS = Instance("wrappers.cu", "wrappers", "PPiiiiiiT", (128, 1, 1), shared_bytes=16384)
NO_MAP = bytes(128)


@pytest.fixture(scope="module")
def emulator_library(kernel_cache: DiskCache) -> Emulator:
    return Emulator(kernel_cache, PROBES)


@pytest.fixture(scope="module")
def card(kernel_cache: DiskCache) -> Device:
    return CudaDevice(Compiler(kernel_cache, PROBES))


def answer(device: Device, probe: Probe) -> Words:
    """Run the probe; what it wrote, of as many words as it is expected to write."""
    given = device.upload(torch.frombuffer(bytearray(as_bytes(probe.given)), dtype=torch.int32))
    out = device.zeros((len(probe.expected),), torch.int32)
    described, at, num_bytes = NO_MAP, [0, 0, 0, 0], probe.plain_bytes
    if probe.copied is not None:
        tensor = (out if probe.copied.out else given).view(torch.bfloat16).reshape(probe.copied.sizes)
        described = device.tensor_map(tensor, probe.copied.box, probe.copied.swizzle_bytes)
        at[: len(probe.copied.at)] = probe.copied.at
        num_bytes = probe.copied.box_bytes()
    device.launch(WRAPPERS, (1, 1, 1), out.data_ptr(), given.data_ptr(), probe.which, num_bytes, *at, described)
    device.synchronize()
    return as_words(out.cpu().numpy().tobytes())


def assert_same(actual: Words, expected: Words, probe: Probe) -> None:
    """Word for word; floats within the steps that the instruction grants."""
    for place, (got, wanted) in enumerate(zip(actual, expected, strict=True)):
        if place in probe.unset or got == wanted:
            continue
        both_nan = got & 0x7FFFFFFF > 0x7F800000 and wanted & 0x7FFFFFFF > 0x7F800000
        close = probe.steps > 0 and (abs(got - wanted) <= probe.steps or both_nan)

        assert close, f"word {place}: {got:#010x} instead of {wanted:#010x}"


@pytest.mark.parametrize("name", PROBED)
def test_a_wrapper_does_what_the_manual_says(device: Device, name: str) -> None:
    probe = PROBED[name]()
    actual = answer(device, probe)

    assert_same(actual, probe.expected, probe)

    if not isinstance(device, EmulatedDevice) and (directory := os.environ.get("WRITE_GOLDENS")):
        Path(directory).mkdir(parents=True, exist_ok=True)
        (Path(directory) / f"{name}.bin").write_bytes(question(probe) + as_bytes(actual))


def test_the_emulator_answers_as_a_card_did(emulator: EmulatedDevice) -> None:
    kept = sorted(GOLDENS.glob("*.bin"))
    if not kept:
        pytest.skip("no card has answered yet; on one, WRITE_GOLDENS=tests/kernels/goldens keeps what it says")
    for golden in kept:
        probe, data = PROBED[golden.stem](), golden.read_bytes()

        assert data[:32] == question(probe), f"{golden} answers another question: write it anew on a card"

        assert_same(answer(emulator, probe), as_words(data[32:]), probe)


@pytest.mark.parametrize("arch", EVERYWHERE)
def test_every_wrapper_assembles(kernel_cache: DiskCache, arch: str) -> None:
    usage = Compiler(kernel_cache, PROBES).compile(WRAPPERS, arch).usage

    assert usage.is_clean, usage


def test_inline_assembly_stands_in_one_file() -> None:
    sources = list(installed_sources().glob("*.cu*"))
    with_asm = {path.name for path in sources if re.search(r"^[^/\n]*\basm\b", path.read_text("utf-8"), re.MULTILINE)}

    assert with_asm == {"ptx.cuh"}


def test_every_wrapper_has_a_name_in_the_emulator() -> None:
    """What ptx.cuh offers a card and not the emulator could not be tested at all."""
    text = (installed_sources() / "ptx.cuh").read_text("utf-8")
    names = {line.split("(")[0].split()[-1] for line in text.splitlines() if line.startswith("DEV ")}
    emulated = (installed_sources() / "emu" / "ptx_names.h").read_text("utf-8")
    missing = {name for name in names if f" {name}(" not in emulated}

    assert names >= {"wgmma_ss", "mbar_wait", "cp_async16"}
    assert not missing
