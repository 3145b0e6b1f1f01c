"""What the driver is asked, told by a driver that runs nothing: cuda-python is the real one, libcuda is not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rig.stub_driver import LIBRARY, build, stubbed

ROOT = Path(__file__).resolve().parents[2]
BEGIN = """
import json, sys, threading
from engine.errors import DeviceError
from engine.kernels.driver import Driver
from engine.kernels.registry import Instance
from engine.kernels.tensor_map import Geometry
driver = Driver(3)
def instance(**given):
    return Instance("a.cu", "a<1>", "PifT", (64, 2, 1), **given)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the stub lies, built once."""
    directory = tmp_path_factory.mktemp("driver")
    build(directory)
    return directory


def asked(library: Path, tmp_path: Path, script: str) -> tuple[list[str], list[str]]:
    """Run a script in a process of its own; gives what the driver was asked, and what the script printed."""
    log = tmp_path / "asked"
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + script],
        cwd=ROOT,
        env=stubbed(library, log),
        capture_output=True,
        text=True,
        timeout=100,
    )

    assert done.returncode == 0, done.stderr

    first, *calls = log.read_text().splitlines()

    assert first == "context 103"

    return calls, done.stdout.splitlines()


def test_a_launch_passes_geometry_stream_and_arguments_as_they_are(library: Path, tmp_path: Path) -> None:
    calls, _ = asked(
        library,
        tmp_path,
        """
launch = driver.load(instance(shared_bytes=100), b"cubin", "_Z1a")
launch((3, 2, 1), 77, (2**40 + 1, -5, 0.5, bytes(range(128))))
launch((9, 1, 1), 78, (4, 2**31 - 1, -1e9, bytes(128)))
""",
    )

    assert calls == [
        "context 103",
        "load cubin",
        "kernel _Z1a",
        "attribute 8 = 100",
        "launch grid 3 2 1 block 64 2 1 shared 100 stream 77 arguments 1099511627777 -5 0.5 00..7f",
        "launch grid 9 1 1 block 64 2 1 shared 100 stream 78 arguments 4 2147483647 -1e+09 00..00",
    ]


def test_dynamic_shared_memory_is_asked_for_since_a_cubin_may_have_static_arrays_besides(
    library: Path, tmp_path: Path
) -> None:
    calls, _ = asked(
        library,
        tmp_path,
        """
driver.load(instance(), b"cubin", "_Z1a")
driver.load(instance(shared_bytes=48 * 1024), b"cubin", "_Z1a")
""",
    )
    loaded = ["context 103", "load cubin", "kernel _Z1a"]

    assert calls == [*loaded, *loaded, "attribute 8 = 49152"]


def test_a_kernel_that_overlaps_is_launched_so_unless_that_is_switched_off(library: Path, tmp_path: Path) -> None:
    calls, _ = asked(
        library,
        tmp_path,
        """
launch = driver.load(instance(overlaps=True), b"cubin", "_Z1a")
for stream in (5, 6):
    launch((stream, 2, 3), stream, (1, 2, 3.0, bytes(128)))
driver.load(instance(overlaps=True), b"cubin", "_Z1a", overlap=False)((7, 1, 1), 7, (1, 2, 3.0, bytes(128)))
""",
    )

    programmatic = "launch attribute 6 = 1"

    assert [call for call in calls if call.startswith("launch")] == [
        programmatic,
        "launch grid 5 2 3 block 64 2 1 shared 0 stream 5 arguments 1 2 3 00..00",
        programmatic,
        "launch grid 6 2 3 block 64 2 1 shared 0 stream 6 arguments 1 2 3 00..00",
        "launch grid 7 1 1 block 64 2 1 shared 0 stream 7 arguments 1 2 3 00..00",
    ]


def test_a_launch_that_fails_names_kernel_grid_block_and_shared_memory(library: Path, tmp_path: Path) -> None:
    _, told = asked(
        library,
        tmp_path,
        """
for overlaps in (False, True):
    launch = driver.load(instance(shared_bytes=64, overlaps=overlaps), b"cubin", "_Z1a")
    try:
        launch((666, 1, 1), 0, (1, 2, 3.0, bytes(128)))
    except DeviceError as error:
        print(error)
try:
    driver.load(instance(), b"cubin", "missing")
except DeviceError as error:
    print(error)
""",
    )

    failed = (
        "a.cu: a<1>: CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered, "
        "in this kernel or one that was launched before "
        "(grid (666, 1, 1), block (64, 2, 1), 64 bytes of shared memory)"
    )

    assert told == [failed, failed, "a.cu: a<1>: cuLibraryGetKernel: CUDA_ERROR_NOT_FOUND: named by its code"]


def test_a_thread_without_a_context_is_given_the_devices_once(library: Path, tmp_path: Path) -> None:
    calls, _ = asked(
        library,
        tmp_path,
        """
launches = [driver.load(instance(overlaps=overlaps), b"cubin", "_Z1a") for overlaps in (False, True)]
def work():
    for number in range(2):
        launches[0]((number + 1, 1, 1), 7, (1, 2, 3.0, bytes(128)))
def overlap():
    launches[1]((3, 1, 1), 7, (1, 2, 3.0, bytes(128)))
for target in (work, overlap):
    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
""",
    )

    assert calls[:6] == ["context 103", "load cubin", "kernel _Z1a"] * 2
    assert [call.split(" block")[0] for call in calls[6:]] == [
        "context 103",
        "launch grid 1 1 1",
        "launch grid 2 1 1",
        "launch attribute 6 = 1",
        "context 103",
        "launch attribute 6 = 1",
        "launch grid 3 1 1",
    ]


def test_a_device_that_is_not_there_is_no_device(library: Path, tmp_path: Path) -> None:
    _, told = asked(
        library,
        tmp_path,
        """
from engine.errors import NoDevice
try:
    Driver(9)
except NoDevice as error:
    print(error)
""",
    )

    assert told == ["the driver: cuDeviceGet: CUDA_ERROR_INVALID_DEVICE: named by its code"]


def test_a_tensor_map_is_encoded_on_aligned_memory(library: Path, tmp_path: Path) -> None:
    calls, told = asked(
        library,
        tmp_path,
        """
for rank in (1, 3):
    laid = Geometry(4096, 9, 2, (64, 20, 3)[:rank], (256, 8192)[:rank - 1], (64, 16, 1)[:rank], 128)
    print(driver.encode(laid) == b"\\x5a" * 128)
try:
    driver.encode(Geometry(4096, 9, 2, (64,) * 5, (256,) * 4, (8,) * 5, 0))
except DeviceError as error:
    print(json.dumps(str(error)))
""",
    )

    assert calls[:6] == [
        "map aligned 1 type 9 rank 1 address 4096 interleave 0 swizzle 3 promotion 3 fill 0",
        "map dimension 64 stride 0 box 64 step 1",
        "map aligned 1 type 9 rank 3 address 4096 interleave 0 swizzle 3 promotion 3 fill 0",
        "map dimension 64 stride 256 box 64 step 1",
        "map dimension 20 stride 8192 box 16 step 1",
        "map dimension 3 stride 0 box 1 step 1",
    ]
    assert told[:2] == ["True", "True"]
    assert json.loads(told[2]).startswith("cuTensorMapEncodeTiled: CUDA_ERROR_INVALID_VALUE")


def test_without_a_driver_there_is_no_device(tmp_path: Path) -> None:
    (tmp_path / LIBRARY).write_bytes(b"not a library")  # stands before any real one
    done = subprocess.run(
        [sys.executable, "-c", BEGIN], cwd=ROOT, env=stubbed(tmp_path), capture_output=True, text=True, timeout=100
    )

    assert "engine.errors.NoDevice" in done.stderr
