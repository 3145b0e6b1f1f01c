"""CUDA's headers are found where they are, in the order of the manual, and told where they are not."""

from pathlib import Path

import pytest

from engine.errors import CompileError
from engine.kernels import toolkit


def headers(directory: Path, version: str = "#define CUDART_VERSION  13000\n") -> Path:
    directory.mkdir(parents=True)
    (directory / "cuda_bf16.h").write_text("")
    (directory / "cuda_runtime_api.h").write_text(f"/* */\n{version}")
    return directory


def test_headers_are_there_and_of_the_compilers_version() -> None:
    found = toolkit.header_directory()

    assert (found / "cuda_fp8.h").is_file()
    assert toolkit.header_version(found) // 1000 == 13


def test_the_first_place_that_has_them_is_taken(tmp_path: Path) -> None:
    empty, there, too = tmp_path / "empty", headers(tmp_path / "there"), headers(tmp_path / "too")

    assert toolkit.header_directory([empty, there, too]) == there


def test_where_none_has_them_all_are_named(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r"nvidia-cuda-runtime.*/one, .*/two$"):
        toolkit.header_directory([tmp_path / "one", tmp_path / "two"])


def test_the_wheels_go_before_a_toolkit_and_the_operators_before_the_systems(tmp_path: Path) -> None:
    *wheels, operators, systems = toolkit.candidates({"CUDA_HOME": str(tmp_path)})

    assert [path.name for path in wheels] == ["include"]
    assert (operators, systems) == (tmp_path / "include", Path("/usr/local/cuda/include"))


def test_headers_without_a_version_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="CUDART_VERSION"):
        toolkit.header_version(headers(tmp_path / "here", version=""))
