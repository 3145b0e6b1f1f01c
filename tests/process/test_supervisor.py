"""The supervisor: what dies is started again, signals do what they say, nothing outlives what owns it."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.process.supervisor import CANNOT_START, LONGEST_DELAY_S, listen, restart_delay

# A worker in a few lines: says what it is told to, answers each connection with its pid, and ends as asked.
SCRIPT = """
import os, select, signal, socket, sys
from gateway.process.supervisor import HAND_OVER, MAKE_ROOM, READY, Plan, Supervisor, listen, say

def worker(name, post):
    mode = sys.argv[1]
    if mode == "refuses" or name == "broken":
        return 78
    stopping = [False]
    def stop(*_):
        if mode == "stubborn" :
            say("not yet")
        else:
            stopping[0] = True
    signal.signal(signal.SIGTERM, stop)
    post.line.send(READY)
    say(f"{name} worker {os.getpid()} ready")
    listener, line = post.listener, post.line
    while not stopping[0]:
        readable, _, _ = select.select([listener, line], [], [], 0.05)
        if line in readable:
            try:
                order, descriptors, _, _ = socket.recv_fds(line, 1, 1)
            except ConnectionResetError:  # it went before it read that we are ready
                order = b""
            if not order:
                say(f"orphan {os.getpid()} leaves")
            elif order == MAKE_ROOM:
                say(f"{name} worker makes room")
            else:
                say(f"{name} worker hands over through {len(descriptors)}")
            return 0
        if listener in readable:
            client, _ = listener.accept()
            client.sendall(str(os.getpid()).encode())
            client.close()
    return 0

names = iter(sys.argv[3:])

def renew():
    name = next(names)
    return None if name == "wrong" else plan(name)

def plan(name):
    return Plan(lambda post: worker(name, post), float(sys.argv[2]), alone=sys.argv[1] == "alone")

listener = listen("127.0.0.1", 0)
say(f"port {listener.getsockname()[1]}")
sys.exit(Supervisor(listener, plan("first"), renew).run())
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


@pytest.mark.fault_row(29)
def test_a_second_signal_does_not_wait_for_the_grace(start) -> None:
    process = start("-c", SCRIPT, "stubborn", "3600")
    process.expect("ready")

    process.send(signal.SIGTERM)
    process.expect("not yet")
    process.send(signal.SIGINT)
    process.expect("killing it")

    assert process.wait() == 1


@pytest.mark.fault_row(29)
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


def test_a_new_worker_relieves_the_old_one_once_it_is_ready(start) -> None:
    process = start("-c", SCRIPT, "willing", "30", "second")
    port = int(process.expect("port").split()[-1])
    process.expect("first worker")
    first = ask(port)

    process.send(signal.SIGUSR2)
    process.expect("second worker")
    process.expect("has taken over")
    process.expect("hands over through 1")

    assert ask(port) != first


def test_a_wrong_configuration_leaves_the_old_worker_serving(start) -> None:
    process = start("-c", SCRIPT, "willing", "30", "wrong")
    port = int(process.expect("port").split()[-1])
    process.expect("first worker")
    first = ask(port)

    process.send(signal.SIGUSR2)
    process.expect("serves on")

    assert ask(port) == first


def test_a_new_worker_that_does_not_come_up_leaves_the_old_one_serving(start) -> None:
    process = start("-c", SCRIPT, "willing", "30", "broken", "third")
    port = int(process.expect("port").split()[-1])
    process.expect("first worker")
    first = ask(port)

    process.send(signal.SIGUSR2)
    process.expect("with status 78; the one that runs serves on")

    assert ask(port) == first

    process.send(signal.SIGUSR2)
    process.expect("third worker")


def test_where_there_is_no_room_for_two_the_old_worker_drains_first(start) -> None:
    process = start("-c", SCRIPT, "alone", "30", "second")
    process.expect("first worker")

    process.send(signal.SIGUSR2)

    process.expect("makes room")
    process.expect("second worker")


def test_where_there_is_no_room_for_two_and_the_new_one_fails_the_old_plan_runs_again(start) -> None:
    process = start("-c", SCRIPT, "alone", "30", "broken")
    port = int(process.expect("port").split()[-1])
    process.expect("first worker")

    process.send(signal.SIGUSR2)
    process.expect("makes room")
    process.expect("starting as before")
    process.expect("first worker")

    assert [ask(port)] == process.children()


def test_after_a_relief_the_supervisor_stops_and_is_left_as_before(start) -> None:
    process = start("-c", SCRIPT, "willing", "30", "second")
    process.expect("first worker")
    process.send(signal.SIGUSR2)
    process.expect("has taken over")

    process.send(signal.SIGTERM)

    assert process.wait() == 0


def test_a_relieved_worker_s_successor_leaves_when_the_supervisor_is_gone(start) -> None:
    process = start("-c", SCRIPT, "willing", "30", "second")
    process.expect("first worker")
    process.send(signal.SIGUSR2)
    process.expect("has taken over")

    process.send(signal.SIGKILL)

    process.expect("leaves")


def test_restarts_come_later_and_later_up_to_a_bound() -> None:
    assert [restart_delay(deaths) for deaths in (1, 2, 3, 4)] == [0.1, 0.2, 0.4, 0.8]
    assert restart_delay(1000) == LONGEST_DELAY_S


def test_an_address_in_use_is_one_clear_line() -> None:
    with listen("127.0.0.1", 0) as first, pytest.raises(OSError, match="is another server running there"):
        listen("127.0.0.1", first.getsockname()[1])


def test_the_supervisor_imports_nothing_heavy() -> None:
    script = (
        "import gateway.cli, gateway.process.supervisor, gateway.configuration.config, sys; print(sorted(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )

    assert [
        name for name in ("torch", "numpy", "tokenizers", "jinja2", "httpx", "asyncio") if f"'{name}'" in done.stdout
    ] == []
