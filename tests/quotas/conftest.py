"""What proofs over processes share: a model small enough for hundreds of callers on two cores, and a real Redis."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rig.redis_server import RedisServer
from tests.tiny_model import tiny_model_dir


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_dir(tmp_path_factory.mktemp("models") / "tiny", hidden_size=32)


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    folder = tmp_path / "redis"
    folder.mkdir()
    with RedisServer(folder) as server:
        yield server
