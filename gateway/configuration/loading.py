"""From `penstock.yaml` to a configuration that can be started from: read, cross-checked, its secrets fetched."""

import ipaddress
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from cache.redis_address import parse_url
from gateway.configuration.config import (
    DEMO,
    Concurrency,
    Config,
    EngineModel,
    ModelConfig,
    StoreConfig,
    UpstreamConfig,
)
from gateway.configuration.policy_files import PolicyPaths
from gateway.configuration.policy_memory import PolicyMemory
from gateway.identity.keyring import MAX_KEY_BYTES
from policies.document import DocumentError, Flaw, Mark, Problem, locate, parse
from policies.policy import Policy
from policies.reader import choice, read
from policies.secret import Secret

FILE = "penstock.yaml"
MIN_KEY_CHARS = 8
MIN_PEPPER_CHARS = 16


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration ready to start from. `secrets` has the value of each reference; `base` is where paths start.

    `policy` is what the policy files said when it was loaded; `memory` holds what they said since, for the next worker.
    """

    config: Config
    base: Path
    file: str | None = None
    secrets: Mapping[Secret, str] = field(default_factory=dict, repr=False)
    policy: Policy | None = None
    memory: PolicyMemory | None = None

    @property
    def pepper(self) -> str | None:
        """What the policies' keys are hashed with, if anything is."""
        return None if self.config.key_pepper is None else self.secrets.get(self.config.key_pepper)

    def policy_paths(self) -> PolicyPaths | None:
        """Give where policies stand, if anywhere. Without its secret a pepper is not held against keys."""
        config = self.config
        if not config.policies:
            return None
        unknown = config.key_pepper is not None and self.pepper is None
        paths = tuple(self.path(path) for path in config.policies)
        return PolicyPaths(paths, tuple(config.models), None if unknown else self.pepper or "")

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
    loaded = replace(loaded, secrets=found)
    where = loaded.policy_paths()
    if where is None:
        return loaded
    policy = where.compile(where.read(), start=True)
    if not policy.keys and not policy.issuers:
        mark = locate(parse(text, file), ("policies",))
        raise DocumentError([Problem(file, mark, ("policies",), "no key and no issuer in them: nobody could call")])
    return replace(loaded, policy=policy)


def check(config: Config) -> Iterator[Flaw]:
    """Find what types cannot say: names that lead nowhere, settings that exclude each other, strangers let in."""
    if not config.models:
        yield Flaw(("models",), "no model is served; name at least one")
    for name, model in config.models.items():
        yield from _check_model(("models", name), model, config.upstreams)
    for name, upstream in config.upstreams.items():
        yield from _check_url(("upstreams", name, "url"), upstream.url)
        yield from _check_concurrency(("upstreams", name, "concurrency"), upstream.concurrency)
        if upstream.breaker.max_open_s < upstream.breaker.open_s:
            longest_s, first_s = upstream.breaker.max_open_s, upstream.breaker.open_s
            message = f"`max_open_s` is {longest_s:g}, expected at least `open_s`, {first_s:g}"
            yield Flaw(("upstreams", name, "breaker"), message)
    yield from _check_store(config.store)
    if config.keys and config.policies:
        yield Flaw(("keys",), "stands beside `policies`; keys are named there, or here in the simplest case, not both")
    if config.key_pepper is not None and not config.policies:
        yield Flaw(("key_pepper",), "has a meaning beside `policies` only")
    if not config.keys and not config.policies and not is_loopback(config.listen.host):
        yield Flaw(
            ("listen", "host"),
            f"got {config.listen.host!r} with no key; "
            "without `keys` or `policies` only loopback (127.0.0.1, ::1) is allowed",
        )


def _check_concurrency(path: tuple[str, ...], concurrency: Concurrency | None) -> Iterator[Flaw]:
    if concurrency is None or concurrency.limit == "fixed":
        return
    least, initial, most = concurrency.least, concurrency.initial, concurrency.most
    if not least <= initial <= most:
        yield Flaw(path, f"got {least}, {initial} and {most}, expected least <= initial <= most")


def fetch(config: Config, environ: Mapping[str, str], found: dict[Secret, str]) -> Iterator[Flaw]:
    """Fetch every secret into `found`, and say which could not be had or are no use."""
    references: dict[tuple[str | int, ...], Secret] = {("keys", name): secret for name, secret in config.keys.items()}
    for name, upstream in config.upstreams.items():
        if upstream.key is not None:
            references["upstreams", name, "key"] = upstream.key
    if config.key_pepper is not None:
        references["key_pepper",] = config.key_pepper
    if config.store.password is not None:
        references["store", "password"] = config.store.password
    if config.store.sentinel_password is not None:
        references["store", "sentinel_password"] = config.store.sentinel_password
    owners: dict[str, str] = {}
    for path, secret in references.items():
        try:
            value = found[secret] = secret.resolve(environ)
        except ValueError as error:
            yield Flaw(path, str(error))
            continue
        if path[0] == "key_pepper" and len(value) < MIN_PEPPER_CHARS:
            yield Flaw(path, f"{secret} has {len(value)} characters, expected at least {MIN_PEPPER_CHARS}")
        if path[0] != "keys":
            continue
        if not MIN_KEY_CHARS <= len(value) <= MAX_KEY_BYTES:
            expected = f"expected {MIN_KEY_CHARS} to {MAX_KEY_BYTES}"
            yield Flaw(path, f"{secret} has {len(value)} characters, {expected}")
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
        if model.tokenizer and not loaded.path(model.tokenizer).is_dir():
            yield Flaw(("models", name, "tokenizer"), f"got {model.tokenizer!r}, expected a directory that exists")
    yield from _missing_roots(loaded)
    for name, upstream in loaded.config.upstreams.items():
        if upstream.tls.ca_file and not loaded.path(upstream.tls.ca_file).is_file():
            yield Flaw(
                ("upstreams", name, "tls", "ca_file"), f"got {upstream.tls.ca_file!r}, expected a file that exists"
            )


def _missing_roots(loaded: Loaded) -> Iterator[Flaw]:
    ca_file = loaded.config.store.ca_file
    if ca_file is not None and not loaded.path(ca_file).is_file():
        yield Flaw(("store", "ca_file"), f"got {ca_file!r}, expected a file that exists")


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
    if model.engine and model.tokenizer:
        yield Flaw((*path, "tokenizer"), "has no meaning beside `engine`, which brings its own")
    if model.hedge is not None and len(model.upstreams) < 2:
        yield Flaw((*path, "hedge"), "expected two upstreams at least, one to be late and one to be asked instead")
    if model.engine and model.engine.num_blocks and model.engine.kv_memory_bytes:
        yield Flaw((*path, "engine", "num_blocks"), "expected either `num_blocks` or `kv_memory_bytes`, got both")
    for index, name in enumerate(model.upstreams):
        if name not in upstreams:
            yield Flaw((*path, "upstreams", index), f"got {name!r}, no upstream of that name{choice(name, upstreams)}")
        elif name in model.upstreams[:index]:
            yield Flaw((*path, "upstreams", index), f"got {name!r} a second time")


def _check_store(store: StoreConfig) -> Iterator[Flaw]:
    named = [name for name in ("url", "cluster", "sentinels") if getattr(store, name)]
    for name in named[1:]:
        yield Flaw(("store", name), f"stands beside `{named[0]}`; a store is one of `url`, `cluster`, `sentinels`")
    if not named:
        for name in ("username", "password", "sentinel_password", "ca_file"):
            if getattr(store, name):
                yield Flaw(("store", name), "has a meaning beside `url`, `cluster` or `sentinels` only")
    if store.sentinel_password is not None and named and not store.sentinels:
        yield Flaw(("store", "sentinel_password"), "has a meaning beside `sentinels` only")
    places: list[tuple[tuple[str | int, ...], str]] = [] if store.url is None else [(("store", "url"), store.url)]
    places += [(("store", "cluster", index), url) for index, url in enumerate(store.cluster)]
    places += [(("store", "sentinels", index), url) for index, url in enumerate(store.sentinels)]
    for path, url in places:
        yield from _check_redis_url(path, url, alone=path == ("store", "url"))
    if len({url.partition("://")[0] for url in store.urls}) > 1:
        yield Flaw(("store", named[0]), "mixes redis:// and rediss://; either all speak TLS, or none does")
    if store.ca_file is not None and named and not all(url.startswith("rediss://") for url in store.urls):
        yield Flaw(("store", "ca_file"), "has a meaning with rediss:// only")


def _check_redis_url(path: tuple[str | int, ...], url: str, *, alone: bool) -> Iterator[Flaw]:
    if "@" in url:
        yield Flaw(path, "holds a user or password; they are given as `username:` and `password: env:NAME`")
        return
    try:
        address, door = parse_url(url)
    except ValueError as error:
        yield Flaw(path, f"got {url!r}, {error}")
        return
    if not alone and (address.path or door.database):
        yield Flaw(path, f"got {url!r}, expected redis://host:port or rediss://host:port, without a database")


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
