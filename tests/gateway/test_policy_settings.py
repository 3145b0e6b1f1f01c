"""What penstock.yaml says of policies, and the commands around them."""

import re
from pathlib import Path

import pytest

from gateway.cli import main
from gateway.configuration.loading import load
from policies.document import DocumentError
from policies.key import KeyHash, digest, kept, split

UPSTREAM = "models: {m: {upstreams: [u]}}\nupstreams: {u: {url: http://h}}\n"
PEPPER = "a pepper of some length"
POLICY = 'organisations: {acme: {tenants: {web: {keys: {web-1: {hash: "%s"}}}}}}\n'
PLAIN, PEPPERED = str(kept("web-1.secret")), str(kept("web-1.secret", PEPPER))


def write(folder: Path, text: str, **policies: str) -> Path:
    for name, policy in policies.items():
        (folder / f"{name}.yaml").write_text(policy)
    path = folder / "penstock.yaml"
    path.write_text(UPSTREAM + text)
    return path


def problems(path: Path, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(DocumentError) as caught:
        load(path, environ=environ or {})
    return [str(problem).replace(f"{path.parent}/", "") for problem in caught.value.problems]


def test_files_and_folders_are_read_from_where_the_configuration_stands(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "other.yaml").write_text("organisations: {other: {}}")
    loaded = load(write(tmp_path, "policies: [acme.yaml, more]\nlisten: {host: 0.0.0.0}", acme=POLICY % PLAIN))

    assert loaded.policy is not None
    assert loaded.policy.keys.keys() == {"web-1"}
    assert loaded.policy.find("other", None, "x", None) is not None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "policies: [acme.yaml]\nkeys: {a: env:A}",
            "penstock.yaml:4:1: keys: stands beside `policies`; "
            "keys are named there, or here in the simplest case, not both",
        ),
        ("key_pepper: env:PEPPER", "penstock.yaml:3:1: key_pepper: has a meaning beside `policies` only"),
        (
            "policies: [acme.yaml]\nkey_pepper: env:SHORT",
            "penstock.yaml:4:1: key_pepper: env:SHORT has 3 characters, expected at least 16",
        ),
        ("policies: [acme.yaml]", ""),
        ("policies: [none.yaml]", "none.yaml:1:1: cannot be read: No such file or directory"),
        ("policies: [keyless.yaml]", "penstock.yaml:3:1: policies: no key and no issuer in them: nobody could call"),
        ("policies: ['']", "penstock.yaml:3:12: policies[0]: got '', expected text that is not empty"),
        (
            "policies: [acme.yaml]\nkey_pepper: env:PEPPER",
            "acme.yaml:1:55: organisations.acme.tenants.web.keys.web-1.hash: made without a pepper, "
            "and `key_pepper` of penstock.yaml names one; make the key anew",
        ),
        (
            "policies: [issued.yaml]",
            "issued.yaml:3:32: issuers.https://id.jwks: got 'keys/none.json', expected a file that exists",
        ),
        (
            "policies: [dear.yaml]",
            "dear.yaml:1:44: organisations.acme.limits[0].cost: counts calls to 'm', which has no price; "
            "name it in `prices`, or not in `models`",
        ),
    ],
)
def test_what_excludes_each_other_is_refused_at_the_start(tmp_path: Path, text: str, expected: str) -> None:
    path = write(
        tmp_path,
        text,
        acme=POLICY % PLAIN,
        keyless="organisations: {acme: {}}",
        issued=(
            "organisations: {acme: {}}\nissuers:\n"
            "  https://id: {audiences: [a], jwks: keys/none.json, organisation: acme}"
        ),
        dear="organisations: {acme: {limits: [{model: m, cost: 1/day}]}}",
    )
    environ = {"PEPPER": PEPPER, "SHORT": "abc", "A": "a-long-enough-key"}
    if expected:
        assert problems(path, environ) == [expected]
    else:
        assert load(path, environ=environ).policy is not None


def test_without_its_secret_a_pepper_is_not_held_against_keys(tmp_path: Path) -> None:
    path = write(tmp_path, "policies: [acme.yaml]\nkey_pepper: env:PEPPER", acme=POLICY % PEPPERED)

    assert load(path, environ={}, secrets=False).policy is not None
    assert load(path, environ={"PEPPER": PEPPER}).pepper == PEPPER


def test_check_tells_of_the_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, "policies: [acme.yaml]", acme=POLICY % PLAIN)
    status = main(["check", "--config", str(path)])

    assert status == 0
    assert re.search(r"would serve m on 127.0.0.1:8080 \(policy [0-9a-f]{12}, 1 key\)", capsys.readouterr().out)


def test_check_asks_about_models_that_are_not_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = "models: [n, 'm*'], per_model: {gpt: {}}, limits: [{requests: 1/s, model: n}]"
    path = write(tmp_path, "policies: [acme.yaml]", acme=f"{POLICY % PLAIN}defaults: {{{settings}}}")
    status = main(["check", "--config", str(path)])
    asked = [line.partition("acme.yaml:")[2] for line in capsys.readouterr().err.splitlines()]

    assert status == 0
    assert asked == [
        "2:21: defaults.models[0]: got 'n', and no model of that name is served; allowed: m",
        "2:43: defaults.per_model.gpt: got 'gpt', and no model of that name is served; allowed: m",
        "2:78: defaults.limits[0].model: got 'n', and no model of that name is served; allowed: m",
    ]


def test_check_refuses_what_is_wrong_with_a_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, "policies: [acme.yaml]", acme="organisations: {acme: {limits: [{requests: -1/min}]}}")
    status = main(["check", "--config", str(path)])

    assert status == 1
    assert "acme.yaml:1:44: organisations.acme.limits[0].requests: got '-1/min'" in capsys.readouterr().err


@pytest.mark.parametrize("pepper", [None, PEPPER])
def test_a_new_key_is_printed_with_the_line_that_the_file_keeps(
    pepper: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEPPER", PEPPER)
    path = write(tmp_path, "policies: [acme.yaml]\n" + ("key_pepper: env:PEPPER" if pepper else ""))
    status = main(["keys", "new", "web-1", "--config", str(path)])
    key, line = capsys.readouterr().out.splitlines()
    parts = split(key.encode())
    match = re.fullmatch(r'web-1: \{hash: "(.*)"\}', line)

    assert status == 0
    assert parts is not None
    assert match is not None
    assert KeyHash.from_text(match[1]).digest == digest(parts[0], parts[1], pepper)


@pytest.mark.parametrize(
    ("key_id", "text"), [("web.1", ""), ("web-1", "key_pepper: env:NONE"), ("web-1", "key_pepper: literal")]
)
def test_no_key_is_made_where_something_is_wrong(
    key_id: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["keys", "new", key_id, "--config", str(write(tmp_path, text))])

    assert (status, capsys.readouterr().out) == (1, "")
