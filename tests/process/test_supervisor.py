"""The supervisor: what dies is started again, signals do what they say, nothing outlives what owns it."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.supervisor import CANNOT_START, LONGEST_DELAY_S, listen, restart_delay

# A worker in a few lines: says what it is told to, answers each connection with its pid, and ends as asked.
SCRIPT = """
import os, select, signal, sys
from gateway.supervisor import READY, Supervisor, listen, say

def worker(listener, line):
    mode = sys.argv[1]
    if mode == "refuses":
        return 78
    stopping = [False]
    def stop(*_):
        if mode == "stubborn" :
            say("not yet")
        else:
            stopping[0] = True
    signal.signal(signal.SIGTERM, stop)
    line.send(READY)
    say(f"worker {os.getpid()} ready")
    while not stopping[0]:
        readable, _, _ = select.select([listener, line], [], [], 0.05)
        if line in readable:
            say(f"orphan {os.getpid()} leaves")
            return 0
        if listener in readable:
            client, _ = listener.accept()
            client.sendall(str(os.getpid()).encode())
            client.close()
    return 0

listener = listen("127.0.0.1", 0)
say(f"port {listener.getsockname()[1]}")
sys.exit(Supervisor(listener, worker, grace_s=float(sys.argv[2])).run())
"""


def ask(port: int) -> int:
    """Connect, and give the pid of the worker that answered."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        return int(connection.recv(100))


def test_sigterm_drains_the_worker_and_ends_with_status_0(start) -> None:
    process = start("-c", SCRIPT, "willing", "30")
    process.expect("ready")

    process.send(signal.SIGTERM)

    assert process.wait() == 0


def test_a_worker_that_dies_is_replaced_and_callers_wait_meanwhile(start) -> None:
    process = start("-c", SCRIPT, "willing", "30")
    port = int(process.expect("port").split()[-1])
    first = ask(port)

    os.kill(first, signal.SIGKILL)
    process.expect("ended by SIGKILL")
    second = ask(port)  # queued in the listening socket that the supervisor holds

    assert second != first
    assert [second] == process.children()


def test_a_worker_that_refuses_its_configuration_is_not_tried_again(start) -> None:
    process = start("-c", SCRIPT, "refuses", "30")

    assert process.wait() == CANNOT_START


def test_a_second_signal_does_not_wait_for_the_grace(start) -> None:
    process = start("-c", SCRIPT, "stubborn", "3600")
    process.expect("ready")

    process.send(signal.SIGTERM)
    process.expect("not yet")
    process.send(signal.SIGINT)
    process.expect("killing it")

    assert process.wait() == 1


def test_callers_are_refused_once_it_is_told_to_stop(start) -> None:
    process = start("-c", SCRIPT, "willing", "30")
    port = int(process.expect("port").split()[-1])
    process.expect("ready")

    process.send(signal.SIGTERM)
    process.wait()

    with pytest.raises(ConnectionRefusedError):
        ask(port)


def test_a_worker_leaves_when_its_supervisor_is_gone(start) -> None:
    process = start("-c", SCRIPT, "willing", "30")
    process.expect("ready")

    process.send(signal.SIGKILL)

    process.expect("leaves")


def test_restarts_come_later_and_later_up_to_a_bound() -> None:
    assert [restart_delay(deaths) for deaths in (1, 2, 3, 4)] == [0.1, 0.2, 0.4, 0.8]
    assert restart_delay(1000) == LONGEST_DELAY_S


def test_an_address_in_use_is_one_clear_line() -> None:
    with listen("127.0.0.1", 0) as first, pytest.raises(OSError, match="is another server running there"):
        listen("127.0.0.1", first.getsockname()[1])


def test_the_supervisor_imports_nothing_heavy() -> None:
    script = "import gateway.cli, gateway.supervisor, gateway.config, sys; print(sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )

    assert [
        name for name in ("torch", "numpy", "tokenizers", "jinja2", "httpx", "asyncio") if f"'{name}'" in done.stdout
    ] == []
