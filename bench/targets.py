"""What is measured: the upstream itself, and the gateways before it, each started the way its own documents say.

Every peer in its simplest production form, with one worker and without limits, caches or tracing; Penstock with every
stage that it has, its access log among them.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from bench.instruments import BUILD, GATEWAY_CORE, LOAD_CORE, ROOT, free_port, pinned

KEY = "bench-0123456789abcdef"
LITELLM_VERSION = "1.106.2"


class Unavailable(Exception):
    """A peer cannot be had on this machine; the message says why."""


@dataclass(slots=True)
class Target:
    """A server that runs. `start_s` is from its start to its first answer."""

    name: str
    port: int
    process: psutil.Process
    start_s: float
    idle_rss_mb: float = field(default=0.0)

    def processes(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]

    def rss_mb(self) -> float:
        """Resident memory of all its processes; what they share is counted in each."""
        return sum(process.memory_info().rss for process in self.processes()) / 1e6

    def cpu_s(self) -> float:
        """CPU time of all its processes, in the kernel too."""
        return sum(sum(process.cpu_times()[:2]) for process in self.processes())


@contextmanager
def upstream() -> Iterator[Target]:
    """Run the mock."""
    port = free_port()
    with running("direct", port, LOAD_CORE, BUILD / "upstream", str(port)) as target:
        yield target


@contextmanager
def penstock(upstream_port: int, name: str = "penstock", module: str = "gateway.cli") -> Iterator[Target]:
    """Run `penstock serve` with an HTTP upstream and a key."""
    port, config = free_port(), BUILD / f"{name}.yaml"
    config.write_text(
        f"listen: {{port: {port}}}\n"
        f"models: {{mock: {{upstreams: [mock]}}}}\n"
        f"upstreams: {{mock: {{url: 'http://127.0.0.1:{upstream_port}/v1'}}}}\n"
        f"keys: {{bench: 'env:BENCH_KEY'}}\n"
    )
    command = (sys.executable, "-m", module, "serve", "--config", config)
    with running(name, port, GATEWAY_CORE, *command, env={"BENCH_KEY": KEY}) as target:
        yield target


@contextmanager
def plain_proxy(upstream_port: int) -> Iterator[Target]:
    """Run the same with the stages of a plain proxy alone."""
    with penstock(upstream_port, "plain proxy", "bench.plain_proxy") as target:
        yield target


NGINX = """
worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/nginx.error.log;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {folder}/nginx-body;
    proxy_temp_path {folder}/nginx-proxy;
    fastcgi_temp_path {folder}/nginx-fastcgi;
    uwsgi_temp_path {folder}/nginx-uwsgi;
    scgi_temp_path {folder}/nginx-scgi;
    keepalive_requests 1000000000;
    upstream mock {{ server 127.0.0.1:{upstream_port}; keepalive 256; keepalive_requests 1000000000; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://mock;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }}
    }}
}}
"""


@contextmanager
def nginx(upstream_port: int) -> Iterator[Target]:
    """Run nginx as a bare reverse proxy."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        raise Unavailable("nginx is not installed (Debian: nginx-light)")
    port, config = free_port(), BUILD / "nginx.conf"
    config.write_text(NGINX.format(folder=BUILD, port=port, upstream_port=upstream_port))
    with running("nginx", port, GATEWAY_CORE, program, "-c", config, "-e", BUILD / "nginx.error.log") as target:
        yield target


@contextmanager
def litellm(upstream_port: int) -> Iterator[Target]:
    """Run LiteLLM's proxy with one worker, from an environment of its own."""
    program = install_litellm()
    port, config = free_port(), BUILD / "litellm.yaml"
    config.write_text(
        "model_list:\n"
        "  - model_name: mock\n"
        f"    litellm_params: {{model: openai/mock, api_base: 'http://127.0.0.1:{upstream_port}/v1', api_key: none}}\n"
        "litellm_settings: {telemetry: false, request_timeout: 600}\n"
    )
    command = (program, "--config", config, "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1")
    # It refuses to start without a key; ours, so that both look one up, and it calls anything but its own form weak.
    env = {"LITELLM_MASTER_KEY": KEY, "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true"}
    env |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "PYTHONDONTWRITEBYTECODE": ""}
    with running("litellm", port, GATEWAY_CORE, *command, env=env, patience_s=120.0) as target:
        yield target


def install_litellm() -> Path:
    """Give LiteLLM's program, installing it first. Raises `Unavailable`."""
    folder = ROOT / "build" / "litellm"
    program = folder / "bin" / "litellm"
    if not program.exists():
        print(f"installing litellm {LITELLM_VERSION} into {folder.relative_to(ROOT)} ...", file=sys.stderr)
        for command in (
            [sys.executable, "-m", "venv", folder],
            [folder / "bin" / "pip", "install", "-q", f"litellm[proxy]=={LITELLM_VERSION}"],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                lines = done.stderr.strip().splitlines()
                raise Unavailable(f"litellm cannot be installed: {lines[-1] if lines else done.returncode}")
    return program


@contextmanager
def running(
    name: str, port: int, core: int, *command: str | Path, env: dict[str, str] | None = None, patience_s: float = 20.0
) -> Iterator[Target]:
    """Run a server until the block ends. Raises `Unavailable` if it does not answer in time."""
    log = BUILD / f"{name}.log"
    begin = time.monotonic()
    with log.open("w") as output:
        child = subprocess.Popen(
            pinned(core, *command),
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=BUILD,
            env={**os.environ, **(env or {})},
        )
    try:
        while not answers(port):
            if child.poll() is not None or time.monotonic() - begin > patience_s:
                raise Unavailable(f"{name} does not answer; see {log}")
            time.sleep(0.005)
        yield Target(name, port, psutil.Process(child.pid), time.monotonic() - begin)
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(20.0)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def answers(port: int) -> bool:
    """Whether a completion comes back."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        b'{"model":"mock","messages":[{"role":"user","content":"hi"}]}',
        {"content-type": "application/json", "authorization": f"Bearer {KEY}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=10.0) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False
