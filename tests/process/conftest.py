"""Starting processes of ours, each ended with its test."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.process.children import Process

Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start Python with arguments, in a folder of the test's; ends it whatever happens."""
    started: list[Process] = []

    def begin(*arguments: str, **environ: str) -> Process:
        started.append(Process(list(arguments), environ, tmp_path))
        return started[-1]

    yield begin
    for process in started:
        process.end()
