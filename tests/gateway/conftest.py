"""A whole gateway on a real socket, over a scripted upstream on another."""

import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from cache.ledger import Ledger
from gateway.app import App, Bounds, build
from gateway.call import Model
from gateway.http.client import Client
from gateway.http.limits import ServerLimits
from gateway.http.origin import Origin
from gateway.http.pool import PoolLimits
from gateway.http.server import Server
from gateway.identity.identity import Identity
from gateway.identity.keyring import ApiKey, Keyring
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.record import RequestRecord
from gateway.upstreams.base import Upstream as GatewayUpstream
from gateway.upstreams.http import HttpUpstream
from policies.concurrency import ConcurrencyLimiter, FixedLimit
from policies.tenant import Tenant
from tests.rig.limited import KnownTenants
from tests.rig.upstream import Upstream, scripted_upstream


@dataclass
class Gateway:
    """A running gateway and what it reported."""

    app: App
    server: Server
    port: int
    metrics: Metrics
    records: list[RequestRecord] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def http_upstream(url: str, name: str = "scripted", *, slots: int | None = None, **settings: object) -> HttpUpstream:
    """An upstream over a client of its own, with so many slots."""
    client = Client(Origin.parse(url), PoolLimits(connections=1000))
    limiter = None if slots is None else ConcurrencyLimiter(FixedLimit(slots))
    return HttpUpstream(name, client, "/v1", limiter=limiter, **settings)  # type: ignore[arg-type]


def model(name: str, *upstreams: GatewayUpstream, **settings: object) -> Model:
    return Model(name, upstreams, 1_700_000_000, "tests", "fp_test", **settings)  # type: ignore[arg-type]


@asynccontextmanager
async def running(
    *models: Model,
    keys: Sequence[ApiKey] = (),
    tenants: Mapping[str, Tenant] | None = None,
    identity: Identity | None = None,
    bounds: Bounds | None = None,
    ledger: Ledger | None = None,
    limits: ServerLimits | None = None,
) -> AsyncIterator[Gateway]:
    """Serve models on a free port. `tenants` come by their keys; a ledger must run."""
    metrics, records = Metrics("test"), list[RequestRecord]()
    app = build(
        models={each.name: each for each in models},
        identity=identity or Identity(Keyring(keys) if tenants is None else KnownTenants(tenants)),
        metrics=metrics,
        sinks=(metrics.observe, records.append),
        bounds=bounds,
        ledger=ledger,
    )
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    server = Server(app, limits)
    await server.start(listener)
    gateway = Gateway(app, server, listener.getsockname()[1], metrics, records)
    try:
        yield gateway
    finally:
        await server.drain(0.0)
        await app.aclose()


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with scripted_upstream() as server:
        yield server


@pytest.fixture
async def gateway(upstream: Upstream) -> AsyncIterator[Gateway]:
    async with running(model("m", http_upstream(upstream.url))) as serving:
        yield serving
