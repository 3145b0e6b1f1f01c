"""The README's commands do what it says: they are run, against the demo model, as a reader would run them."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.configuration.loading import load
from tests.process.children import Process

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
MARKED = re.findall(r"<!-- run -->\n```(\w+)\n(.*?)```", README, re.DOTALL)
URL = "http://127.0.0.1:8080"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve what `make serve` serves, on a free port."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "penstock.yaml").write_text("listen: {port: 0}\nmodels: {demo: {engine: {path: demo}}}\n")
    process = Process(["-m", "gateway.cli", "serve"], {}, folder)
    try:
        yield process.expect("serving ").partition(" on ")[2].split()[0]
    finally:
        process.end()


def run(language: str, text: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", text] if language == "python" else ["bash", "-ec", text]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize(("language", "text"), MARKED, ids=[text.split()[0] for _, text in MARKED])
def test_an_example_runs(url: str, language: str, text: str) -> None:
    done = run(language, text.replace(URL, url))

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()
    assert '"error"' not in done.stdout


def test_the_streamed_example_ends_whole(url: str) -> None:
    language, text = MARKED[0]

    assert run(language, text.replace(URL, url)).stdout.endswith("data: [DONE]\n\n")


def test_the_configuration_shown_is_right(tmp_path: Path) -> None:
    shown, _ = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "penstock.yaml").write_text(shown)

    assert list(load(tmp_path / "penstock.yaml", secrets=False).config.models) == ["demo", "gpt-4o", "assistant"]


def test_the_policy_shown_is_right(tmp_path: Path) -> None:
    _, policy = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "policies.yaml").write_text(policy)
    (tmp_path / "penstock.yaml").write_text("models: {demo: {engine: {path: demo}}}\npolicies: [policies.yaml]\n")
    loaded = load(tmp_path / "penstock.yaml", secrets=False)

    assert loaded.policy is not None
    assert (list(loaded.policy.keys), loaded.policy.doubts) == (["web-1"], ())


def test_every_make_target_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))

    assert set(re.findall(r"`make ([a-z-]+)`", README)) <= targets
    assert set(re.findall(r"^make ([a-z-]+) ", README, re.MULTILINE)) == {"serve", "test"}


def test_every_file_linked_exists() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)

    assert [link for link in links if not (ROOT / link).exists()] == []
