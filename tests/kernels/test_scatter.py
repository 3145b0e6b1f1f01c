"""Changes land at their places, and nothing else is touched."""

import pytest
import torch

from engine.device import Device
from engine.errors import ShapeError
from engine.kernels.emulated_device import EmulatedDevice
from engine.kernels.scatter import scatter, scatter_reference


def check(device: Device, num_changes: int) -> None:
    table = torch.arange(600, dtype=torch.int32).view(3, 200)
    places = torch.randperm(600, generator=torch.Generator().manual_seed(num_changes))[:num_changes]
    changes = torch.stack([places, torch.arange(num_changes) + 1000], 1).int()
    changes[::7, 0] = -1
    on_device = device.upload(table)

    scatter(device, on_device, device.upload(changes))
    device.synchronize()

    assert torch.equal(on_device.cpu(), scatter_reference(table, changes))


def mutation_case(device: Device) -> None:
    """A small complete check, for those who break the kernel on purpose."""
    check(device, 129)
    check(device, 600)  # every place, the first too


@pytest.mark.parametrize("num_changes", [0, 1, 128, 129, 600])
def test_changes_land_at_their_places(device: Device, num_changes: int) -> None:
    check(device, num_changes)


def test_what_the_kernel_would_misread_is_refused(emulator: EmulatedDevice) -> None:
    with pytest.raises(ShapeError, match=r"changes: expected \[any, 2\] torch.int32"):
        scatter(emulator, torch.zeros(4, dtype=torch.int32), torch.zeros(1, 2, dtype=torch.int64))
    with pytest.raises(ShapeError, match="table: expected"):
        scatter(emulator, torch.zeros(4), torch.zeros(1, 2, dtype=torch.int32))
