"""A launch hands over what it was given, and what goes wrong is told with the kernel and how it was launched."""

import gc
from pathlib import Path

import pytest
import torch

from engine.device import Device, open_device
from engine.errors import LaunchError, NoDevice, ShapeError
from engine.kernels.emulated_device import EmulatedDevice, Mode, Schedule
from engine.kernels.registry import Instance
from engine.kernels.shapes import check

ECHO = Instance("echo.cu", "echo<3>", "PiufqT", (64, 1, 1), shared_bytes=64)
BIG = Instance("echo.cu", "echo<4>", "PiufqT", (64, 1, 1), shared_bytes=96 * 1024)
TOLD_BYTES = 32


def echoed(device: Device, instance: Instance, *, blocks: int, room: int) -> torch.Tensor:
    """Launch the kernel that writes down its arguments, into room for so many blocks."""
    out = device.empty((room, TOLD_BYTES), torch.uint8)
    mapped = device.zeros((8, 64), torch.bfloat16)
    described = device.tensor_map(mapped, (8, 64), 128)
    device.launch(instance, (blocks, 1, 1), out.data_ptr(), -3, 2**32 - 5, 0.5, -(2**40), described)
    device.synchronize()

    assert out[0, 24:].cpu().numpy().tobytes() == described[:8]

    return out.cpu()


@pytest.mark.parametrize("instance", [ECHO, BIG], ids=str)
def test_arguments_arrive_as_they_were_given(device: Device, instance: Instance) -> None:
    out = echoed(device, instance, blocks=2, room=2)
    factor = 3.0 if instance is ECHO else 4.0

    assert out[:, 0:4].contiguous().view(torch.float32).flatten().tolist() == [0.5 * factor] * 2
    assert out[:, 4:8].contiguous().view(torch.int32).flatten().tolist() == [-3, -3]
    assert out[:, 8:16].contiguous().view(torch.int32).flatten().tolist() == [-5, 128, -5, 128]
    assert out[:, 16:24].contiguous().view(torch.int64).flatten().tolist() == [-(2**40)] * 2


def test_an_argument_that_does_not_fit_is_refused_before_anything_runs(device: Device) -> None:
    with pytest.raises(LaunchError, match=r"^echo\.cu: echo<3>: takes 6 arguments, 2 were given$"):
        device.launch(ECHO, (1, 1, 1), 0, 1)


@pytest.mark.parametrize("grid", [(0, 1, 1), (1, 0, 1), (1, 1, 65536), (-1, 1, 1)], ids=str)
def test_a_grid_that_cannot_be_is_refused(device: Device, grid: tuple[int, int, int]) -> None:
    with pytest.raises((LaunchError, OverflowError)):  # the latter by cuda-python, of what is below 0
        device.launch(ECHO, grid, 0, 0, 0, 0.0, 0, bytes(128))


def test_a_map_of_what_tma_cannot_copy_is_refused(device: Device) -> None:
    with pytest.raises(ShapeError, match="strides"):
        device.tensor_map(device.zeros((8, 68), torch.bfloat16), (8, 64), 128)


def test_memory_is_what_it_is_called(device: Device) -> None:
    source = torch.arange(12, dtype=torch.float16).reshape(3, 4)

    assert device.zeros((3, 5), torch.int32).cpu().tolist() == [[0] * 5] * 3
    assert torch.equal(device.upload(source).cpu(), source)
    assert torch.equal(device.upload(source.t()).cpu(), source.t())
    assert device.upload(source.t()).is_contiguous()
    assert device.empty((0, 4), torch.bfloat16).shape == (0, 4)
    assert device.empty((3, 0), torch.float8_e4m3fn).numel() == 0
    assert device.empty((), torch.int64).shape == ()
    assert device.empty((2, 2), torch.bfloat16).device.type == device.torch_device.type


def test_kernels_that_are_not_for_the_device_are_left_out_of_what_is_warmed(device: Device) -> None:
    device.warm([ECHO, Instance("echo.cu", "there_is_no_such<1>", "P", (1, 1, 1), archs=("sm_89",))])


def test_what_was_not_written_is_not_a_number(emulator: EmulatedDevice) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn):
        assert emulator.empty((5, 3), dtype).float().isnan().all()


def test_a_write_past_the_end_is_told_with_kernel_grid_and_thread(emulator: EmulatedDevice) -> None:
    with pytest.raises(LaunchError) as raised:
        echoed(emulator, ECHO, blocks=3, room=2)

    told = str(raised.value)

    assert told.startswith("echo.cu: echo<3>: ")
    assert told.endswith("(grid (3, 1, 1), block (64, 1, 1), 64 bytes of shared memory)")
    assert (raised.value.grid, raised.value.block, raised.value.shared_bytes) == ((3, 1, 1), (64, 1, 1), 64)


def test_after_a_fault_the_next_launch_is_as_good_as_ever(emulator: EmulatedDevice) -> None:
    with pytest.raises(LaunchError):
        echoed(emulator, ECHO, blocks=3, room=2)

    assert echoed(emulator, ECHO, blocks=2, room=2)[1, 0:4].view(torch.float32).item() == 1.5


def test_a_tensor_lives_as_long_as_any_view_of_it_and_no_longer(emulator: EmulatedDevice) -> None:
    kept = emulator.upload(torch.ones(2**20, dtype=torch.float32))
    part = kept[2**19 :].view(2, -1)
    held = resident_bytes()
    del kept
    gc.collect()

    assert part.sum().item() == 2**19

    del part
    gc.collect()

    assert resident_bytes() < held - 2**21


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_a_mode_is_called_by_what_it_does() -> None:
    assert str(Mode()) == "late-forward"
    assert str(Mode(late=False, schedule=Schedule.PRIORITY, seed=2)) == "early-priority-2"


def test_the_emulator_is_opened_by_its_name() -> None:
    device = open_device("emulator")

    assert (device.arch, device.torch_device.type) == ("sm_90a", "cpu")


@pytest.mark.parametrize("kind", ["tpu", "cuda:x", "emulator:1", ""])
def test_a_device_that_there_is_not_is_named(kind: str) -> None:
    with pytest.raises(NoDevice, match="emulator"):
        open_device(kind)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_there_is_no_cuda_device() -> None:
    with pytest.raises(NoDevice):
        open_device("cuda")


def test_a_shape_that_does_not_fit_is_told_with_what_was_expected() -> None:
    tensor = torch.zeros(3, 4, dtype=torch.float32)
    check("scale", "x", tensor, (None, 4), torch.float32, torch.bfloat16)
    wrong = ((tensor, (3, 5)), (tensor.t(), (4, 3)), (tensor.half(), (3, 4)), (tensor, (3, 4, 1)))
    for given, shape in wrong:
        with pytest.raises(ShapeError, match=r"^scale: x: expected \["):
            check("scale", "x", given, shape, torch.float32, torch.bfloat16)
    check("scale", "x", tensor.t(), (4, 3), torch.float32, dense=False)
    with pytest.raises(ShapeError) as raised:
        check("scale", "x", tensor.t(), (None, 3), torch.bfloat16, torch.float16)

    assert str(raised.value) == (
        "scale: x: expected [any, 3] torch.bfloat16 or torch.float16, contiguous, "
        "got [4, 3] torch.float32 with strides [1, 4]"
    )
