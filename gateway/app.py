"""The gateway put together: the list of stages, the table of routes, and the application that serves them.

Takes objects that are already built (models, keys, metrics, log) and knows nothing of configuration.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cache.embedded import EmbeddedStore
from cache.ledger import Ledger
from gateway.attempts.dispatch import Dispatch
from gateway.attempts.recovery_metrics import RecoveryNumbers
from gateway.call import Handler, Model, Stage, compose
from gateway.dry_run.explain import Explain
from gateway.edge import JSON, CallEndpoint, answer_headers
from gateway.endpoints import MODELS_PATH, Exposition, Models, Probe, Tokens
from gateway.errors import GatewayError, Overloaded
from gateway.http.message import HttpRequest, Responder
from gateway.identifier import request_id
from gateway.identity.identity import Identity
from gateway.process.journal import Docket, Journal
from gateway.process.readiness import Readiness
from gateway.protocols.chat_answer import ChatStream, ChatWhole
from gateway.protocols.chat_request import decode_chat
from gateway.protocols.completion_answer import CompletionStream, CompletionWhole
from gateway.protocols.completion_request import decode_completion
from gateway.protocols.dialect import Dialect
from gateway.protocols.openai_error import error_body, error_event
from gateway.protocols.resumed import ResumedStream
from gateway.requests_endpoint import REQUESTS_PATH, RequestsUnderWay
from gateway.routes import Endpoint, Route, Routes, Visit
from gateway.stages.admit import Admit
from gateway.stages.authenticate import Authenticate
from gateway.stages.bound import Bound
from gateway.stages.choose import Choose
from gateway.stages.generate import Generate
from gateway.stages.meter import Meter
from gateway.stages.quarantine import Quarantine
from gateway.stages.record import Record, Sink
from gateway.stages.resolve import Resolve
from gateway.stages.throttle import Throttle
from gateway.stages.track import Track
from gateway.telemetry.admission_metrics import AdmissionNumbers
from gateway.telemetry.metrics import CONTENT_TYPE, Metrics
from gateway.under_way import CallsUnderWay
from gateway.vacancy import Vacancy

CHAT = Dialect(decode_chat, ChatStream, ResumedStream, ChatWhole, error_body, error_event)
COMPLETION = Dialect(decode_completion, CompletionStream, ResumedStream, CompletionWhole, error_body, error_event)


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long a request may take, how many may wait for room and for how long, and how many are only explained."""

    deadline_s: float = 600.0
    max_waiting: int = 256
    max_wait_s: float = 10.0
    explained_per_minute: int = 60  # for each tenant


class App:
    """The application that the server runs for each request."""

    def __init__(
        self,
        routes: Routes,
        record: Record,
        admit: Admit,
        models: Sequence[Model],
        identity: Identity,
        calls: CallsUnderWay,
    ) -> None:
        self.routes = routes
        self.calls = calls
        self._record = record
        self._admit = admit
        self._models = models
        self._identity = identity

    async def __call__(self, request: HttpRequest, responder: Responder) -> None:
        """Answer one request; an error is answered here only where no call came of the request."""
        visit = Visit(request, responder, request_id(request.headers), time.monotonic())
        try:
            route = self.routes.find(request.method, request.path)
            await route.endpoint(visit)
        except GatewayError as error:
            body = error_body(error)
            responder.respond(error.status, answer_headers((JSON,), visit.id, error.headers), body)
            self._record.answered(request, visit.id, visit.received, error.status, len(body), error)
        else:
            if route.recorded:
                self._record.answered(request, visit.id, visit.received, 200, visit.sent_bytes)

    @property
    def ready(self) -> bool:
        """Whether new requests are taken."""
        return not self._admit.draining

    def drain(self) -> None:
        """Refuse new calls and those that wait; running ones go on."""
        self._admit.drain()

    def break_off(self, why: str | None = None) -> None:
        """End running calls too, each with an error that its caller is told. `why` is what went wrong, if anything."""
        message = why or "The gateway is shutting down, and the time for running requests is over."
        code = "draining" if why is None else "restarting"
        self.calls.end_all(Overloaded(message, code=code, headers={"retry-after": "1"}))

    async def aclose(self) -> None:
        """Close every upstream, and end counting and what is asked of issuers. Running attempts fail."""
        await self._identity.aclose()
        for upstream in dict.fromkeys(upstream for model in self._models for upstream in model.upstreams):
            await upstream.aclose()
        for model in self._models:
            if model.encoder is not None:
                model.encoder.close()


def build(
    *,
    models: Mapping[str, Model],
    identity: Identity,
    metrics: Metrics,
    sinks: Sequence[Sink],
    bounds: Bounds | None = None,
    ledger: Ledger | None = None,
    journal: Journal | None = None,
    docket: Docket | None = None,
    readiness: Readiness | None = None,
) -> App:
    """Put the gateway together. `models` maps each name that callers may use; `sinks` get each request's record.

    `ledger` keeps the limits and has to be running; without one they are kept here, and nobody renews a lease.
    `journal` and `docket` are the supervisor's; without one, nobody is quarantined. `readiness` is what `/ready` asks.
    """
    bounds = bounds or Bounds()
    ledger = ledger or Ledger(EmbeddedStore())
    readiness = readiness or Readiness()
    calls = CallsUnderWay()
    vacancy = Vacancy(
        [model.upstreams for model in models.values()], max_waiting=bounds.max_waiting, max_wait_s=bounds.max_wait_s
    )
    metrics.watch_families(AdmissionNumbers(vacancy, models).families)
    metrics.watch_families(RecoveryNumbers(models).families)
    record = Record(metrics, sinks)
    admit = Admit(vacancy)
    stages: list[Stage] = [
        record,  # outermost: sees every answer, refused ones too; its exit half writes metrics and log
        Authenticate(identity),  # nothing below runs for strangers
        Track(calls),  # what its tenant may end is all that follows, waiting included
        *deciding(models, ledger),
        *([] if journal is None or docket is None else [Quarantine(journal, docket)]),  # before it is let in again
        admit,  # waits for room, bounded; below it nothing waits for anything but an upstream
    ]
    handler = compose(stages, Dispatch(vacancy))
    surfaces = {"/v1/chat/completions": ("messages", CHAT), "/v1/completions": ("prompt", COMPLETION)}
    explain = Explain(
        surfaces,
        deciding(models, ledger.rehearsing()),
        models,
        identity,
        ledger,
        admit,
        deadline_s=bounds.deadline_s,
        per_minute=bounds.explained_per_minute,
    )
    readiness.ask(lambda: "draining" if admit.draining else None)
    routes = routes_of(models, identity, handler, explain, metrics, bounds, readiness, calls)
    return App(routes, record, admit, tuple(models.values()), identity, calls)


def deciding(models: Mapping[str, Model], ledger: Ledger) -> list[Stage]:
    """List the stages that decide on a call whose tenant is known: to run it, or only to explain what would come."""
    return [
        Resolve(models),  # alias -> served model: every later stage asks the model for something
        Throttle(ledger),  # requests per window and concurrency: the cheap refusal first; cached answers count too
        Bound(),  # local and exact, so that what can never be served costs nobody a reservation or a slot
        # Idempotent, Cached, Coalesce: answers known or running already cost neither tokens nor a slot
        Generate(),  # what is acquired below belongs to the generation and may outlive this caller
        Meter(ledger),  # reserves tokens, now that it is certain that some must be generated; settles what was used
        Choose(),  # candidates, so that Admit waits for the right room
    ]


def routes_of(
    models: Mapping[str, Model],
    identity: Identity,
    handler: Handler,
    explain: Endpoint,
    metrics: Metrics,
    bounds: Bounds,
    readiness: Readiness,
    calls: CallsUnderWay,
) -> Routes:
    """Lay out what is answered where."""
    listing, tokens = Models(models, identity), Tokens(models, identity)
    requests = RequestsUnderWay(calls, identity)
    return Routes(
        [
            Route("POST", "/v1/chat/completions", CallEndpoint(CHAT, handler, bounds.deadline_s)),
            Route("POST", "/v1/completions", CallEndpoint(COMPLETION, handler, bounds.deadline_s)),
            Route("POST", "/v1/explain", explain, recorded=True),
            Route("GET", MODELS_PATH, listing, recorded=True),
            Route("GET", MODELS_PATH + "/", listing, recorded=True),
            Route("GET", REQUESTS_PATH, requests.list, recorded=True),
            Route("POST", REQUESTS_PATH + "/", requests.cancel, recorded=True),
            Route("POST", "/tokenize", tokens.tokenize, recorded=True),
            Route("POST", "/detokenize", tokens.detokenize, recorded=True),
            Route("GET", "/health", Probe(lambda: None)),
            Route("GET", "/ready", Probe(readiness.reason)),
            Route("GET", "/metrics", Exposition(metrics.exposition, CONTENT_TYPE)),
        ]
    )
