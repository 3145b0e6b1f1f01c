"""The process that serves: from the inherited socket to a drained exit.

It listens from the start, so that `/health` is answered while models still load; everything else is told to come back
until the gateway is assembled. Then it serves until SIGTERM, until it is relieved or until the supervisor is gone,
drains, and ends. A worker that relieves another accepts nothing before it is ready.
"""

import asyncio
import gc
import logging
import resource
import signal
import socket
import sys
from functools import partial

import uvloop

from gateway import __version__
from gateway.app import App
from gateway.assembly import SWITCH_S, StartError, assemble
from gateway.configuration.config import Listen, LogTarget
from gateway.configuration.loading import Loaded
from gateway.configuration.policy_files import PolicyFiles, described
from gateway.http.handover import Sender
from gateway.http.limits import ServerLimits
from gateway.http.message import HttpRequest, Responder
from gateway.http.server import Server
from gateway.process.journal import Docket, Verdict
from gateway.process.supervisor import CANNOT_START, HAND_OVER, MAKE_ROOM, PAST_GRACE_S, READY, Post, say
from gateway.quotas.store import QuotaStore
from gateway.stages.record import Sink
from gateway.telemetry.access_log import AccessLog
from gateway.telemetry.loop_lag import LoopLag
from gateway.telemetry.metrics import Metrics

JSON = (b"content-type", b"application/json")
ALIVE = b'{"status":"ok"}'
LOADING = (
    b'{"error":{"message":"The models are still being loaded.","type":"server_error","param":null,"code":"loading"}}'
)
STUCK = 70  # sysexits' EX_SOFTWARE: the worker has given itself up
YOUNG_OBJECTS = 10_000  # made and not given back, before the collector looks for cycles among them
SPARE_FILES = 256  # beside one per connection: libraries, logs, upstreams that are no connections of ours


def work(loaded: Loaded, post: Post) -> int:
    """Serve until told to stop; gives the exit status."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="penstock: %(levelname)s %(name)s: %(message)s"
    )
    allow_files(2 * loaded.config.listen.max_connections + SPARE_FILES)
    loop = uvloop.new_event_loop()
    try:
        return loop.run_until_complete(serve(loaded, post))
    finally:
        loop.close()


async def serve(loaded: Loaded, post: Post) -> int:
    """Listen, assemble, serve, drain."""
    config = loaded.config
    try:
        access_log = open_access_log(config.telemetry.access_log, loaded)
    except OSError as error:
        say(f"cannot write the access log {error.filename}: {error.strerror}")
        return CANNOT_START
    metrics = Metrics(__version__)
    try:
        quotas = quota_store(loaded, metrics)
    except OSError as error:
        say(f"cannot use store.ca_file: {error}")
        return CANNOT_START
    server = Server(still_loading, server_limits(config.listen))
    metrics.watch("connections", "Open connections of callers.", lambda: server.connections)
    sinks: list[Sink] = [metrics.observe]
    if access_log is not None:
        sinks.append(access_log.write)
        metrics.watch("access_log_lines_dropped", "Lines that found no room or no disk.", lambda: access_log.dropped)
    lag = LoopLag()
    metrics.watch("loop_lag_seconds", "The worst delay of the event loop since the last scrape.", lag.read)
    metrics.watch("event_loop_tasks", "Tasks on the event loop.", lambda: len(asyncio.all_tasks()))
    metrics.watch("python_blocks", "Pieces of memory that Python's objects hold.", sys.getallocatedblocks)
    watch_docket(post.docket, metrics)
    url = url_of(post.listener)
    if post.relieves is None:
        await server.start(post.listener)
    stop = Stop(post.line, config.listen.drain_s)
    policies = open_policies(loaded, metrics)
    app: App | None = None
    give_up = GiveUp(post, stop)
    assembling = asyncio.ensure_future(assemble(loaded, metrics, sinks, quotas, policies, post, give_up))
    try:
        app = await stop.unless(assembling)
        if app is not None:
            server.application = app
            settle_memory()
            if post.relieves is not None:
                await server.start(post.listener)
                server.relieve(post.relieves)
            post.line.send(READY)
            say(announcement(loaded, url))
            await stop.asked.wait()
    except StartError as error:
        say(str(error))
        return CANNOT_START
    finally:
        await drain(server, app, config.listen.drain_s, stop)
        if app is not None and give_up.reason is None:
            await app.aclose()
        await quotas.aclose()
        if policies is not None:
            policies.close()
        lag.close()
        if access_log is not None:
            await access_log.aclose()
    return STUCK if give_up.reason else 0


class Stop:
    """Why to stop, and how: SIGTERM, an order of the supervisor, or a supervisor that is gone.

    Being asked again breaks off what still drains. `making_room` is an order to go on answering, that nothing is taken;
    `successor` takes over connections.
    """

    def __init__(self, line: socket.socket, grace_s: float) -> None:
        self.asked = asyncio.Event()
        self.draining: asyncio.Task[None] | None = None
        self.making_room = False
        self.at_once: str | None = None  # why there is no time for what runs
        self.successor: Sender | None = None
        self._line = line
        self._grace_s = grace_s
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._ask)
        loop.add_reader(line.fileno(), self._listen)

    async def unless(self, task: "asyncio.Task[App]") -> App | None:
        """Await a task, but not beyond being asked to stop: a model that loads on its thread ends with the process."""
        asked = asyncio.ensure_future(self.asked.wait())
        await asyncio.wait((task, asked), return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        if task.done():
            return task.result()
        task.cancel()
        return None

    def give_up(self, reason: str) -> None:
        """Stop without waiting for what runs; the system's own clock ends what does not."""
        self.at_once = reason
        signal.setitimer(signal.ITIMER_REAL, 2 * PAST_GRACE_S)
        self.asked.set()

    def _ask(self) -> None:
        if self.draining is not None:
            self.draining.cancel()
        self.asked.set()

    def _listen(self) -> None:
        """Take an order of the supervisor, or notice that it is gone."""
        try:
            order, descriptors, _, _ = socket.recv_fds(self._line, 1, 1)
        except ConnectionResetError:
            order, descriptors = b"", []
        if order == HAND_OVER and descriptors:
            self.successor = Sender(socket.socket(fileno=descriptors[0]))
            self.asked.set()
        elif order == MAKE_ROOM:
            self.making_room = True
            self.asked.set()
        elif not order:
            asyncio.get_running_loop().remove_reader(self._line.fileno())
            say("the supervisor is gone; draining")
            # Nobody is left to kill us if we hang: then the system's own clock does.
            signal.setitimer(signal.ITIMER_REAL, self._grace_s + PAST_GRACE_S)
            if self.draining is None:
                self._ask()


class GiveUp:
    """Ends a process that cannot go on, so that another is started; called with the reason.

    What it computes by then is held against it.
    """

    def __init__(self, post: Post, stop: Stop) -> None:
        self._post = post
        self._stop = stop
        self.reason: str | None = None

    def __call__(self, reason: str) -> None:
        """End, once everybody has been told."""
        if self.reason is None:
            self.reason = reason
            say(f"{reason}; the worker ends, and another one starts")
            self._post.journal.seal()
            self._stop.give_up(f"The gateway has to be restarted: {reason}.")


async def drain(server: Server, app: App | None, grace_s: float, stop: Stop) -> None:
    """Let running requests finish within the grace, or until asked to stop again.

    Who is relieved still takes what comes in on the connections that it has: nothing is refused.
    """
    break_off = None
    if app is not None:
        break_off = partial(app.break_off, stop.at_once)
        if stop.successor is None:
            app.drain()
    stop.draining = asyncio.ensure_future(
        server.drain(
            0.0 if stop.at_once else grace_s, accepting=stop.making_room, successor=stop.successor, break_off=break_off
        )
    )
    try:
        await stop.draining
    except asyncio.CancelledError:
        await server.drain(0.0)
    finally:
        if stop.successor is not None:
            stop.successor.close()


async def still_loading(request: HttpRequest, responder: Responder) -> None:
    """Answer while there is no application yet."""
    if request.path == "/health":
        responder.respond(200, [JSON], ALIVE)
    else:
        responder.respond(503, [JSON, (b"retry-after", b"1")], LOADING)


def open_policies(loaded: Loaded, metrics: Metrics) -> PolicyFiles | None:
    """Watch the policy files, if there are any, and read them on SIGHUP."""
    where = loaded.policy_paths()
    if where is None or loaded.policy is None:
        return None
    policies = PolicyFiles(where, loaded.policy, say=say, memory=loaded.memory)
    metrics.watch_counts("policy_reloads", "New policies by what became of them.", "outcome", policies.outcomes)
    metrics.watch("policy_in_step", "1 if the policy files are what is in force, else 0.", lambda: policies.in_step)
    metrics.watch(
        "policy_last_success_timestamp_seconds",
        "When the files were last found to be a policy, in unix seconds.",
        lambda: policies.succeeded_at,
    )
    sys.setswitchinterval(SWITCH_S)  # for the thread that reads them
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, policies.ask)
    policies.start()
    return policies


def quota_store(loaded: Loaded, metrics: Metrics) -> QuotaStore:
    """Make the store of the limits, not yet opened, and report how it stands."""
    config = loaded.config.store
    ca_file = "" if config.ca_file is None else str(loaded.path(config.ca_file))
    quotas = QuotaStore(config, loaded.secrets, say=say, ca_file=ca_file)
    metrics.quota.store = quotas.state
    return quotas


def watch_docket(docket: Docket, metrics: Metrics) -> None:
    """Report the deaths of workers so far, and what is held against requests for them."""
    metrics.watch("worker_deaths", "Workers that died since the supervisor started.", lambda: docket.deaths)
    metrics.watch(
        "requests_quarantined", "Requests that are refused for two deaths.", lambda: docket.count(Verdict.QUARANTINED)
    )
    metrics.watch("requests_suspected", "Requests that are tried one at a time.", lambda: docket.count(Verdict.SUSPECT))


def open_access_log(target: LogTarget, loaded: Loaded) -> AccessLog | None:
    """Open the log where the operator wants it. Raises `OSError`."""
    match target.kind:
        case "off":
            return None
        case "stdout":
            return AccessLog(sys.stdout.fileno())
        case "file":
            return AccessLog.open(str(loaded.path(target.path)))


def server_limits(listen: Listen) -> ServerLimits:
    """Give the server's limits as the operator set them."""
    return ServerLimits(
        connections=listen.max_connections,
        body_bytes=listen.max_body_bytes,
        head_s=listen.head_timeout_s,
        body_s=listen.body_timeout_s,
        idle_s=listen.idle_timeout_s,
        stall_s=listen.stall_timeout_s,
    )


def settle_memory() -> None:
    """Put what will live as long as the process out of the collector's sight, and let it look less often.

    With torch imported a full collection walks 177,000 objects in 80 ms, in the middle of somebody's stream; frozen, in
    4 µs. A request is some sixty objects and leaves no cycle: with 32 of them under way the collector's usual 700 are
    passed all the time, and walking those requests cost each of them 2.6 µs.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])


def allow_files(wanted: int) -> None:
    """Raise the soft limit of open files to what the connections may need, as far as the hard limit lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def url_of(listener: socket.socket) -> str:
    """Give the URL that a caller on this machine can use."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def announcement(loaded: Loaded, url: str) -> str:
    """Say what is served and where, and how to try it."""
    config = loaded.config
    name = next(iter(config.models))
    who = f"to {', '.join(config.keys)}" if config.keys else "no key configured, so on loopback only"
    if loaded.policy is not None:
        who = f"policy {loaded.policy.version}, {described(loaded.policy)}"
    key = "-H 'authorization: Bearer $KEY' " if config.keys or loaded.policy is not None else ""
    ask = f'{{"model": "{name}", "stream": true, "messages": [{{"role": "user", "content": "Hello!"}}]}}'
    return (
        f"serving {', '.join(config.models)} on {url} ({who}). Try:\n\n"
        f"  curl -N {url}/v1/chat/completions -H 'content-type: application/json' {key}-d '{ask}'\n"
    )
