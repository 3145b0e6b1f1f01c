"""The tensors of a Hugging Face directory, one file or many shards, read one at a time; and the model's fingerprint."""

import hashlib
import json
import struct
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.errors import ModelError
from engine.models.config import read_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
WINDOW_BYTES = 64 << 10
WINDOWS_PER_FILE = 256


def shards(directory: Path) -> list[Path]:
    """Give the weight files in a fixed order. Raises `ModelError` when one is missing."""
    index = directory / INDEX
    if index.exists():
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            raise ModelError(f"{index}: weight_map: expected an object of file names, got {type(names).__name__}")
        files = [directory / name for name in sorted(set(names.values()))]
    else:
        files = [directory / SINGLE]
    for file in files:
        if file.parent != directory or not file.is_file():
            raise ModelError(f"{file}: expected a safetensors file of the model in {directory}, found none")
    return files


class Checkpoint:
    """Named tensors over all shards. Each is read when asked for; nothing is kept."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._places: dict[str, Path] = {}
        for file in shards(directory):
            try:
                with safe_open(file, framework="pt") as opened:
                    for name in opened.keys():  # noqa: SIM118 (not a mapping)
                        self._places[name] = file
            except SafetensorError as error:
                raise ModelError(f"{file}: {error}") from error
        self._unread = set(self._places)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Read one tensor in `dtype`. Raises `ModelError` when it is missing or has another shape."""
        file = self._places.get(name)
        if file is None:
            raise ModelError(f"{self.directory}: expected the tensor {name} of shape {list(shape)}, found none")
        with safe_open(file, framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(name)
        if tuple(tensor.shape) != shape:
            raise ModelError(f"{file}: {name}: expected the shape {list(shape)}, got {list(tensor.shape)}")
        if not tensor.is_floating_point():
            raise ModelError(f"{file}: {name}: expected a floating-point tensor, got {tensor.dtype}")
        self._unread.discard(name)
        return tensor.to(dtype)

    def finish(self, ignored: tuple[str, ...]) -> None:
        """Raise `ModelError` if a tensor was never asked for, unless its name has one of the `ignored` endings."""
        unread = sorted(name for name in self._unread if not name.endswith(ignored))
        if unread:
            raise ModelError(f"{self.directory}: {len(unread)} tensors unknown to this architecture, first {unread[0]}")


def fingerprint(directory: Path) -> bytes:
    """Identify a model by 16 bytes: its configuration, every tensor's name, type, shape and place, and what is stored.

    Of a file larger than 16 MiB, evenly spread windows stand for the contents, so that a model of any size takes
    milliseconds. A copy of the directory has the same fingerprint; another fine-tuning has another.
    """
    digest = hashlib.blake2b(digest_size=16)
    config = read_json(directory / "config.json")
    digest.update(json.dumps(config, sort_keys=True).encode())
    for file in shards(directory):
        with file.open("rb") as opened:
            _digest_file(digest, opened, file)
    return digest.digest()


def _digest_file(digest: "hashlib.blake2b", opened: BinaryIO, file: Path) -> None:
    size = file.stat().st_size
    head = opened.read(8)
    length = struct.unpack("<Q", head)[0] if len(head) == 8 else -1
    if not 0 < length <= size - 8:
        raise ModelError(f"{file}: expected a safetensors header, found none")
    digest.update(struct.pack("<Q", size))
    digest.update(opened.read(length))
    begin, rest = 8 + length, size - 8 - length
    if rest <= WINDOW_BYTES * WINDOWS_PER_FILE:
        digest.update(opened.read(rest))
        return
    for window in range(WINDOWS_PER_FILE):
        opened.seek(begin + (rest - WINDOW_BYTES) * window // (WINDOWS_PER_FILE - 1))
        digest.update(opened.read(WINDOW_BYTES))
