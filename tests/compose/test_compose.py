"""The compose file really starts, answers through its published port, and goes down again. `make test-compose`.

Needs a Docker engine (DOCKER_HOST is honoured) and one of `docker compose` and `docker-compose`.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[2]
KEY = "compose-test-key"
PROJECT = "penstock-test"
BUILD_S, START_S = 1800, 180

pytestmark = [pytest.mark.slow, pytest.mark.timeout(BUILD_S + 2 * START_S)]


def compose_command() -> list[str] | None:
    if shutil.which("docker") and subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0:
        return ["docker", "compose"]
    found = shutil.which("docker-compose")
    return [found] if found else None


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@pytest.fixture(scope="module")
def stack() -> Iterator[str]:
    """Build and start the stack; gives its URL."""
    command = compose_command()
    if command is None or subprocess.run(["docker", "info"], capture_output=True).returncode != 0:
        pytest.fail("no Docker engine answers, or there is no compose; set DOCKER_HOST or start one")
    port = free_port()
    environ = {**os.environ, "PENSTOCK_KEY": KEY, "PENSTOCK_PORT": str(port)}

    def compose(*arguments: str, timeout: float) -> None:
        subprocess.run([*command, "-p", PROJECT, *arguments], cwd=ROOT, env=environ, check=True, timeout=timeout)

    try:
        compose("build", timeout=BUILD_S)
        compose("up", "-d", "--no-build", timeout=START_S)
        wait_until_ready(f"http://127.0.0.1:{port}")
        yield f"http://127.0.0.1:{port}"
    except BaseException:
        compose("logs", "--tail", "100", timeout=START_S)
        raise
    finally:
        compose("down", "--volumes", "--timeout", "20", timeout=START_S)


def wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            if httpx.get(f"{url}/ready", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass  # not listening yet
        assert time.monotonic() < deadline, "the stack did not become ready"
        time.sleep(0.2)


def complete(url: str, headers: dict[str, str]) -> httpx.Response:
    asked = {"model": "demo", "prompt": "The capital of", "max_tokens": 8, "temperature": 0}
    return httpx.post(f"{url}/v1/completions", json=asked, headers=headers, timeout=60)


def the_container() -> str:
    names = subprocess.run(
        ["docker", "ps", "-q", "--filter", f"label=com.docker.compose.project={PROJECT}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return names.stdout.strip()


def test_a_completion_comes_through_the_published_port(stack: str) -> None:
    answer = complete(stack, {"authorization": f"Bearer {KEY}"})

    assert answer.status_code == 200
    assert answer.json()["choices"][0]["text"]
    assert answer.json()["usage"]["completion_tokens"] > 0


def test_the_published_port_wants_the_key(stack: str) -> None:
    assert complete(stack, {}).status_code == 401


def test_the_container_runs_as_nobody_on_a_file_system_that_it_cannot_write(stack: str) -> None:
    told = subprocess.run(
        ["docker", "exec", the_container(), "sh", "-c", "id -u; touch /opt/penstock/x 2>/dev/null || echo refused"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert told.stdout.split() == ["10001", "refused"]


def test_told_to_stop_it_drains_and_ends_with_0(stack: str) -> None:
    container = the_container()
    subprocess.run(["docker", "stop", "--time", "30", container], capture_output=True, check=True)
    told = subprocess.run(
        ["docker", "inspect", "--format", "{{.State.ExitCode}}", container], capture_output=True, text=True, check=True
    )

    assert told.stdout.strip() == "0"
