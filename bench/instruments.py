"""The measuring instruments: the C programs beside this file, compiled when first used, and what they print."""

import json
import os
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "bench"
SOURCES = Path(__file__).resolve().parent / "rig"

GATEWAY_CORE, LOAD_CORE = 0, 1


def compile_rig() -> None:
    """Compile what is older than its sources."""
    BUILD.mkdir(parents=True, exist_ok=True)
    for name in ("load", "upstream"):
        source, program = SOURCES / f"{name}.c", BUILD / name
        newest = max(source.stat().st_mtime, (SOURCES / "rig.h").stat().st_mtime)
        if not program.exists() or program.stat().st_mtime < newest:
            subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-o", program, source, "-lm"], check=True)


def pinned(core: int, *command: str | Path) -> list[str]:
    """Give the command bound to one core, where the machine has it."""
    if core >= (os.cpu_count() or 1):
        return [str(part) for part in command]
    return ["taskset", "-c", str(core), *map(str, command)]


def free_port() -> int:
    """Give a port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@dataclass(frozen=True, slots=True)
class Shape:
    """One way of asking. `rate` in requests/s, or None for as many as will be answered."""

    name: str
    body: Path
    connections: int
    rate: float | None = None
    stream: bool = False


def write_body(name: str, *, size: int, stream: bool = False, interval_ms: int = 0) -> Path:
    """Write a chat request of about `size` bytes."""
    asked: dict[str, Any] = {"model": "mock", "max_tokens": 64, "messages": [{"role": "user", "content": ""}]}
    if stream:
        asked["stream"] = True
    content = f"INTERVAL={interval_ms} " if interval_ms else ""
    content += "x" * (size - len(json.dumps(asked, separators=(",", ":"))) - len(content))
    asked["messages"][0]["content"] = content
    path = BUILD / f"{name}.json"
    path.write_text(json.dumps(asked, separators=(",", ":")))
    return path


def run_load(port: int, key: str, shape: Shape, seconds: float, seed: int) -> dict[str, Any]:
    """Ask one server for a while; give what `load` prints. Raises `RuntimeError` when it could not."""
    command = pinned(LOAD_CORE, BUILD / "load", "-p", str(port), "-k", key, "-b", shape.body, "-t", str(seconds))
    command += ["-c", str(shape.connections), "-x", str(seed)]
    if shape.rate is not None:
        command += ["-r", str(shape.rate)]
    if shape.stream:
        command.append("-s")
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds * 3 + 60, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"load against port {port} failed: {done.stderr.strip()}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result
