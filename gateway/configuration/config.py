"""What the operator said the process is: `penstock.yaml`, frozen after loading.

Each setting stands here once, with its type, its range, its default and the sentence that documents it. What belongs to
one part alone (a server's limits, an engine's batch) has its default there; None means: as that part decides.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta, Struct
from msgspec import field as setting

from gateway.call import BYTES_PER_TOKEN
from gateway.http.limits import ServerLimits
from policies.breaker import BreakerTerms
from policies.hedge import HedgeTerms
from policies.retry import RetryTerms
from policies.retry_budget import BudgetTerms
from policies.secret import Secret

DEMO = "demo"  # the model that comes with the engine
LIMITS = ServerLimits()
RETRY, BUDGET, HEDGE, BREAKER = RetryTerms(), BudgetTerms(), HedgeTerms(), BreakerTerms()

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
    deterministic: Annotated[
        bool,
        Meta(description="On a GPU: attention gives the same bits whoever else is in a step; slower for long ones."),
    ] = False
    prefix_cache: Annotated[bool, Meta(description="Whether prompts reuse the blocks of earlier ones.")] = True
    step_timeout_s: Annotated[
        Seconds,
        Meta(
            description="A step that takes longer, and 50 times the usual, is a hang: not ready; twice: started anew."
        ),
    ] = 60.0
    kv_reserve: Annotated[
        float,
        Meta(ge=0, le=0.9, description="Share of the KV blocks kept for running answers to grow into."),
    ] = 0.05
    max_first_token_s: (
        Annotated[Seconds, Meta(description="Nobody is let in whose first token is predicted to come later.")] | None
    ) = None
    max_step_s: Annotated[Seconds, Meta(description="While a step takes longer, nobody else is let in.")] | None = None


class RetryConfig(Schema, frozen=True):
    """What follows an attempt that failed before its first event."""

    max_attempts: Annotated[
        int,
        Meta(ge=1, le=10, description="Attempts of a request over all upstreams, hedges and its client's included."),
    ] = RETRY.max_attempts
    base_s: Annotated[
        float, Meta(ge=0, le=60, description="The n-th pause is drawn from 0 to this times 2 to the n-1.")
    ] = RETRY.base_s
    max_backoff_s: Annotated[float, Meta(ge=0, le=600, description="No pause is longer.")] = RETRY.max_backoff_s
    max_retry_after_s: Annotated[
        float, Meta(ge=0, le=600, description="An upstream that asks for more time than this is not asked again.")
    ] = RETRY.max_retry_after_s

    def terms(self) -> RetryTerms:
        """Give what the policy is told."""
        return RetryTerms(self.max_attempts, self.base_s, self.max_backoff_s, self.max_retry_after_s)


class RetryBudgetConfig(Schema, frozen=True):
    """How many attempts more than one the requests of a model may cause together: retries and hedges."""

    ratio: Annotated[float, Meta(ge=0, le=10, description="Extra attempts that each success pays for.")] = BUDGET.ratio
    floor_per_s: Annotated[
        float, Meta(ge=0, le=10_000, description="Extra attempts a second that need no success.")
    ] = BUDGET.floor_per_s
    ttl_s: Annotated[float, Meta(ge=1, le=60, description="How long a success pays.")] = BUDGET.ttl_s

    def terms(self) -> BudgetTerms:
        """Give what the policy is told."""
        return BudgetTerms(self.ratio, self.floor_per_s, self.ttl_s)


class HedgeConfig(Schema, frozen=True):
    """When a second upstream is asked beside one that is late with a stream's first event."""

    quantile: Annotated[
        float, Meta(gt=0, lt=1, description="Of the first events of prompts of that length, lately.")
    ] = HEDGE.quantile
    stretch: Annotated[float, Meta(gt=0, le=100, description="Times the quantile is late.")] = HEDGE.stretch
    least_s: Annotated[float, Meta(ge=0, le=600, description="Nobody is late before.")] = HEDGE.least_s
    objective_s: (
        Annotated[Seconds, Meta(description="A first event that is predicted later than this is not waited for.")]
        | None
    ) = None
    share: Annotated[float, Meta(ge=0, le=1, description="Share of streams that is hedged at most.")] = HEDGE.share
    burst: Annotated[float, Meta(ge=1, le=10_000, description="Hedges saved up at most.")] = HEDGE.burst
    tools_act: Annotated[
        bool, Meta(description="Tools change something: what may call them is never sent twice at a time.")
    ] = True

    def terms(self) -> HedgeTerms:
        """Give what the policy is told."""
        return HedgeTerms(
            quantile=self.quantile,
            stretch=self.stretch,
            least_s=self.least_s,
            objective_s=self.objective_s,
            share=self.share,
            burst=self.burst,
        )


class ModelConfig(Schema, frozen=True):
    """One served model: either an engine, or upstreams in order of preference."""

    engine: Annotated[EngineModel, Meta(description="Runs the model in this process.")] | None = None
    upstreams: Annotated[
        tuple[Name, ...], Meta(description="Names of upstreams that serve it, first choice first.")
    ] = ()
    upstream_model: Annotated[Name, Meta(description="What the upstreams call it, if not the same.")] | None = None
    max_context: Annotated[Count, Meta(description="Tokens of prompt and answer together.")] | None = None
    max_output: Annotated[Count, Meta(description="Tokens of an answer.")] | None = None
    tokenizer: (
        Annotated[
            str,
            Meta(
                min_length=1,
                description="The model directory whose `tokenizer.json` and template count for its upstreams, relative "
                "to this file; wants the extra `tokens`.",
            ),
        ]
        | None
    ) = None
    bytes_per_token: Annotated[
        float,
        Meta(ge=0.5, le=64, description="Without a tokenizer: a prompt's tokens are estimated as its bytes by this."),
    ] = BYTES_PER_TOKEN
    retry: Annotated[RetryConfig, Meta(description="Further attempts after one that failed.")] = RetryConfig()
    retry_budget: Annotated[
        RetryBudgetConfig, Meta(description="What bounds further attempts of all requests together.")
    ] = RetryBudgetConfig()
    hedge: (
        Annotated[HedgeConfig, Meta(description="A second attempt beside one that is late; default: none.")] | None
    ) = None


class TlsConfig(Schema, frozen=True):
    """How an upstream's certificate is checked."""

    verify: Annotated[bool, Meta(description="Off accepts any certificate: for tests only.")] = True
    ca_file: (
        Annotated[str, Meta(min_length=1, description="PEM file of trusted roots, relative to this file.")] | None
    ) = None


class Concurrency(Schema, frozen=True):
    """How many requests an upstream is given at a time: a fixed number, or one that is found out."""

    limit: Annotated[
        Literal["fixed", "aimd", "gradient2"],
        Meta(
            description="`fixed`: `most`. `aimd`: one more a round while all is well, a tenth less when it refuses. "
            "`gradient2`: less as the first token comes later than usual for prompts of its length."
        ),
    ] = "fixed"
    most: Annotated[int, Meta(ge=1, le=100_000, description="Requests at a time.")] = 200
    least: Annotated[int, Meta(ge=1, le=100_000, description="What is found out is never less.")] = 4
    initial: Annotated[int, Meta(ge=1, le=100_000, description="What finding out begins with.")] = 20
    slow_s: (
        Annotated[Seconds, Meta(description="For `aimd`: a first token later than this is like a refusal.")] | None
    ) = None


class BreakerConfig(Schema, frozen=True):
    """When an upstream that fails is left alone, separately for each model; single probes find out when it is well."""

    enabled: Annotated[bool, Meta(description="Off sends to an upstream whatever became of it before.")] = True
    window_s: Annotated[Seconds, Meta(description="How far back attempts count.")] = BREAKER.window_s
    min_calls: Annotated[Count, Meta(description="Attempts in the window before rates count.")] = BREAKER.min_calls
    failure_rate: Annotated[float, Meta(gt=0, le=1, description="Share of attempts whose failure opens it.")] = (
        BREAKER.failure_rate
    )
    slow_s: Annotated[Seconds, Meta(description="A first event later than this is slow; default: none is.")] | None = (
        BREAKER.slow_s
    )
    slow_rate: Annotated[float, Meta(gt=0, le=1, description="Share of attempts whose slowness opens it.")] = (
        BREAKER.slow_rate
    )
    consecutive: Annotated[Count, Meta(description="Failures in a row that open it.")] = BREAKER.consecutive
    open_s: Annotated[Seconds, Meta(description="For how long it opens the first time.")] = BREAKER.open_s
    max_open_s: Annotated[Seconds, Meta(description="And at most, where probe after probe fails.")] = BREAKER.max_open_s
    probe_interval_s: Annotated[Seconds, Meta(description="From one probe to the next at least.")] = (
        BREAKER.probe_interval_s
    )
    probes_to_close: Annotated[Count, Meta(description="Probes in a row that must succeed.")] = BREAKER.probes_to_close

    def terms(self) -> BreakerTerms:
        """Give what the policy is told."""
        return BreakerTerms(
            window_s=self.window_s,
            min_calls=self.min_calls,
            failure_rate=self.failure_rate,
            slow_rate=self.slow_rate,
            slow_s=self.slow_s,
            consecutive=self.consecutive,
            open_s=self.open_s,
            max_open_s=self.max_open_s,
            probe_interval_s=self.probe_interval_s,
            probes_to_close=self.probes_to_close,
        )


class UpstreamConfig(Schema, frozen=True):
    """An OpenAI-compatible HTTP server."""

    url: Annotated[str, Meta(description="Its base, such as https://api.example.com/v1; without a path, /v1 is meant.")]
    key: Annotated[Secret, Meta(description="Sent as bearer token; env:NAME or file:/path.")] | None = None
    connect_timeout_s: Annotated[Seconds, Meta(description="To be connected, TLS included.")] = 5.0
    first_chunk_timeout_s: Annotated[Seconds, Meta(description="From sending to the first byte of the answer.")] = 120.0
    between_chunks_timeout_s: Annotated[Seconds, Meta(description="Silence within an answer.")] = 60.0
    total_timeout_s: Annotated[Seconds, Meta(description="For an attempt as a whole.")] = 600.0
    max_connections: Annotated[int, Meta(ge=1, le=100_000, description="Open connections.")] = 1024
    concurrency: Annotated[Concurrency, Meta(description="Requests at a time; default: not limited.")] | None = None
    ask_usage: Annotated[
        bool, Meta(description="Ask streams for token counts where the caller did not, and keep them from it.")
    ] = False
    breaker: Annotated[BreakerConfig, Meta(description="When it is left alone.")] = BreakerConfig()
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
    """How requests wait for an upstream that has room, and how many are only explained."""

    max_waiting: Annotated[
        int, Meta(ge=0, le=1_000_000, description="Requests that may wait; one more is answered 503.")
    ] = 256
    max_wait_s: Annotated[Seconds, Meta(description="How long one waits before it is answered 503.")] = 10.0
    explained_per_minute: Annotated[
        Count,
        Meta(description="Requests a minute that a tenant may have explained; one more is answered 429."),
    ] = 60


class StoreConfig(Schema, frozen=True):
    """Where limits are counted: in this process' memory, or in a Redis that several gateways share."""

    url: (
        Annotated[str, Meta(description="`redis://host:6379/0`, `rediss://host:6379/0` (TLS) or `unix:///path?db=0`.")]
        | None
    ) = None
    cluster: Annotated[
        tuple[str, ...], Meta(description="URLs of some nodes of a Redis Cluster, instead of `url`.")
    ] = ()
    sentinels: Annotated[
        tuple[str, ...], Meta(description="URLs of sentinels that know the master, instead of `url`.")
    ] = ()
    master: Annotated[str, Meta(min_length=1, description="What the sentinels call the master.")] = "mymaster"
    username: Annotated[str, Meta(description="Of the server's access list.")] = ""
    password: Annotated[Secret, Meta(description="The server's; env:NAME or file:/path.")] | None = None
    sentinel_password: Annotated[Secret, Meta(description="The sentinels'; env:NAME or file:/path.")] | None = None
    ca_file: (
        Annotated[str, Meta(min_length=1, description="PEM file of trusted roots, relative to this file.")] | None
    ) = None
    timeout_ms: Annotated[
        int, Meta(ge=1, le=10_000, description="For an answer; who waits it out is told within 50.")
    ] = 45
    connect_timeout_ms: Annotated[int, Meta(ge=1, le=10_000, description="To be connected, TLS included.")] = 100
    replicas: Annotated[
        int,
        Meta(ge=1, le=10_000, description="Gateways that share the store: without it each holds that part of a limit."),
    ] = 1
    lease_s: Annotated[
        float,
        Meta(
            ge=1, le=600, description="How long a reservation outlives a gateway that died; running ones are renewed."
        ),
    ] = 30.0
    eviction: Annotated[
        Literal["refuse", "warn"],
        Meta(description="What to do at the start about a Redis that may evict quotas when its memory is full."),
    ] = "refuse"

    @property
    def urls(self) -> tuple[str, ...]:
        """All that lead to a Redis."""
        return (*(() if self.url is None else (self.url,)), *self.cluster, *self.sentinels)


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
    policies: Annotated[
        tuple[Annotated[str, Meta(min_length=1)], ...],
        Meta(description="Who may do what, instead of `keys`: files, or folders of `*.yaml`, relative to this file."),
    ] = ()
    key_pepper: (
        Annotated[
            Secret, Meta(description="A secret that the policies' keys are hashed with; see `penstock keys new`.")
        ]
        | None
    ) = None
    listen: Annotated[Listen, Meta(description="The listening socket.")] = Listen()
    admission: Annotated[Admission, Meta(description="Waiting for room.")] = Admission()
    store: Annotated[StoreConfig, Meta(description="Where limits are counted.")] = StoreConfig()
    telemetry: Annotated[Telemetry, Meta(description="Logs and metrics.")] = Telemetry()
