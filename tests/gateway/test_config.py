"""penstock.yaml: what starts, what is refused, and that each refusal names its place."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cli import main
from gateway.configuration.config import Concurrency, Config
from gateway.configuration.loading import Loaded, check, demo, load
from gateway.configuration.settings import describe
from policies.document import DocumentError, Problem
from policies.reader import read
from policies.secret import Secret

FULL = """\
listen:
  host: 0.0.0.0
  port: 9000
  max_connections: 50
  max_body_bytes: 1_000_000
  drain_s: 5
models:
  big:
    upstreams: [first, second]
    upstream_model: big-1
    max_context: 8192
    max_output: 1024
upstreams:
  first:
    url: https://api.example.com/v1
    key: env:FIRST_KEY
    connect_timeout_s: 2
    tls: {verify: false}
  second:
    url: http://127.0.0.1:8001
    concurrency: {most: 4}
keys:
  alice: env:ALICE
telemetry:
  access_log: off
"""
ENVIRON = {"FIRST_KEY": "upstream-secret", "ALICE": "alice.s3cret"}
UPSTREAM = "models: {m: {upstreams: [u]}}\nupstreams: {u: {url: http://h}}\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "penstock.yaml"
    path.write_text(text)
    return path


def problems(folder: Path, text: str, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(DocumentError) as caught:
        load(write(folder, text), environ=environ or {})
    return [str(problem).removeprefix(f"{folder}/") for problem in caught.value.problems]


def test_a_whole_file_is_read_and_its_secrets_are_fetched(tmp_path: Path) -> None:
    loaded = load(write(tmp_path, FULL), environ=ENVIRON)

    assert loaded.config.listen.port == 9000
    assert loaded.config.models["big"].upstreams == ("first", "second")
    assert loaded.config.upstreams["second"].concurrency == Concurrency(most=4)
    assert loaded.config.upstreams["second"].between_chunks_timeout_s == 60.0
    assert loaded.secrets == {Secret("env", "FIRST_KEY"): "upstream-secret", Secret("env", "ALICE"): "alice.s3cret"}
    assert loaded.path("certs/ca.pem") == tmp_path / "certs/ca.pem"


def test_a_secret_is_not_shown_by_what_was_loaded(tmp_path: Path) -> None:
    assert "s3cret" not in repr(load(write(tmp_path, FULL), environ=ENVIRON))


def test_a_configuration_is_frozen(tmp_path: Path) -> None:
    config = load(write(tmp_path, FULL), environ=ENVIRON).config

    with pytest.raises(AttributeError):
        config.listen.port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "models: {m: {upstreams: [a1]}}\nupstreams: {a: {url: http://h}}",
            "1:26: models.m.upstreams[0]: got 'a1', no upstream of that name (did you mean 'a'?); allowed: a",
        ),
        ("models: {m: {}}", "1:10: models.m: expected either `engine` or `upstreams`, got neither"),
        ("models: {}", "1:1: models: no model is served; name at least one"),
        ("listen: {port: 1}", "1:1: models: missing; expected a mapping of keys to values"),
        (UPSTREAM + "listen: {port: 65536}", "3:16: listen.port: got '65536', expected a whole number from 0 to 65535"),
        (
            UPSTREAM + "listen: {host: 0.0.0.0}",
            "3:10: listen.host: got '0.0.0.0' with no key; "
            "without `keys` or `policies` only loopback (127.0.0.1, ::1) is allowed",
        ),
        (
            "models: {m: {engine: {path: nowhere}}}",
            "1:23: models.m.engine.path: got 'nowhere', expected a directory that exists",
        ),
        (
            "models: {m: {engine: {path: demo}, upstream_model: x}}",
            "1:36: models.m.upstream_model: has no meaning beside `engine`",
        ),
        (UPSTREAM + "keys: {a: env:NONE}", "3:8: keys.a: the environment variable NONE is not set"),
        (UPSTREAM + "keys: {a: env:SHORT}", "3:8: keys.a: env:SHORT has 3 characters, expected 8 to 512"),
        (
            UPSTREAM + "telemetry: {access_log: sdtout}",
            "3:25: telemetry.access_log: got 'sdtout', expected stdout, off or a path with a slash",
        ),
        (
            "models: {m: {upstreams: [a]}}\nupstreams: {a: {url: http://h, concurrency: {limit: aimd, initial: 300}}}",
            "2:32: upstreams.a.concurrency: got 4, 300 and 200, expected least <= initial <= most",
        ),
        (
            UPSTREAM + "store: {url: http://h}",
            "3:9: store.url: got 'http://h', expected redis://host:port/0, rediss://host:port/0 or unix:///path?db=0",
        ),
        (
            UPSTREAM + "store: {url: redis://h, sentinels: [redis://s]}",
            "3:25: store.sentinels: stands beside `url`; a store is one of `url`, `cluster`, `sentinels`",
        ),
        (
            UPSTREAM + "store: {cluster: [redis://a:1, redis://b:1/2]}",
            "3:32: store.cluster[1]: got 'redis://b:1/2', expected redis://host:port or rediss://host:port, "
            "without a database",
        ),
        (
            UPSTREAM + "store: {cluster: [redis://a, rediss://b]}",
            "3:9: store.cluster: mixes redis:// and rediss://; either all speak TLS, or none does",
        ),
        (
            "models: {m: {upstreams: [u]}}\nupstreams: {u: {url: http://h, breaker: {open_s: 9}}}",
            "2:32: upstreams.u.breaker: `max_open_s` is 3, expected at least `open_s`, 9",
        ),
        (
            "models: {m: {upstreams: [u], hedge: {}}}\nupstreams: {u: {url: http://h}}",
            "1:30: models.m.hedge: expected two upstreams at least, one to be late and one to be asked instead",
        ),
        (
            UPSTREAM + "store: {username: me}",
            "3:9: store.username: has a meaning beside `url`, `cluster` or `sentinels` only",
        ),
        (
            UPSTREAM + "store: {url: rediss://h, ca_file: nowhere}",
            "3:26: store.ca_file: got 'nowhere', expected a file that exists",
        ),
        (
            UPSTREAM + "store: {url: redis://h, password: env:NONE}",
            "3:25: store.password: the environment variable NONE is not set",
        ),
    ],
)
def test_a_mistake_names_its_place(tmp_path: Path, text: str, expected: str) -> None:
    assert [f"penstock.yaml:{expected}"] == problems(tmp_path, text, {"SHORT": "abc"})


@pytest.mark.parametrize(
    "url", ["ftp://h", "h:80", "http://", "http://h:0", "http://h/?a=b", "http://h/a b", "http://["]
)
def test_an_upstreams_url_is_an_http_base(tmp_path: Path, url: str) -> None:
    [told] = problems(tmp_path, f"models: {{m: {{upstreams: [u]}}}}\nupstreams:\n  u:\n    url: '{url}'\n")

    assert told.startswith(f"penstock.yaml:4:5: upstreams.u.url: got {url!r}, expected http:// or https://")


def test_a_password_in_a_url_is_refused_and_not_repeated(tmp_path: Path) -> None:
    [told] = problems(tmp_path, "models: {m: {upstreams: [u]}}\nupstreams: {u: {url: http://me:hunter2@h}}\n")

    assert "hunter2" not in told


def test_a_password_in_the_stores_url_is_refused_and_not_repeated(tmp_path: Path) -> None:
    [told] = problems(tmp_path, UPSTREAM + "store: {url: 'redis://me:hunter2@h:6379'}")

    assert "hunter2" not in told
    assert "`password: env:NAME`" in told


@given(
    st.integers(0, len(FULL)),
    st.integers(0, 12),
    st.text("ab:,-{}[]#&*!|>'\"%@`\\\t\n 019.~<\x00é", max_size=8),
)
def test_a_mutilated_file_is_read_or_refused_with_places(at: int, cut: int, put: str) -> None:
    refused: tuple[Problem, ...] = ()
    try:
        read(FULL[:at] + put + FULL[at + cut :], "p.yaml", Config, check)
    except DocumentError as error:
        refused = error.problems

    assert all(problem.mark.line >= 1 and problem.message for problem in refused)


def test_one_key_cannot_belong_to_two_tenants(tmp_path: Path) -> None:
    told = problems(tmp_path, UPSTREAM + "keys:\n  a: env:A\n  b: env:B\n", {"A": "same-secret", "B": "same-secret"})

    assert told == ["penstock.yaml:5:3: keys.b: env:B is the same key as that of 'a'"]


def test_without_a_file_the_demo_model_is_for_this_machine_alone() -> None:
    config = demo().config

    assert (list(config.models), config.listen.host, config.listen.port) == (["demo"], "127.0.0.1", 8080)


def test_check_says_what_would_be_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, FULL)

    assert main(["check", "--no-secrets", "--config", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: would serve big on 0.0.0.0:9000 (keys of alice)\n"


def test_check_refuses_what_serve_would(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, FULL)

    assert main(["check", "--config", str(path)]) == 1
    assert "FIRST_KEY is not set" in capsys.readouterr().err


def test_check_says_that_a_file_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--config", str(tmp_path / "none.yaml")]) == 1
    assert capsys.readouterr().err.endswith("none.yaml: No such file or directory\n")


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[2].glob("deploy/*.yaml")), ids=lambda path: path.name)
def test_shipped_configurations_are_right(path: Path) -> None:
    assert isinstance(load(path, secrets=False), Loaded)


def test_the_reference_of_settings_is_what_the_schema_says() -> None:
    reference = Path(__file__).parents[2] / "docs" / "settings.md"

    assert reference.read_text() == describe()


def test_every_setting_is_documented() -> None:
    assert [line for line in describe().splitlines() if line.startswith("| `") and line.endswith("|  |")] == []
    assert Config.__doc__
