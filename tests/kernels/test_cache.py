"""What was compiled is found again whole or not at all, also when several processes write it at once."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.kernels.disk_cache import DiskCache, cache_directory

ROOT = Path(__file__).resolve().parents[2]
KEY = "0123456789abcdef"


@pytest.fixture
def cache(tmp_path: Path) -> DiskCache:
    return DiskCache(tmp_path / "not" / "there" / "yet")


def test_what_was_stored_is_found_with_its_facts(cache: DiskCache) -> None:
    cache.store(KEY, "cubin", b"code", {"registers": 3})
    found = cache.find(KEY, "cubin")

    assert found is not None
    assert (found.data, found.facts) == (b"code", {"registers": 3})
    assert found.path.read_bytes() == b"code"


def test_what_was_not_stored_is_not_found(cache: DiskCache) -> None:
    assert cache.find(KEY, "cubin") is None


def cut_short(directory: Path) -> None:
    path = directory / f"{KEY}.cubin"
    path.write_bytes(path.read_bytes()[:-1])


def one_bit_turned(directory: Path) -> None:
    path = directory / f"{KEY}.cubin"
    path.write_bytes(path.read_bytes().replace(b"c", b"b"))


def without_its_description(directory: Path) -> None:
    (directory / f"{KEY}.json").unlink()


def without_its_code(directory: Path) -> None:
    (directory / f"{KEY}.cubin").unlink()


def with_half_a_description(directory: Path) -> None:
    path = directory / f"{KEY}.json"
    path.write_text(path.read_text()[:20])


def with_another_description(directory: Path) -> None:
    (directory / f"{KEY}.json").write_text("[1, 2]")


def with_nothing_told(directory: Path) -> None:
    path = directory / f"{KEY}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "facts": None}))


@pytest.mark.parametrize(
    "damage",
    [
        cut_short,
        one_bit_turned,
        without_its_description,
        without_its_code,
        with_half_a_description,
        with_another_description,
        with_nothing_told,
    ],
    ids=lambda damage: damage.__name__,
)
def test_what_is_damaged_counts_as_missing_and_is_replaced(cache: DiskCache, damage: Callable[[Path], None]) -> None:
    cache.store(KEY, "cubin", b"code", {})
    damage(cache.directory)

    assert cache.find(KEY, "cubin") is None

    cache.store(KEY, "cubin", b"code", {})
    found = cache.find(KEY, "cubin")

    assert found is not None
    assert found.data == b"code"


def test_nothing_else_is_left_behind(cache: DiskCache) -> None:
    cache.store(KEY, "so", b"code", {})

    assert sorted(path.name for path in cache.directory.iterdir()) == [f"{KEY}.json", f"{KEY}.so"]


def test_processes_that_write_the_same_at_once_never_show_half_of_it(cache: DiskCache) -> None:
    """Four writers of different lengths, and a reader who finds one of them whole, or none, each time."""
    script = f"""
import sys
from pathlib import Path
from engine.kernels.disk_cache import DiskCache
cache = DiskCache(Path({str(cache.directory)!r}))
data = sys.argv[1].encode() * 100_000 * int(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for _ in range(60):
    cache.store({KEY!r}, "cubin", data, {{"by": sys.argv[1]}})
"""
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(number)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for number in range(1, 5)
    ]
    for writer in writers:
        assert writer.stdout is not None
        writer.stdout.readline()
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write(b"\n")
        writer.stdin.flush()
    seen = 0
    while any(writer.poll() is None for writer in writers):
        found = cache.find(KEY, "cubin")
        if found is not None:
            seen += 1
            by = str(found.facts["by"])

            assert found.data == by.encode() * 100_000 * int(by)
    for writer in writers:
        writer.communicate()

        assert writer.returncode == 0

    assert seen
    assert sorted(path.name for path in cache.directory.iterdir()) == [f"{KEY}.cubin", f"{KEY}.json"]


def test_the_directory_is_the_operators_then_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/them")

    assert cache_directory({"PENSTOCK_KERNEL_CACHE": "/a", "XDG_CACHE_HOME": "/b"}) == Path("/a")
    assert cache_directory({"XDG_CACHE_HOME": "/b"}) == Path("/b/penstock/kernels")
    assert cache_directory({}) == Path("/home/them/.cache/penstock/kernels")
