"""`penstock serve` as an operator runs it: a process, a configuration file, real sockets."""

import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import httpx
import pytest

from tests.process.children import Process
from tests.process.conftest import Start
from tests.process.scripted_upstream import ScriptedUpstream, scripted_upstream
from tests.tiny_model import tiny_model_dir

SERVE = ("-m", "gateway.cli", "serve", "--config", "penstock.yaml")
KEYS = {"UPSTREAM_KEY": "upstream-secret", "ALICE_KEY": "alice-secret"}
BEARER = {"authorization": "Bearer alice-secret"}


@pytest.fixture
def upstream() -> Iterator[ScriptedUpstream]:
    with scripted_upstream() as server:
        yield server


@pytest.fixture
def gateway(start: Start, tmp_path: Path, upstream: ScriptedUpstream) -> Process:
    (tmp_path / "penstock.yaml").write_text(f"""\
listen: {{port: 0, drain_s: 50}}
models: {{gpt: {{upstreams: [u], upstream_model: real}}}}
upstreams: {{u: {{url: "{upstream.url}", key: env:UPSTREAM_KEY}}}}
keys: {{alice: env:ALICE_KEY}}
telemetry: {{access_log: ./access.log}}
""")
    return start(*SERVE, **KEYS)


def url_of(process: Process) -> str:
    """Wait until it serves; gives the URL that it says."""
    return process.expect("serving ").partition(" on ")[2].split()[0]


def chat(url: str, *, headers: dict[str, str] = BEARER) -> httpx.Response:
    return httpx.post(f"{url}/v1/chat/completions", json=asked(stream=False), headers=headers, timeout=60)


def chat_stream(url: str) -> AbstractContextManager[httpx.Response]:
    return httpx.stream("POST", f"{url}/v1/chat/completions", json=asked(stream=True), headers=BEARER, timeout=60)


def asked(*, stream: bool) -> dict[str, object]:
    return {"model": "gpt", "stream": stream, "messages": [{"role": "user", "content": "sesame"}]}


def connect_until_refused(url: str) -> None:
    port = int(url.rpartition(":")[2])
    while True:
        with suppress(ConnectionResetError):  # accepted into the queue of a socket that was closed just then
            socket.create_connection(("127.0.0.1", port), timeout=60).close()


def test_a_chat_goes_through_to_the_upstream_with_the_upstreams_own_key(
    gateway: Process, upstream: ScriptedUpstream
) -> None:
    answer = chat(url_of(gateway))

    assert (answer.status_code, answer.json()["choices"][0]["message"]["content"]) == (200, "Hello there!")
    [seen] = upstream.seen
    assert (seen["path"], seen["authorization"]) == ("/v1/chat/completions", "Bearer upstream-secret")
    assert seen["body"] == {"model": "real", "stream": False, "messages": [{"role": "user", "content": "sesame"}]}


def test_who_shows_no_key_is_refused_and_nothing_is_asked(gateway: Process, upstream: ScriptedUpstream) -> None:
    answer = chat(url_of(gateway), headers={})

    assert (answer.status_code, answer.json()["error"]["code"], upstream.seen) == (401, "invalid_api_key", [])


@pytest.mark.fault_row(29)
def test_a_running_stream_ends_whole_while_the_process_drains(gateway: Process, upstream: ScriptedUpstream) -> None:
    url = url_of(gateway)
    upstream.go.clear()
    with chat_stream(url) as answer:
        assert upstream.held.wait(60)
        gateway.send(signal.SIGTERM)
        gateway.expect("draining")
        with pytest.raises(ConnectionRefusedError):
            connect_until_refused(url)
        upstream.go.set()
        told = answer.read()

    assert told.endswith(b"data: [DONE]\n\n")
    assert gateway.wait() == 0


@pytest.mark.fault_row(29)
def test_a_second_signal_breaks_off_what_still_runs(gateway: Process, upstream: ScriptedUpstream) -> None:
    url = url_of(gateway)
    upstream.go.clear()
    with chat_stream(url) as answer:
        assert upstream.held.wait(60)
        gateway.send(signal.SIGTERM)
        gateway.expect("draining")
        with pytest.raises(ConnectionRefusedError):
            connect_until_refused(url)
        gateway.send(signal.SIGTERM)

        with pytest.raises(httpx.RemoteProtocolError):
            answer.read()
    assert gateway.wait() == 0


def test_probes_tell_life_and_readiness(gateway: Process) -> None:
    url = url_of(gateway)
    statuses = {path: httpx.get(url + path).status_code for path in ("/health", "/ready", "/metrics")}

    assert statuses == {"/health": 200, "/ready": 200, "/metrics": 200}


def test_every_request_leaves_one_line_that_holds_no_prompt_and_no_key(gateway: Process, tmp_path: Path) -> None:
    url = url_of(gateway)
    chat(url)
    with chat_stream(url) as answer:
        answer.read()
    gateway.send(signal.SIGTERM)
    gateway.wait()

    written = (tmp_path / "access.log").read_text()
    lines = [json.loads(line) for line in written.splitlines()]
    assert [(line["status"], line["ending"], line["tenant"], line["model"]) for line in lines] == [
        (200, "ok", "alice", "gpt")
    ] * 2
    assert [secret for secret in ("sesame", "alice-secret", "upstream-secret", "Hello") if secret in written] == []


def test_a_worker_that_dies_is_replaced_and_serves_on_the_same_port(gateway: Process) -> None:
    url = url_of(gateway)
    [worker] = gateway.children()

    os.kill(worker, signal.SIGKILL)
    gateway.expect("ended by SIGKILL")

    assert url_of(gateway) == url
    assert chat(url).status_code == 200


def test_a_worker_without_its_supervisor_drains_and_leaves_the_port(gateway: Process) -> None:
    url = url_of(gateway)
    gateway.send(signal.SIGKILL)
    gateway.expect("the supervisor is gone")

    with pytest.raises(ConnectionRefusedError):
        connect_until_refused(url)


def test_a_pure_proxy_is_small_and_loads_nothing_of_the_engine(gateway: Process) -> None:
    chat(url_of(gateway))
    [worker] = gateway.children()
    resident_kb = [
        int(line.split()[1])
        for pid in (gateway.popen.pid, worker)
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("VmRSS")
    ]
    mapped = Path(f"/proc/{worker}/maps").read_text()

    assert [library for library in ("libtorch", "numpy", "tokenizers", "markupsafe") if library in mapped] == []
    assert sum(resident_kb) < 80_000


def test_a_wrong_configuration_is_told_and_nothing_starts(start: Start, tmp_path: Path) -> None:
    (tmp_path / "penstock.yaml").write_text("modles: {}\n")
    process = start(*SERVE)

    process.expect("penstock.yaml:1:1: modles: unknown key (did you mean 'models'?)")
    assert process.wait() == 78


def test_an_address_in_use_is_told(start: Start, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (tmp_path / "penstock.yaml").write_text(
            f"listen: {{port: {port}}}\nmodels: {{m: {{upstreams: [u]}}}}\nupstreams: {{u: {{url: http://h}}}}\n"
        )
        process = start(*SERVE)

        process.expect(f"cannot listen on 127.0.0.1:{port}: Address already in use")
        assert process.wait() == 1


def test_a_log_that_cannot_be_written_is_told_and_not_tried_again(start: Start, tmp_path: Path) -> None:
    (tmp_path / "penstock.yaml").write_text(
        "listen: {port: 0}\nmodels: {m: {upstreams: [u]}}\nupstreams: {u: {url: http://h}}\n"
        "telemetry: {access_log: ./nowhere/access.log}\n"
    )
    process = start(*SERVE)

    process.expect("nowhere/access.log: No such file or directory")
    assert process.wait() == 78


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_dir(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def engine(start: Start, tmp_path: Path, model: Path) -> Process:
    (tmp_path / "penstock.yaml").write_text(
        f"listen: {{port: 0}}\nmodels: {{gpt: {{engine: {{path: {model}, threads: 1, num_blocks: 64}}}}}}\n"
        "telemetry: {access_log: off}\n"
    )
    return start(*SERVE)


def test_a_local_model_answers_through_the_same_door(engine: Process) -> None:
    url = url_of(engine)
    body = {"model": "gpt", "prompt": "The quick", "max_tokens": 5, "temperature": 0}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60).json()
    metrics = httpx.get(f"{url}/metrics").text

    assert (answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]) == (5, "length")
    assert 'penstock_engine_generated_tokens_total{model="gpt"} 5.0' in metrics
    assert 'penstock_engine_blocks{model="gpt"} 64.0' in metrics


def test_a_local_model_drains_like_any_other(engine: Process) -> None:
    url = url_of(engine)
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=asked(stream=True) | {"max_tokens": 200}) as answer:
        engine.send(signal.SIGTERM)
        told = answer.read()

    assert told.endswith(b"data: [DONE]\n\n")
    assert engine.wait() == 0


def test_a_model_that_cannot_be_loaded_is_one_clear_line(start: Start, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "penstock.yaml").write_text("listen: {port: 0}\nmodels: {gpt: {engine: {path: empty}}}\n")
    process = start(*SERVE)

    assert "model gpt: " in process.expect("penstock: ")
    assert process.wait() == 78
