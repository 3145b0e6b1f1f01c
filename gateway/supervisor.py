"""The small process in front of the worker: owns the listening socket, restarts what dies, passes signals on.

The worker is forked, before anything but the configuration was imported: it starts from exactly the configuration that
was checked, inherits the socket (so that callers wait in its queue, rather than being refused, while a worker is being
replaced) and shares the interpreter's pages. A socket pair ties the two together: the worker says on its end that it is
ready, and a worker whose end reports the other one closed has lost its supervisor and drains.

Signals are blocked and waited for, never handled: the loop below is all that happens, in order.

    SIGTERM, SIGINT   the first drains the worker, the second ends it at once
    SIGCHLD           a worker died: start another, later and later while they die young
    SIGHUP            the worker reads its policy files
"""

import errno
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

STOPPING = (signal.SIGTERM, signal.SIGINT)
WATCHED = frozenset({*STOPPING, signal.SIGCHLD, signal.SIGHUP})
CANNOT_START = 78  # sysexits' EX_CONFIG: the worker refused its configuration, so that another try would too
READY = b"R"
SETTLED_S = 30.0  # a worker that was ready and lived as long did not die young
FIRST_DELAY_S, LONGEST_DELAY_S = 0.1, 10.0
PAST_GRACE_S = 5.0  # for a worker to clean up behind its grace
FORCED_S = 1.0  # for a worker to go after the second signal, before it is killed

Worker = Callable[[socket.socket, socket.socket], int]


@dataclass(slots=True)
class Child:
    """A running worker: its process, our end of the pair, and when it was started."""

    pid: int
    line: socket.socket
    started: float

    def was_ready(self) -> bool:
        """Whether it said so before it died."""
        try:
            return self.line.recv(1) == READY
        except (BlockingIOError, ConnectionResetError):
            return False


@dataclass(slots=True)
class Supervisor:
    """Keeps one worker on `listener` until told to stop. `worker` runs in the child and gives its exit status."""

    listener: socket.socket
    worker: Worker
    grace_s: float
    _child: Child | None = field(default=None, init=False)
    _deaths: int = field(default=0, init=False)  # young ones in a row
    _served: bool = field(default=False, init=False)  # whether any worker ever was ready
    _restart_at: float = field(default=0.0, init=False)
    _stopping: int = field(default=0, init=False)
    _kill_at: float | None = field(default=None, init=False)
    _status: int | None = field(default=None, init=False)

    def run(self) -> int:
        """Run until stopped; gives the exit status of the whole."""
        signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
        gc.freeze()
        self._start()
        while self._status is None:
            received = self._wait()
            if received is None:
                self._due()
            elif received == signal.SIGCHLD:
                self._reap()
            elif received == signal.SIGHUP:
                self._send(signal.SIGHUP)
            else:
                self._stop()
        return self._status

    def _wait(self) -> int | None:
        """Give the next signal, or None when something is due first."""
        due = self._kill_at if self._child is not None else self._restart_at
        timeout = 3600.0 if due is None else max(0.0, due - time.monotonic())
        received = signal.sigtimedwait(WATCHED, timeout)
        return None if received is None else received.si_signo

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            ours.close()
            self._be_worker(theirs)
        theirs.close()
        ours.setblocking(False)
        self._child = Child(pid, ours, time.monotonic())

    def _be_worker(self, line: socket.socket) -> None:
        """Run the worker in the child, which never returns from here: the supervisor's frames are not its own."""
        status = 1
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches both; the supervisor decides
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the worker has policies to read
            signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)
            status = self.worker(self.listener, line)
        finally:
            error = sys.exc_info()[1]
            if error is not None:
                sys.excepthook(type(error), error, error.__traceback__)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _reap(self) -> None:
        """Collect what has died; as process 1 of a container that may be somebody else's orphan."""
        while True:
            try:
                pid, wait_status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if self._child is not None and pid == self._child.pid:
                self._lost(self._child, os.waitstatus_to_exitcode(wait_status))

    def _lost(self, child: Child, status: int) -> None:
        now = time.monotonic()
        ready = child.was_ready()
        child.line.close()
        self._child = None
        self._served = self._served or ready
        if self._stopping:
            self._status = 0 if status == 0 else 1
            return
        if status == CANNOT_START and not self._served:
            self._status = CANNOT_START
            return
        self._deaths = 1 if ready and now - child.started > SETTLED_S else self._deaths + 1
        delay = restart_delay(self._deaths)
        self._restart_at = now + delay
        how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        say(f"the worker (pid {child.pid}) ended {how}; starting another in {delay:g} s")

    def _stop(self) -> None:
        self._stopping += 1
        self.listener.close()  # the worker closes its own: from then on callers are refused, not queued
        if self._child is None:
            self._status = 0
            return
        wait_s = self.grace_s + PAST_GRACE_S if self._stopping == 1 else FORCED_S
        if self._stopping == 1:
            say(f"draining, at most {self.grace_s:g} s; a second signal ends at once")
        self._kill_at = time.monotonic() + wait_s
        self._send(signal.SIGTERM)

    def _due(self) -> None:
        if self._child is None:
            self._start()
        elif self._kill_at is not None and time.monotonic() >= self._kill_at:
            say("the worker did not end in time; killing it")
            self._kill_at = None
            self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        if self._child is None:
            return  # the next one starts from what there is
        try:
            os.kill(self._child.pid, number)
        except ProcessLookupError:
            return  # it died meanwhile; SIGCHLD is on its way


def restart_delay(deaths: int) -> float:
    """Give the seconds to wait after so many young deaths in a row: nearly none at first, then doubling."""
    return float(min(FIRST_DELAY_S * 2 ** (min(deaths, 32) - 1), LONGEST_DELAY_S))


def listen(host: str, port: int) -> socket.socket:
    """Bind and listen. Raises `OSError` whose message says what stands in the way."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise OSError(f"cannot listen on {host}: {error.strerror}") from None
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(4096)
    except OSError as error:
        listener.close()
        hint = "; is another server running there?" if error.errno == errno.EADDRINUSE else ""
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror}{hint}") from None
    return listener


def say(line: str) -> None:
    """Tell the operator, if anybody still listens; standard output belongs to the access log."""
    with suppress(OSError):
        print(f"penstock: {line}", file=sys.stderr, flush=True)
