"""From the configuration to the objects that serve: upstreams, models, keys, and the application over them.

The engine's door is imported only when a model is to run here, and its texts only when a tokenizer is named: a pure
proxy sees neither torch nor tokenizers.
"""

import asyncio
import os
import sys
import time
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

from gateway.app import App, Bounds, build
from gateway.attempts.breaker_hints import BreakerHints
from gateway.attempts.recovery import Recovery
from gateway.call import Model, PromptEncoder
from gateway.configuration.config import DEMO, Concurrency, EngineModel, ModelConfig, UpstreamConfig
from gateway.configuration.loading import Loaded
from gateway.configuration.policy_files import PolicyFiles
from gateway.http.client import Client
from gateway.http.origin import Origin
from gateway.http.pool import PoolLimits
from gateway.http.tls import client_context
from gateway.identity.identity import Identity
from gateway.identity.keyring import ApiKey, Keyring
from gateway.process.readiness import Readiness
from gateway.process.supervisor import Post, say
from gateway.quotas.store import QuotaStore, UnfitStore
from gateway.stages.record import Sink
from gateway.telemetry.metrics import Metrics
from gateway.upstreams.http import Clocks, HttpUpstream
from policies.breaker import BreakerTerms
from policies.concurrency import (
    AimdLimit,
    AimdTerms,
    ConcurrencyLimiter,
    FixedLimit,
    Gradient2Limit,
    GradientTerms,
    Limit,
)

OWNER = "penstock"
SWITCH_S = 0.0005  # how long engine and loop may keep the interpreter from each other; Python's 5 ms is a token's time


class StartError(Exception):
    """The configuration is well-formed, and yet nothing can be served from it; one clear line."""


async def assemble(
    loaded: Loaded,
    metrics: Metrics,
    sinks: list[Sink],
    quotas: QuotaStore,
    policies: PolicyFiles | None = None,
    post: Post | None = None,
    give_up: Callable[[str], None] | None = None,
) -> App:
    """Build everything; models are loaded on a thread. `policies` has the policy in force. Raises `StartError`.

    Opens `quotas`; who made it closes it, behind the last call. `post` is what the supervisor gave;
    `give_up` is called where the process has to be started anew.
    """
    config = loaded.config
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a long prompt takes one core, not all
    try:
        await quotas.open()
    except UnfitStore as error:
        raise StartError(str(error)) from error
    upstreams = {name: open_upstream(name, upstream, loaded) for name, upstream in config.upstreams.items()}
    models: dict[str, Model] = {}
    readiness = Readiness()
    for name, model in config.models.items():
        if model.engine is None:
            models[name] = await proxied(name, model, upstreams, loaded)
        else:
            models[name] = await local(name, model, model.engine, loaded, metrics, readiness, give_up)
    board = quotas.board
    if board is not None:
        quotas.accompany(BreakerHints(models.values(), board).run())
    bounds = Bounds(
        config.listen.request_timeout_s,
        config.admission.max_waiting,
        config.admission.max_wait_s,
        config.admission.explained_per_minute,
    )
    keys = Keyring(ApiKey(tenant, loaded.secrets[secret]) for tenant, secret in config.keys.items())
    in_force = None if policies is None else lambda: policies.current
    identity = Identity(keys, in_force, pepper=loaded.pepper)
    metrics.watch("key_set_age_seconds", "Age of the oldest key set of a token issuer.", identity.key_set_age_s)
    metrics.watch("key_set_failures", "Fetches of issuers' key sets that failed.", identity.failed_fetches)
    await identity.prepare()
    return build(
        models=models,
        identity=identity,
        metrics=metrics,
        sinks=sinks,
        bounds=bounds,
        ledger=quotas.ledger,
        journal=None if post is None else post.journal,
        docket=None if post is None else post.docket,
        readiness=readiness,
    )


async def proxied(name: str, model: ModelConfig, upstreams: dict[str, HttpUpstream], loaded: Loaded) -> Model:
    """A model that HTTP upstreams serve. Raises `StartError`."""
    identity = "\n".join([model.upstream_model or name, *model.upstreams])
    encoder = None
    if model.tokenizer is not None:
        sys.setswitchinterval(SWITCH_S)
        encoder = await asyncio.to_thread(open_tokenizer, name, loaded.path(model.tokenizer), model.max_context)
    candidates = tuple(upstreams[each] for each in model.upstreams)
    return Model(
        name,
        candidates,
        created=int(time.time()),
        owned_by=OWNER,
        fingerprint="fp_" + blake2b(identity.encode(), digest_size=6).hexdigest(),
        max_context=model.max_context,
        max_output=model.max_output,
        upstream_model=model.upstream_model,
        bytes_per_token=model.bytes_per_token,
        encoder=encoder,
        recovery=Recovery(
            candidates,
            retry=model.retry.terms(),
            budget=model.retry_budget.terms(),
            breakers={
                upstreams[each]: loaded.config.upstreams[each].breaker.terms()
                for each in model.upstreams
                if loaded.config.upstreams[each].breaker.enabled
            },
            hedge=None if model.hedge is None else model.hedge.terms(),
            tools_act=model.hedge is None or model.hedge.tools_act,
        ),
    )


def open_tokenizer(name: str, directory: Path, max_context: int | None) -> PromptEncoder:
    """Read a model directory's tokenizer and template. Raises `StartError`."""
    try:
        from engine.errors import ModelError
        from gateway.prompts import open_prompts
    except ModuleNotFoundError as error:
        raise StartError(f"model {name}: its tokenizer wants the extra `tokens`: {error}") from error
    try:
        return open_prompts(directory, max_context)
    except ModelError as error:
        raise StartError(f"model {name}: {error}") from error


async def local(
    name: str,
    model: ModelConfig,
    settings: EngineModel,
    loaded: Loaded,
    metrics: Metrics,
    readiness: Readiness,
    give_up: Callable[[str], None] | None,
) -> Model:
    """A model that runs in this process. Raises `StartError`."""
    sys.setswitchinterval(SWITCH_S)
    await asyncio.to_thread(import_engine)
    from gateway.upstreams.engine import CannotLoad, EngineUpstream

    directory = None if settings.path == DEMO else loaded.path(settings.path)
    try:
        upstream = await EngineUpstream.open(name, settings, directory)
    except CannotLoad as error:
        raise StartError(str(error)) from error
    metrics.watch_engine(name, upstream.stats)
    readiness.ask(upstream.watch(settings.step_timeout_s, say=say, give_up=give_up).reason)
    return Model(
        name,
        (upstream,),
        created=int(time.time()),
        owned_by=OWNER,
        fingerprint=upstream.fingerprint,
        encoder=upstream.prompts,
        max_context=min(model.max_context or upstream.max_context, upstream.max_context),
        max_output=model.max_output,
        recovery=Recovery(
            (upstream,),
            retry=model.retry.terms(),
            budget=model.retry_budget.terms(),
            breakers={upstream: BreakerTerms()},
            reports={upstream: upstream.troubles},
        ),
    )


def import_engine() -> None:
    """Import the engine's door: seconds of torch, once, not to be spent on the loop. Raises `StartError` without it."""
    try:
        import gateway.upstreams.engine  # noqa: F401
    except ModuleNotFoundError as error:
        raise StartError(f"a model is to run in this process, and the engine is not installed: {error}") from error


def open_upstream(name: str, upstream: UpstreamConfig, loaded: Loaded) -> HttpUpstream:
    """A client of an HTTP server; connects when it is first asked. Raises `StartError`."""
    try:
        origin = Origin.parse(upstream.url)
        ca_file = None if upstream.tls.ca_file is None else loaded.path(upstream.tls.ca_file)
        context = client_context(ca_file=ca_file, verify=upstream.tls.verify) if origin.scheme == "https" else None
    except (ValueError, OSError) as error:
        raise StartError(f"upstream {name}: {error}") from error
    return HttpUpstream(
        name,
        Client(origin, PoolLimits(connections=upstream.max_connections), ssl_context=context),
        origin_path(upstream.url),
        key=None if upstream.key is None else loaded.secrets[upstream.key],
        clocks=Clocks(
            connect_s=upstream.connect_timeout_s,
            first_chunk_s=upstream.first_chunk_timeout_s,
            between_s=upstream.between_chunks_timeout_s,
            total_s=upstream.total_timeout_s,
        ),
        limiter=limiter_of(upstream.concurrency),
        ask_usage=upstream.ask_usage,
    )


def limiter_of(concurrency: Concurrency | None) -> ConcurrencyLimiter | None:
    """What holds an upstream to so many requests at a time. Raises `ValueError` for numbers that contradict."""
    if concurrency is None:
        return None
    limit: Limit
    match concurrency.limit:
        case "fixed":
            limit = FixedLimit(concurrency.most)
        case "aimd":
            sizes = AimdTerms(concurrency.initial, concurrency.least, concurrency.most, slow_s=concurrency.slow_s)
            limit = AimdLimit(sizes)
        case "gradient2":
            limit = Gradient2Limit(GradientTerms(concurrency.initial, concurrency.least, concurrency.most))
    return ConcurrencyLimiter(limit)


def origin_path(url: str) -> str:
    """Give the path of a base URL; without one it is OpenAI's."""
    _, _, path = url.partition("://")[2].partition("/")
    return "/" + path.strip("/") if path.strip("/") else "/v1"
