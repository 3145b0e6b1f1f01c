"""The small process in front of the worker: owns the listening socket, restarts what dies, passes signals on.

The worker is forked, before anything but the configuration was imported: it starts from exactly the configuration that
was checked, inherits the socket (so that callers wait in its queue, rather than being refused, while a worker is being
replaced) and shares the interpreter's pages. A socket pair ties the two together: the worker says on its end that it is
ready, hears there that it is relieved, and a worker whose end reports the other one closed has lost its supervisor and
drains.

Signals are blocked and waited for, never handled: the loop below is all that happens, in order.

    SIGTERM, SIGINT   the first drains the worker, the second ends it at once
    SIGCHLD           a worker died: start another, later and later while they die young
    SIGHUP            the worker reads its policy files
    SIGUSR2           the configuration is read again and a new worker relieves the old one

Relief: the new worker starts beside the old one and accepts nothing until it is ready. Then the old one hands its idle
connections over (`gateway/http/handover.py`), finishes what it runs, and ends; no request fails. A configuration that
is wrong, or a worker that does not come up, changes nothing: the old one serves on. Where an engine runs, there is no
room for two: the old worker drains first, not ready meanwhile, and if the new one does not come up, the old
configuration is started again.

What a dying worker was computing stands in a journal in shared memory; `gateway/process/journal.py` says what follows
from it.
"""

import errno
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from gateway.process.journal import Docket, Journal

STOPPING = (signal.SIGTERM, signal.SIGINT)
WATCHED = frozenset({*STOPPING, signal.SIGCHLD, signal.SIGHUP, signal.SIGUSR2})
CANNOT_START = 78  # sysexits' EX_CONFIG: the worker refused its configuration, so that another try would too
READY = b"R"  # from the worker
HAND_OVER = b"H"  # to the worker, with a socket: drain, and send idle connections through it
MAKE_ROOM = b"M"  # to the worker: drain, answering that nothing is taken
SETTLED_S = 30.0  # a worker that was ready and lived as long did not die young
FIRST_DELAY_S, LONGEST_DELAY_S = 0.1, 10.0
PAST_GRACE_S = 5.0  # for a worker to clean up behind its grace
FORCED_S = 1.0  # for a worker to go after the second signal, before it is killed
RELIEF_S = 120.0  # for a new worker to be ready beside the old one
LOOK_S = 0.02  # between two looks whether a new worker is ready


@dataclass(slots=True)
class Post:
    """What a worker is given beside its configuration.

    `relieves` is where the worker before sends its connections; None for one that begins, which accepts at once.
    """

    listener: socket.socket
    line: socket.socket
    journal: Journal
    docket: Docket
    relieves: socket.socket | None = None


Worker = Callable[[Post], int]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a worker does. `worker` runs in the child and gives its exit status.

    `alone` says that no two of it fit beside each other.
    """

    worker: Worker
    grace_s: float
    alone: bool = False


@dataclass(slots=True, eq=False)
class Child:
    """A running worker: its process, our end of the pair, what it does, and when it was started."""

    pid: int
    line: socket.socket
    plan: Plan
    journal: Journal
    started: float
    handover: socket.socket | None = None  # for the worker that this one relieves
    ready: bool = False
    told: bool = False  # to end
    killed: bool = False  # by us
    kill_at: float | None = None

    def look(self) -> bool:
        """Whether it has said that it is ready."""
        with suppress(BlockingIOError, ConnectionResetError):
            self.ready = self.ready or self.line.recv(1) == READY
        return self.ready

    def send(self, number: signal.Signals) -> None:
        """Send a signal to it, if it is still there."""
        with suppress(ProcessLookupError):  # it died meanwhile; SIGCHLD is on its way
            os.kill(self.pid, number)

    def close(self) -> None:
        """Let go of what ties us to it."""
        self.line.close()
        if self.handover is not None:
            self.handover.close()


@dataclass(slots=True)
class Supervisor:
    """Keeps one worker on `listener` until told to stop. `renew` reads the configuration again; None: it is wrong."""

    listener: socket.socket
    plan: Plan
    renew: Callable[[], Plan | None] | None = None
    docket: Docket = field(default_factory=Docket)
    _child: Child | None = field(default=None, init=False)
    _successor: Child | None = field(default=None, init=False)  # not ready yet
    _retired: list[Child] = field(default_factory=list, init=False)  # relieved, and draining
    _next: Plan | None = field(default=None, init=False)  # when the child has made room
    _deaths: int = field(default=0, init=False)  # young ones in a row
    _served: bool = field(default=False, init=False)  # whether any worker ever was ready
    _restart_at: float = field(default=0.0, init=False)
    _stopping: int = field(default=0, init=False)
    _failed: bool = field(default=False, init=False)
    _status: int | None = field(default=None, init=False)

    def run(self) -> int:
        """Run until stopped; gives the exit status of the whole."""
        signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
        gc.freeze()
        self._child = self._start(self.plan)
        while self._status is None:
            received = self._wait()
            if received == signal.SIGCHLD:
                self._reap()
            elif received == signal.SIGHUP:
                for child in self._serving():
                    child.send(signal.SIGHUP)
            elif received == signal.SIGUSR2:
                self._relieve()
            elif received is not None:
                self._stop()
            self._due()
        return self._status

    def _children(self) -> Iterator[Child]:
        yield from self._serving()
        yield from tuple(self._retired)

    def _serving(self) -> Iterator[Child]:
        if self._child is not None:
            yield self._child
        if self._successor is not None:
            yield self._successor

    @property
    def _vacant(self) -> bool:
        """Whether a worker is to be started."""
        return self._child is None and self._successor is None and not self._stopping

    def _wait(self) -> int | None:
        """Give the next signal, or None when something is due first."""
        now = time.monotonic()
        dues = [child.kill_at for child in self._children() if child.kill_at is not None]
        if self._vacant:
            dues.append(self._restart_at)
        if self._successor is not None or (self._child is not None and not self._child.ready):
            dues.append(now + LOOK_S)
        received = signal.sigtimedwait(WATCHED, max(0.0, min(dues, default=now + 3600.0) - now))
        return None if received is None else received.si_signo

    def _due(self) -> None:
        """Do what is due: look who is ready, start who is wanted, kill who does not go."""
        if self._child is not None and not self._child.ready and self._child.look():
            self._served = True
            self.plan = self._child.plan
        if self._successor is not None and self._successor.look() and not self._stopping:
            self._take_over(self._successor)
        now = time.monotonic()
        if self._vacant and now >= self._restart_at:
            self._child = self._start(self._next or self.plan)
            self._next = None
        for child in self._children():
            if child.kill_at is not None and now >= child.kill_at:
                say(f"the worker (pid {child.pid}) did not end in time; killing it")
                child.kill_at, child.killed = None, True
                child.send(signal.SIGKILL)

    # Starting

    def _start(self, plan: Plan, *, relieves: bool = False) -> Child:
        ours, theirs = socket.socketpair()
        sending, receiving = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) if relieves else (None, None)
        journal = Journal()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            for each in (ours, sending):
                if each is not None:
                    each.close()
            for child in self._children():
                child.close()  # else nobody would notice when our parent closes them
            self._be_worker(plan.worker, Post(self.listener, theirs, journal, self.docket, receiving))
        theirs.close()
        if receiving is not None:
            receiving.close()
        ours.setblocking(False)
        return Child(pid, ours, plan, journal, time.monotonic(), sending)

    def _be_worker(self, worker: Worker, post: Post) -> None:
        """Run the worker in the child, which never returns from here: the supervisor's frames are not its own."""
        status = 1
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches both; the supervisor decides
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the worker has policies to read
            signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # is for the supervisor alone
            signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)
            status = worker(post)
        finally:
            error = sys.exc_info()[1]
            if error is not None:
                sys.excepthook(type(error), error, error.__traceback__)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    # Relieving

    def _relieve(self) -> None:
        """Begin to put a new worker in the place of the one that serves."""
        if self._stopping or self.renew is None:
            return
        if self._successor is not None or self._next is not None:
            say("a restart is under way already")
            return
        plan = self.renew()
        if plan is None:
            say("not restarted: the worker that runs serves on")
            return
        if self._child is None:
            self._next = plan  # its start is due anyway
        elif plan.alone or self._child.plan.alone:
            say(f"restarting: the running worker drains first, at most {self._child.plan.grace_s:g} s")
            self._next = plan
            self._dismiss(self._child, MAKE_ROOM)
        else:
            say("restarting: a new worker starts beside the running one")
            self._successor = self._start(plan, relieves=True)
            self._successor.kill_at = time.monotonic() + RELIEF_S

    def _take_over(self, successor: Child) -> None:
        """Put the successor, which is ready, in the place of the one that serves."""
        self._successor, successor.kill_at = None, None
        self.plan = successor.plan
        former, self._child = self._child, successor
        self._deaths = 0
        handover, successor.handover = successor.handover, None
        assert handover is not None, "a successor has a line to the one that it relieves"
        with handover:
            if former is not None:
                self._retired.append(former)
                say(f"worker {successor.pid} has taken over; worker {former.pid} finishes what it runs")
                self._dismiss(former, HAND_OVER, handover)

    def _dismiss(self, child: Child, order: bytes, handover: socket.socket | None = None) -> None:
        """Have a worker drain and end."""
        child.told = True
        child.kill_at = time.monotonic() + child.plan.grace_s + PAST_GRACE_S
        with suppress(OSError):  # it died meanwhile; SIGCHLD is on its way
            if handover is None:
                child.line.send(order)
            else:
                socket.send_fds(child.line, [order], [handover.fileno()])

    # Losing

    def _reap(self) -> None:
        """Collect what has died; as process 1 of a container that may be somebody else's orphan."""
        while True:
            try:
                pid, wait_status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for child in self._children():
                if child.pid == pid:
                    self._lost(child, os.waitstatus_to_exitcode(wait_status))

    def _lost(self, child: Child, status: int) -> None:
        child.look()
        child.close()
        how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        obeyed = child.killed or (child.told and status == -signal.SIGTERM)
        if status not in (0, CANNOT_START) and not obeyed:
            self._hear(child)
        child.journal.close()
        if child is self._successor:
            self._successor = None
            if not self._stopping:
                say(f"the new worker (pid {child.pid}) ended {how}; the one that runs serves on")
        elif child in self._retired:
            self._retired.remove(child)
            if status and not self._stopping:
                say(f"the relieved worker (pid {child.pid}) ended {how}")
        else:
            self._child = None
            self._failed = status != 0
            if not self._stopping:
                self._replace(child, status, how)
        if self._stopping and not any(self._children()):
            self._status = 1 if self._failed else 0

    def _replace(self, child: Child, status: int, how: str) -> None:
        """See to it that somebody comes after the worker that served."""
        now = time.monotonic()
        self._served = self._served or child.ready
        if self._successor is not None:
            say(f"the worker (pid {child.pid}) ended {how}; its successor takes over as it is")
            return
        if child.told:  # to make room
            self._restart_at = now
            return
        if not child.ready and child.plan is not self.plan:
            say(f"the new worker (pid {child.pid}) ended {how}; starting as before")
            self._restart_at = now
            return
        if status == CANNOT_START and not self._served:
            self._status = CANNOT_START
            return
        self._deaths = 1 if child.ready and now - child.started > SETTLED_S else self._deaths + 1
        delay = restart_delay(self._deaths)
        self._restart_at = now + delay
        say(f"the worker (pid {child.pid}) ended {how}; starting another in {delay:g} s")

    def _hear(self, child: Child) -> None:
        """Take in what a worker that died was computing."""
        in_flight = child.journal.in_flight()
        found = self.docket.died(in_flight, child.journal.acquitted())
        if found is not None:
            say(f"request {found.hex()} was being computed at {self.docket.strikes(found)} deaths; it is quarantined")
        elif in_flight:
            say(f"{len(in_flight)} requests were being computed when the worker died; each has a strike")

    # Stopping

    def _stop(self) -> None:
        self._stopping += 1
        self.listener.close()  # the workers close theirs: from then on callers are refused, not queued
        if not any(self._children()):
            self._status = 0
            return
        if self._stopping == 1:
            self._failed = False
            say(f"draining, at most {self.plan.grace_s:g} s; a second signal ends at once")
        now = time.monotonic()
        for child in self._children():
            if self._stopping > 1 or not child.told:
                wait_s = child.plan.grace_s + PAST_GRACE_S if self._stopping == 1 else FORCED_S
                child.told, child.kill_at = True, now + wait_s
                child.send(signal.SIGTERM)


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
        print(f"penstock: {line}\n", end="", file=sys.stderr, flush=True)  # in one write: others write there too
