"""The pure proxy install: the gateway works where torch, tokenizers and jinja2 are not there to be imported."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ABSENT = ("torch", "numpy", "safetensors", "tokenizers", "jinja2", "transformers", "cuda")
# What a pure proxy imports to serve; the rest is imported when a configuration names a local model.
MODULES = (
    "gateway",
    "gateway.cli",
    "gateway.process.supervisor",
    "gateway.process.worker",
    "gateway.assembly",
    "gateway.app",
    "gateway.upstreams.http",
)

BLOCKING = f"""
import importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCKING + script], cwd=ROOT, capture_output=True, text=True, timeout=100
    )


def test_the_gateway_is_imported_without_the_engines_libraries() -> None:
    done = run(f"import importlib\nfor name in {MODULES!r}: importlib.import_module(name)\nprint('imported')")

    assert (done.stdout, done.stderr, done.returncode) == ("imported\n", "", 0)


def test_a_configuration_is_checked_without_the_engines_libraries() -> None:
    done = run(
        "from gateway.cli import main\nsys.exit(main(['check', '--no-secrets', '--config', 'deploy/penstock.yaml']))"
    )

    assert (done.stderr, done.returncode) == ("", 0)


@pytest.mark.parametrize("package", ABSENT)
def test_the_absent_are_really_absent(package: str) -> None:
    assert f"No module named '{package}'" in run(f"import {package}").stderr


def test_the_bare_distribution_asks_for_none_of_them() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert [need for need in project["dependencies"] if need.startswith((*ABSENT, "penstock"))] == []
