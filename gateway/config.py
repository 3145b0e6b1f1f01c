"""What the operator said the process is: `penstock.yaml`, frozen after loading.

Each setting stands here once, with its type, its range, its default and the sentence that documents it. What belongs to
one part alone (a server's limits, an engine's batch) has its default there; None means: as that part decides.
"""

import ipaddress
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from msgspec import Meta, Struct
from msgspec import field as setting

from gateway.http.limits import ServerLimits
from policies.document import DocumentError, Flaw, Mark, Problem, locate, parse
from policies.reader import choice, read
from policies.secret import Secret

FILE = "penstock.yaml"
DEMO = "demo"  # the model that comes with the engine
LIMITS = ServerLimits()
MIN_KEY_CHARS = 8

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}$")]
Count = Annotated[int, Meta(ge=1, le=1_000_000_000)]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]


class Schema(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every section is: frozen, and strict about its keys."""


class Listen(Schema, frozen=True):
    """Where callers reach the gateway, and what one of them may cost before anybody knows who it is."""

    host: Annotated[str, Meta(min_length=1, description="Address to listen on; without keys it must be loopback.")] = (
        "127.0.0.1"
    )
    port: Annotated[int, Meta(ge=0, le=65_535, description="TCP port; 0 takes a free one.")] = 8080
    max_connections: Annotated[Count, Meta(description="Open connections; one more is answered 503.")] = (
        LIMITS.connections
    )
    max_body_bytes: Annotated[Count, Meta(description="Size of a request's body; more is answered 413.")] = (
        LIMITS.body_bytes
    )
    head_timeout_s: Annotated[Seconds, Meta(description="For a request's whole head to arrive, else 408.")] = (
        LIMITS.head_s
    )
    body_timeout_s: Annotated[Seconds, Meta(description="For a body, and a second more per 1,000 bytes, else 408.")] = (
        LIMITS.body_s
    )
    idle_timeout_s: Annotated[
        Seconds, Meta(description="How long a kept connection may wait for its next request.")
    ] = LIMITS.idle_s
    stall_timeout_s: Annotated[Seconds, Meta(description="A reader that takes no byte for so long is cut off.")] = (
        LIMITS.stall_s
    )
    request_timeout_s: Annotated[Seconds, Meta(description="Deadline of a request from its arrival.")] = 600.0
    drain_s: Annotated[Seconds, Meta(description="After SIGTERM, how long running requests may take to finish.")] = 30.0


class EngineModel(Schema, frozen=True):
    """A model that runs inside the gateway."""

    path: Annotated[
        str, Meta(min_length=1, description="A Hugging Face model directory, relative to this file, or `demo`.")
    ]
    device: Annotated[Literal["auto", "cpu", "cuda"], Meta(description="Where it runs.")] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], Meta(description="Of weights and KV; auto: the model's own.")
    ] = "auto"
    max_model_len: Annotated[Count, Meta(description="Context in tokens; default: the model's own.")] | None = None
    num_blocks: Annotated[Count, Meta(description="KV blocks of 16 tokens; default: what the memory holds.")] | None = (
        None
    )
    kv_memory_bytes: (
        Annotated[int, Meta(ge=1 << 20, description="Memory for KV blocks, instead of `num_blocks`.")] | None
    ) = None
    threads: Annotated[int, Meta(ge=1, le=1024, description="CPU threads; default: the cores.")] | None = None
    max_batch_tokens: Annotated[Count, Meta(description="Tokens computed in one step.")] | None = None
    max_sequences: Annotated[Count, Meta(description="Answers that run at the same time.")] | None = None
    max_prefill_chunk: Annotated[Count, Meta(description="Tokens of one prompt computed in one step.")] | None = None
    max_waiting: Annotated[Count, Meta(description="Answers that may wait; one more is refused.")] | None = None
    prefix_cache: Annotated[bool, Meta(description="Whether prompts reuse the blocks of earlier ones.")] = True


class ModelConfig(Schema, frozen=True):
    """One served model: either an engine, or upstreams in order of preference."""

    engine: Annotated[EngineModel, Meta(description="Runs the model in this process.")] | None = None
    upstreams: Annotated[
        tuple[Name, ...], Meta(description="Names of upstreams that serve it, first choice first.")
    ] = ()
    upstream_model: Annotated[Name, Meta(description="What the upstreams call it, if not the same.")] | None = None
    max_context: Annotated[Count, Meta(description="Tokens of prompt and answer together.")] | None = None
    max_output: Annotated[Count, Meta(description="Tokens of an answer.")] | None = None


class TlsConfig(Schema, frozen=True):
    """How an upstream's certificate is checked."""

    verify: Annotated[bool, Meta(description="Off accepts any certificate: for tests only.")] = True
    ca_file: (
        Annotated[str, Meta(min_length=1, description="PEM file of trusted roots, relative to this file.")] | None
    ) = None


class UpstreamConfig(Schema, frozen=True):
    """An OpenAI-compatible HTTP server."""

    url: Annotated[str, Meta(description="Its base, such as https://api.example.com/v1; without a path, /v1 is meant.")]
    key: Annotated[Secret, Meta(description="Sent as bearer token; env:NAME or file:/path.")] | None = None
    connect_timeout_s: Annotated[Seconds, Meta(description="To be connected, TLS included.")] = 5.0
    first_chunk_timeout_s: Annotated[Seconds, Meta(description="From sending to the first byte of the answer.")] = 120.0
    between_chunks_timeout_s: Annotated[Seconds, Meta(description="Silence within an answer.")] = 60.0
    total_timeout_s: Annotated[Seconds, Meta(description="For an attempt as a whole.")] = 600.0
    max_connections: Annotated[int, Meta(ge=1, le=100_000, description="Open connections.")] = 1024
    max_concurrency: Annotated[int, Meta(ge=1, le=100_000, description="Requests at a time.")] | None = None
    ask_usage: Annotated[
        bool, Meta(description="Ask streams for token counts where the caller did not, and keep them from it.")
    ] = False
    tls: Annotated[TlsConfig, Meta(description="Certificate checks of an https URL.")] = TlsConfig()


@dataclass(frozen=True, slots=True)
class LogTarget:
    """stdout, off or a file's path."""

    kind: Literal["stdout", "off", "file"]
    path: str = ""

    @classmethod
    def from_text(cls, text: str) -> "LogTarget":
        """Read a target; a path has to look like one, so that a typo does not become a file."""
        if text == "stdout":
            return cls("stdout")
        if text == "off":
            return cls("off")
        if "/" in text:
            return cls("file", text)
        raise ValueError(f"got {text!r}, expected stdout, off or a path with a slash")


class Admission(Schema, frozen=True):
    """How requests wait for an upstream that has room."""

    max_waiting: Annotated[
        int, Meta(ge=0, le=1_000_000, description="Requests that may wait; one more is answered 503.")
    ] = 256
    max_wait_s: Annotated[Seconds, Meta(description="How long one waits before it is answered 503.")] = 10.0


class Telemetry(Schema, frozen=True):
    """What the process tells of itself."""

    access_log: Annotated[LogTarget, Meta(description="One JSON line a request: stdout, off or a path.")] = LogTarget(
        "stdout"
    )


class Config(Schema, frozen=True):
    """The whole of `penstock.yaml`."""

    models: Annotated[dict[Name, ModelConfig], Meta(description="Served models by the name that callers use.")]
    upstreams: Annotated[dict[Name, UpstreamConfig], Meta(description="HTTP servers by name.")] = setting(
        default_factory=dict
    )
    keys: Annotated[dict[Name, Secret], Meta(description="Who may call: a tenant's name and its key's reference.")] = (
        setting(default_factory=dict)
    )
    listen: Annotated[Listen, Meta(description="The listening socket.")] = Listen()
    admission: Annotated[Admission, Meta(description="Waiting for room.")] = Admission()
    telemetry: Annotated[Telemetry, Meta(description="Logs and metrics.")] = Telemetry()


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration ready to start from. `secrets` has the value of each reference; `base` is where paths start."""

    config: Config
    base: Path
    file: str | None = None
    secrets: Mapping[Secret, str] = field(default_factory=dict, repr=False)

    def path(self, text: str) -> Path:
        """Give a path of the file, which is relative to where the file stands."""
        return self.base / text


def demo() -> Loaded:
    """What runs when no file says anything: the demo model, for this machine alone."""
    return Loaded(Config(models={DEMO: ModelConfig(engine=EngineModel(path=DEMO))}), Path.cwd())


def load(path: Path, *, environ: Mapping[str, str] = os.environ, secrets: bool = True) -> Loaded:
    """Read and check a file, and fetch its secrets unless told not to. Raises `DocumentError`, or `OSError`."""
    file = str(path)
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise DocumentError([Problem(file, Mark(1, 1), (), f"not UTF-8 at byte {error.start}")]) from None
    config = read(text, file, Config, check)
    loaded = Loaded(config, path.resolve().parent, file)
    found: dict[Secret, str] = {}
    flaws = list(missing_files(loaded))
    if secrets:
        flaws += fetch(config, environ, found)
    if flaws:
        root = parse(text, file)
        raise DocumentError([Problem(file, locate(root, flaw.path), flaw.path, flaw.message) for flaw in flaws])
    return Loaded(config, loaded.base, file, found)


def check(config: Config) -> Iterator[Flaw]:
    """Find what types cannot say: names that lead nowhere, settings that exclude each other, strangers let in."""
    if not config.models:
        yield Flaw(("models",), "no model is served; name at least one")
    for name, model in config.models.items():
        yield from _check_model(("models", name), model, config.upstreams)
    for name, upstream in config.upstreams.items():
        yield from _check_url(("upstreams", name, "url"), upstream.url)
    if not config.keys and not is_loopback(config.listen.host):
        yield Flaw(
            ("listen", "host"),
            f"got {config.listen.host!r} with no key; without `keys` only loopback (127.0.0.1, ::1) is allowed",
        )


def fetch(config: Config, environ: Mapping[str, str], found: dict[Secret, str]) -> Iterator[Flaw]:
    """Fetch every secret into `found`, and say which could not be had or are no use."""
    references: dict[tuple[str | int, ...], Secret] = {("keys", name): secret for name, secret in config.keys.items()}
    for name, upstream in config.upstreams.items():
        if upstream.key is not None:
            references["upstreams", name, "key"] = upstream.key
    owners: dict[str, str] = {}
    for path, secret in references.items():
        try:
            value = found[secret] = secret.resolve(environ)
        except ValueError as error:
            yield Flaw(path, str(error))
            continue
        if path[0] != "keys":
            continue
        if len(value) < MIN_KEY_CHARS:
            yield Flaw(path, f"{secret} has {len(value)} characters, expected at least {MIN_KEY_CHARS}")
        if value in owners:
            yield Flaw(path, f"{secret} is the same key as that of {owners[value]!r}")
        owners.setdefault(value, str(path[1]))


def missing_files(loaded: Loaded) -> Iterator[Flaw]:
    """Find paths of the file that lead nowhere."""
    for name, model in loaded.config.models.items():
        if model.engine and model.engine.path != DEMO and not loaded.path(model.engine.path).is_dir():
            yield Flaw(
                ("models", name, "engine", "path"), f"got {model.engine.path!r}, expected a directory that exists"
            )
    for name, upstream in loaded.config.upstreams.items():
        if upstream.tls.ca_file and not loaded.path(upstream.tls.ca_file).is_file():
            yield Flaw(
                ("upstreams", name, "tls", "ca_file"), f"got {upstream.tls.ca_file!r}, expected a file that exists"
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_model(path: tuple[str, ...], model: ModelConfig, upstreams: Mapping[str, UpstreamConfig]) -> Iterator[Flaw]:
    if (model.engine is None) == (not model.upstreams):
        yield Flaw(
            path, "expected either `engine` or `upstreams`" + (", got both" if model.engine else ", got neither")
        )
    if model.engine and model.upstream_model:
        yield Flaw((*path, "upstream_model"), "has no meaning beside `engine`")
    if model.engine and model.engine.num_blocks and model.engine.kv_memory_bytes:
        yield Flaw((*path, "engine", "num_blocks"), "expected either `num_blocks` or `kv_memory_bytes`, got both")
    for index, name in enumerate(model.upstreams):
        if name not in upstreams:
            yield Flaw((*path, "upstreams", index), f"got {name!r}, no upstream of that name{choice(name, upstreams)}")
        elif name in model.upstreams[:index]:
            yield Flaw((*path, "upstreams", index), f"got {name!r} a second time")


def _check_url(path: tuple[str, ...], url: str) -> Iterator[Flaw]:
    expected = "expected http:// or https://, a host, and at most a port and a path"
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
        parts = urlsplit("")
    if "@" in url:
        yield Flaw(path, "holds a user or password; a key is given as `key: env:NAME`")
    elif not usable or parts.query or parts.fragment or not url.isascii() or not url.isprintable() or " " in url:
        yield Flaw(path, f"got {url!r}, {expected}")
