"""The plan of the house, held against the imports: who may call whom, and what no file may do."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path, PurePath

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("policies", "cache", "gateway", "engine")

# What each room may import besides the standard library and itself.
DOORS = {
    "policies": {"msgspec", "tenacity", "yaml"},
    "cache": {"policies", "redis", "hiredis", "msgspec", "zstandard"},
    "gateway": {
        *("policies", "cache", "engine"),
        *("uvloop", "httptools", "httpx", "msgspec", "orjson", "opentelemetry", "grpc", "prometheus_client", "jwt"),
    },
    "engine": {"torch", "numpy", "safetensors", "tokenizers", "jinja2", "cuda"},
}
# Two doors lead from the gateway into the engine: its text with the errors it raises, free of torch, and one file.
ENGINE_DOOR = "gateway/upstreams/engine.py"
TEXT_DOOR = ("engine.text.", "engine.errors.")
# The brain: no torch, so that a whole step is tested in milliseconds. Named here, so that moving a file is a decision.
BRAIN = (
    *("engine/sequence.py", "engine/blocks.py", "engine/batch.py", "engine/scheduler.py", "engine/loop.py"),
    *("engine/waiting.py", "engine/order.py", "engine/outbox.py", "engine/meter.py", "engine/config.py"),
    *("engine/params.py", "engine/output.py", "engine/errors.py"),
)
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "managers", "base_classes"}
FORBIDDEN_STATEMENTS = {"NotImplementedError"}


def files(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in the file, type checking included."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module is not None
            yield node.module


def name(path: Path) -> str:
    return str(PurePath(path.relative_to(ROOT)))


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_uses_only_its_doors(room: str) -> None:
    allowed = DOORS[room] | {room} | set(sys.stdlib_module_names)
    strangers = {(name(path), module) for path in files(room) for module in imports(path)}

    assert {(path, module) for path, module in strangers if module.split(".")[0] not in allowed} == set()


def test_two_doors_lead_from_the_gateway_into_the_engine() -> None:
    through = {
        (name(path), module)
        for path in files("gateway")
        for module in imports(path)
        if module.split(".")[0] == "engine" and not f"{module}.".startswith(TEXT_DOOR)
    }

    assert {path for path, _ in through} <= {ENGINE_DOOR}


@pytest.mark.parametrize("path", [*BRAIN, *(name(path) for path in files("engine/text"))])
def test_the_engines_brain_and_its_text_import_no_torch(path: str) -> None:
    reached, frontier = set(), {path}
    while frontier:
        at = frontier.pop()
        reached.add(at)
        for module in imports(ROOT / at):
            assert module.split(".")[0] not in {"torch", "safetensors", "cuda"}, f"{at} imports {module}"
            for candidate in (f"{module.replace('.', '/')}.py", f"{module.replace('.', '/')}/__init__.py"):
                if module.startswith("engine") and (ROOT / candidate).exists() and candidate not in reached:
                    frontier.add(candidate)

    assert path in reached


def test_no_python_file_lies_under_cuda_and_tests_are_no_package() -> None:
    assert [name(path) for path in (ROOT / "cuda").rglob("*.py")] == []
    assert [name(path) for path in (ROOT / "tests").rglob("__init__.py")] == []
    assert not (ROOT / "tests" / "cuda").exists()


@pytest.mark.parametrize("room", ROOMS)
def test_names_of_files_say_something(room: str) -> None:
    assert [name(path) for path in files(room) if path.stem in FORBIDDEN_NAMES] == []


@pytest.mark.parametrize("room", ROOMS)
def test_only_the_two_outer_loops_swallow_everything(room: str) -> None:
    """A handler that raises again, or translates a library's bare Exception, swallows nothing."""
    swallowing = {
        name(path)
        for path in files(room)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or _names(node.type) & {"Exception", "BaseException"})
        and not any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
    }

    # Careful is an arm of the engine's loop: it hands on what was raised, with the rows that raised it.
    assert swallowing <= {"engine/loop.py", "engine/careful.py", "gateway/http/connection.py"}


@pytest.mark.parametrize("room", ROOMS)
def test_nothing_is_left_to_be_implemented_and_no_module_changes_its_globals(room: str) -> None:
    found = [
        (name(path), node.lineno)
        for path in files(room)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Global) or (isinstance(node, ast.Name) and node.id in FORBIDDEN_STATEMENTS)
    ]

    assert found == []


def test_importing_does_nothing() -> None:
    """Every module is imported in one fresh process: nothing is printed, started, opened or left behind."""
    modules = [
        name(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for room in ROOMS
        for path in files(room)
        if path.stem != "__main__"
    ]
    script = f"""
import importlib, os, socket, sys, threading
before = set(os.listdir("/proc/self/fd"))
import torch
threads = threading.active_count()
def stop(event, args):
    if event in ("socket.connect", "socket.bind", "subprocess.Popen", "os.fork", "os.posix_spawn"):
        raise SystemExit(f"{{event}} {{args}} at import")
sys.addaudithook(stop)
for module in {modules!r}:
    importlib.import_module(module)
assert threading.active_count() == threads, threading.enumerate()
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=100)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def _names(node: ast.expr) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
