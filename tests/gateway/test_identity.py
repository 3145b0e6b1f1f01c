"""Whose request is it: the order in which headers are believed, keys, and what a reload changes for whom."""

import asyncio
import hmac
import json
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import MappingProxyType

import httpx
import pytest

from gateway.errors import Unauthenticated
from gateway.identity.identity import ANYBODY, Identity
from gateway.identity.keyring import ApiKey, Keyring
from gateway.identity.refusal import Reason
from policies import key
from policies.account import Account
from policies.compile import Source, compile_policy, salt_of
from policies.policy import Policy, StoredKey
from policies.tenant import Tenant, Terms
from tests.gateway.conftest import model, running
from tests.rig.in_process import InProcess
from tests.rig.issuer import NOW, URL, claims, issuer_at, key_set, policy_of, serving_keys, signing_key
from tests.rig.upstream import eventually

WEB, BATCH = key.new_key("web-1", lambda size: bytes(range(size))), key.new_key("batch-1", lambda size: b"b" * size)
SIMPLE = "simple.key.with dots"
ROOT = Path(__file__).resolve().parents[2]
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def stored(whole: str, tenant: Tenant, *, expires: float | None = None, pepper: str | None = None) -> StoredKey:
    key_id = whole.partition(".")[0]
    return StoredKey(key_id, key.kept(whole, pepper).digest, tenant, expires)


def keys_of(*keys: StoredKey) -> Mapping[str, StoredKey]:
    return MappingProxyType({each.id: each for each in keys})


WEB_TENANT, BATCH_TENANT = Tenant("acme/web", organisation="acme"), Tenant("acme/batch", organisation="acme")


class Reloaded:
    """A policy that can be changed for another one."""

    def __init__(self, policy: Policy) -> None:
        self.current = policy
        self.asked = 0

    def __call__(self) -> Policy:
        self.asked += 1
        return self.current


@pytest.fixture
def policy() -> Reloaded:
    return Reloaded(policy_of(keys=keys_of(stored(WEB, WEB_TENANT), stored(BATCH, BATCH_TENANT, expires=NOW + 10))))


@pytest.fixture
def identity(policy: Reloaded) -> Identity:
    return Identity(Keyring([ApiKey("alice", SIMPLE)]), policy, wall_clock=lambda: NOW)


def reason(identity: Identity, **headers: str) -> Reason:
    """Show what is refused, and give why; what callers are told is compared."""
    with pytest.raises(Unauthenticated) as caught:
        identity.at_once(headed(**headers))
    error = caught.value
    said = (error.message, error.code, error.status, dict(error.headers))
    assert said == ("Incorrect API key provided.", "invalid_api_key", 401, {"www-authenticate": "Bearer"})
    return Reason(error.label.removeprefix("unauthenticated_"))


def headed(**headers: str) -> dict[bytes, bytes]:
    return {name.replace("_", "-").encode(): value.encode("latin-1") for name, value in headers.items()}


# The order


def test_either_header_shows_a_key(identity: Identity) -> None:
    for headers in (
        {"authorization": f"Bearer {WEB}"},
        {"authorization": f"bearer   {WEB} "},
        {"authorization": f"BEARER {WEB}"},
        {"x_api_key": WEB},
    ):
        assert identity.at_once(headed(**headers)) is WEB_TENANT


def test_authorization_decides_alone_where_it_is_there(identity: Identity) -> None:
    assert identity.at_once(headed(authorization=f"Bearer {BATCH}", x_api_key=WEB)) is BATCH_TENANT
    assert reason(identity, authorization="Bearer wrong", x_api_key=WEB) == Reason.KEY
    assert reason(identity, authorization=f"Basic {WEB}", x_api_key=WEB) == Reason.NOTHING_SHOWN
    assert reason(identity, authorization="", x_api_key=WEB) == Reason.NOTHING_SHOWN
    assert reason(identity, authorization=f"Bearer {WEB}, Bearer {BATCH}") == Reason.KEY


def test_nothing_else_is_believed(identity: Identity) -> None:
    for name in ("x_user", "x_user_id", "x_tenant", "x_forwarded_user", "openai_organization", "cookie", "api_key"):
        assert reason(identity, **{name: WEB}) == Reason.NOTHING_SHOWN
        named = identity.at_once(headed(authorization=f"Bearer {WEB}", **{name: "acme/batch"}))
        assert named is WEB_TENANT


def test_nothing_shown_is_nobody(identity: Identity) -> None:
    assert reason(identity) == Reason.NOTHING_SHOWN
    assert reason(identity, authorization="Bearer ") == Reason.NOTHING_SHOWN
    assert reason(identity, x_api_key="") == Reason.NOTHING_SHOWN


def test_simple_keys_are_whatever_they_are_and_stand_beside_the_policys(identity: Identity) -> None:
    alice = identity.at_once(headed(x_api_key=SIMPLE))

    assert alice is not None
    assert (alice.id, alice.organisation, alice.terms("m").account.tokens) == ("alice", "alice", ())
    assert identity.at_once(headed(x_api_key=WEB)) is WEB_TENANT


async def test_what_has_the_shape_of_a_token_is_a_key_where_no_issuer_is_known(policy: Reloaded) -> None:
    odd = "eyJ.looks.like-a-token"
    identity = Identity(Keyring([ApiKey("odd", odd)]), policy)

    tenant = await identity.tenant(headed(authorization=f"Bearer {odd}"))

    assert tenant.id == "odd"
    assert identity._tokens is None


async def test_a_token_is_one_only_behind_bearer(tmp_path: Path) -> None:
    signed, path = signing_key("ed"), tmp_path / "jwks.json"
    path.write_bytes(key_set(signed))
    policy = policy_of(issuer_at(str(path)), keys=keys_of(stored(WEB, WEB_TENANT)))
    identity = Identity(None, lambda: policy, wall_clock=lambda: NOW)
    token = signed.sign(claims()).decode()

    tenant = await identity.tenant(headed(authorization=f"Bearer {token}", x_api_key=WEB))

    assert (tenant.id, tenant.key) == ("acme/web", "web")
    assert reason(identity, x_api_key=token) == Reason.KEY
    assert identity.at_once(headed(authorization=f"Bearer {WEB}")) is WEB_TENANT
    await identity.aclose()


def test_where_nothing_is_configured_everybody_is_the_same() -> None:
    for headers in ({}, {"authorization": "Bearer anything"}, {"x_api_key": "anything"}):
        assert Identity().at_once(headed(**headers)) is ANYBODY
        assert Identity(Keyring([])).at_once(headed(**headers)) is ANYBODY


def test_a_policy_that_has_lost_its_last_key_lets_nobody_in() -> None:
    identity = Identity(Keyring([]), lambda: policy_of())

    assert reason(identity) == Reason.NOTHING_SHOWN
    assert reason(identity, x_api_key=WEB) == Reason.KEY


# Keys


@pytest.mark.parametrize(
    "presented",
    [
        *(".", "..", "web-1", "web-1.", "web-1.\x00", f"web-1.{'s' * 449}", "k" * 10_000),
        *(WEB + "x", WEB[:-1], " " + WEB, WEB + "\n", "\xff" + WEB, WEB.swapcase()),
        *(WEB.replace("web-1", "batch-1"), WEB.replace("web-1", "nobody"), WEB.replace(".", "..")),
    ],
    ids=lambda presented: repr(presented[:12]),
)
def test_what_is_not_the_key_is_no_key(identity: Identity, presented: str) -> None:
    assert reason(identity, x_api_key=presented) == Reason.KEY


def test_a_key_holds_until_it_expires_and_then_is_refused_in_the_same_words(policy: Reloaded) -> None:
    now = [NOW]
    identity = Identity(None, policy, wall_clock=lambda: now[0])
    assert identity.at_once(headed(x_api_key=BATCH)) is BATCH_TENANT
    now[0] = NOW + 9.999
    assert identity.at_once(headed(x_api_key=BATCH)) is BATCH_TENANT
    now[0] = NOW + 10

    assert reason(identity, x_api_key=BATCH) == Reason.KEY_EXPIRED
    assert reason(identity, x_api_key=BATCH + "x") == Reason.KEY, "who has not the secret does not learn even that"


def test_keys_of_a_pepper_open_only_with_it() -> None:
    made = policy_of(keys=keys_of(stored(WEB, WEB_TENANT, pepper="the pepper")))

    assert Identity(None, lambda: made, pepper="the pepper").at_once(headed(x_api_key=WEB)) is WEB_TENANT
    assert reason(Identity(None, lambda: made), x_api_key=WEB) == Reason.KEY
    assert reason(Identity(None, lambda: made, pepper="another"), x_api_key=WEB) == Reason.KEY


def test_an_unknown_id_costs_what_a_wrong_secret_costs(identity: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same work, counted: a hash of as many bytes and one comparison in constant time."""
    work: list[tuple[str, int]] = []
    digest, compare = key.digest, hmac.compare_digest

    def counting_digest(key_id: str, secret: bytes, pepper: str | None = None) -> bytes:
        work.append(("hash", len(key_id) + len(secret)))
        return digest(key_id, secret, pepper)

    def counting_compare(one: bytes, other: bytes) -> bool:
        work.append(("compare", len(one) + len(other)))
        return compare(one, other)

    monkeypatch.setattr(key, "digest", counting_digest)
    monkeypatch.setattr(hmac, "compare_digest", counting_compare)
    secret = BATCH.partition(".")[2]
    done = []
    for presented in (f"web-1.{secret}", f"web-9.{secret}"):
        work.clear()
        assert reason(identity, x_api_key=presented) == Reason.KEY
        done.append(work.copy())

    assert done[0] == done[1]
    assert [step for step, _ in done[0]].count("hash") == 1


def test_one_look_asks_for_the_policy_once(identity: Identity, policy: Reloaded) -> None:
    identity.at_once(headed(x_api_key=WEB))

    assert policy.asked == 1


def test_nothing_shows_a_key(identity: Identity, policy: Reloaded) -> None:
    secret = WEB.partition(".")[2]
    with pytest.raises(Unauthenticated) as caught:
        identity.at_once(headed(x_api_key=WEB + "x"))

    shown = [identity, policy.current, policy.current.keys["web-1"], ApiKey("alice", SIMPLE), caught.value]
    told = "".join(map(repr, shown)) + repr(vars(identity)) + str(caught.value) + repr(vars(caught.value))
    assert secret not in told
    assert SIMPLE not in told
    assert policy.current.keys["web-1"].digest.hex() not in told


# A running gateway


def chat(client: httpx.AsyncClient, shown: str, **fields: object) -> "asyncio.Task[httpx.Response]":
    body = json.dumps(CHAT | fields)
    headers = {"authorization": f"Bearer {shown}", "content-type": "application/json"}
    return asyncio.ensure_future(client.post("/v1/chat/completions", content=body, headers=headers))


async def test_a_revoked_key_opens_nothing_more_and_what_it_had_begun_ends_well(policy: Reloaded) -> None:
    upstream = InProcess(hold=asyncio.Event())
    async with (
        running(model("m", upstream), identity=Identity(None, policy, wall_clock=lambda: NOW)) as gateway,
        httpx.AsyncClient(base_url=gateway.url) as client,
    ):
        begun = chat(client, WEB)
        await eventually(lambda: upstream.running == 1)
        policy.current = policy_of(keys=keys_of(stored(BATCH, BATCH_TENANT)), version="2")

        refused = await chat(client, WEB)
        assert upstream.hold is not None
        upstream.hold.set()
        ended, other = await begun, await chat(client, BATCH)

    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
    assert (ended.status_code, other.status_code) == (200, 200)
    assert [record.tenant for record in gateway.records] == [None, "acme/web", "acme/batch"]
    assert gateway.records[0].error == "unauthenticated_key"


async def test_a_reason_is_counted_and_not_told(identity: Identity) -> None:
    async with (
        running(model("m", InProcess()), identity=identity) as gateway,
        httpx.AsyncClient(base_url=gateway.url) as client,
    ):
        answers = [await chat(client, shown) for shown in ("nobody.secret", WEB + "x", "eyJ.a.b")]
        answers.append(await client.get("/v1/models"))
        exposed = (await client.get("/metrics")).text

    assert len({answer.text for answer in answers}) == 1
    assert 'penstock_errors_total{error="unauthenticated_key"} 3.0' in exposed
    assert 'penstock_errors_total{error="unauthenticated_nothing_shown"} 1.0' in exposed


async def test_no_log_line_and_no_answer_holds_what_was_shown(
    identity: Identity, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG, logger="penstock")
    async with (
        running(model("m", InProcess()), identity=identity) as gateway,
        httpx.AsyncClient(base_url=gateway.url) as client,
    ):
        answers = [await chat(client, shown) for shown in (WEB, WEB + "x", SIMPLE)]
        exposed = (await client.get("/metrics")).text

    told = "".join([answer.text + str(answer.headers) for answer in answers])
    told += exposed + caplog.text + "".join(capsys.readouterr()) + repr(gateway.records)
    assert [answer.status_code for answer in answers] == [200, 401, 200]
    assert WEB.partition(".")[2] not in told
    assert SIMPLE not in told


async def test_a_call_waits_for_its_own_issuer_and_no_other_call_does() -> None:
    signed = signing_key("ed")
    async with serving_keys(signed) as issuer:
        issuer.hold = asyncio.Event()
        policy = policy_of(issuer_at(issuer.url), keys=keys_of(stored(WEB, WEB_TENANT)))
        async with (
            running(
                model("m", InProcess()), identity=Identity(None, lambda: policy, wall_clock=lambda: NOW)
            ) as gateway,
            httpx.AsyncClient(base_url=gateway.url, timeout=30) as client,
        ):
            waiting = chat(client, signed.sign(claims()).decode())
            await issuer.arrived.wait()
            other = await chat(client, WEB)
            assert not waiting.done()
            issuer.hold.set()
            answer = await waiting

    assert (other.status_code, answer.status_code, issuer.asked) == (200, 200, 1)
    assert [record.tenant for record in gateway.records] == ["acme/web", "acme/web"]


async def test_while_nobody_can_tell_callers_are_told_when_to_come_again() -> None:
    signed = signing_key("ed")
    async with serving_keys(signed) as issuer:
        issuer.status = 503
        policy = policy_of(issuer_at(issuer.url))
        async with (
            running(
                model("m", InProcess()), identity=Identity(None, lambda: policy, wall_clock=lambda: NOW)
            ) as gateway,
            httpx.AsyncClient(base_url=gateway.url, timeout=30) as client,
        ):
            answer = await chat(client, signed.sign(claims()).decode())
            stranger = await chat(client, signed.sign(claims(iss="https://other.example")).decode())

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")
    assert (stranger.status_code, "retry-after" in stranger.headers) == (401, False)
    assert [record.error for record in gateway.records] == ["identity_unavailable", "unauthenticated_issuer"]


# Models


def only(*names: str) -> Tenant:
    """A tenant that may use these models."""
    return Tenant("acme/web", organisation="acme", decide=lambda name: Terms(Account("acme"), allowed=name in names))


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    policy = policy_of(keys=keys_of(stored(WEB, only("mine"))))
    served = [model(name, InProcess()) for name in ("mine", "theirs")]
    async with (
        running(*served, identity=Identity(None, lambda: policy)) as gateway,
        httpx.AsyncClient(base_url=gateway.url, headers={"x-api-key": WEB}) as client,
    ):
        yield client


async def test_a_tenant_is_shown_the_models_that_it_may_use(client: httpx.AsyncClient) -> None:
    assert [each["id"] for each in (await client.get("/v1/models")).json()["data"]] == ["mine"]
    assert (await client.get("/v1/models/mine")).status_code == 200


async def test_a_model_that_is_not_the_tenants_is_not_there(client: httpx.AsyncClient) -> None:
    theirs, nobodys = await client.get("/v1/models/theirs"), await client.get("/v1/models/nobodys")

    assert theirs.status_code == nobodys.status_code == 404
    assert theirs.text.replace("theirs", "") == nobodys.text.replace("nobodys", "")


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/chat/completions", CHAT), ("/tokenize", {"prompt": "hi"}), ("/detokenize", {"tokens": [1]})],
)
async def test_who_asks_something_of_such_a_model_is_told_so(
    client: httpx.AsyncClient, path: str, body: dict[str, object]
) -> None:
    answer = await client.post(path, json=body | {"model": "theirs"})

    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "model_not_allowed")


# With a policy as operators write it


def compiled(*more: str) -> Policy:
    text = f"""
organisations:
  acme:
    teams: {{search: {{}}}}
    tenants:
      web: {{team: search, models: [m], keys: {{web-1: {{hash: "{key.kept(WEB)}"}}}}}}
issuers:
  {URL}: {{audiences: [penstock], jwks: jwks.json, organisation: acme, algorithms: [EdDSA]}}
"""
    return compile_policy([Source("policy.yaml", text, *more)], served=["m"])


async def test_a_key_and_a_token_of_one_tenant_are_bound_by_the_same_terms(tmp_path: Path) -> None:
    signed = signing_key("ed")
    (tmp_path / "jwks.json").write_bytes(key_set(signed))
    policy = compiled(str(tmp_path))
    identity = Identity(None, lambda: policy, wall_clock=lambda: NOW)

    by_key = await identity.tenant(headed(x_api_key=WEB))
    by_token = await identity.tenant(headed(authorization=f"Bearer {signed.sign(claims()).decode()}"))

    assert (by_key.id, by_key.key) == ("acme/search/web", "web-1")
    assert (by_token.id, by_token.key) == ("acme/search/web", "web")
    assert [each.terms(name).allowed for each in (by_key, by_token) for name in ("m", "n")] == [True, False] * 2
    assert by_key.salt == by_token.salt
    await identity.aclose()


async def test_a_subject_names_nobody_elses_place(tmp_path: Path) -> None:
    """Whatever an issuer calls its subjects, they stay names: no path to another tenant, no pattern, no tag."""
    signed = signing_key("ed")
    (tmp_path / "jwks.json").write_bytes(key_set(signed))
    policy = compiled(str(tmp_path))
    identity = Identity(None, lambda: policy, wall_clock=lambda: NOW)
    subjects = ["search/web", "../acme/search/web", "web#web-1", "*", "{acme}", "web ", "WEB", "ẃeb", "search%2Fweb"]

    tenants = [
        await identity.tenant(headed(authorization=f"Bearer {signed.sign(claims(sub=subject)).decode()}"))
        for subject in subjects
    ]

    assert len({tenant.id for tenant in tenants} | {"acme/search/web"}) == len(subjects) + 1
    assert len({tenant.salt for tenant in tenants} | {salt_of("acme/search/web")}) == len(subjects) + 1
    for tenant in tenants:
        assert tenant.organisation == "acme"
        assert tenant.id.count("/") == 1
        assert not set("#*{} ") & set(tenant.id)
    await identity.aclose()


def test_without_issuers_nothing_is_loaded_that_only_tokens_need() -> None:
    script = """
import asyncio, sys
import gateway.process.worker
from gateway.identity.identity import Identity
from gateway.identity.keyring import ApiKey, Keyring
identity = Identity(Keyring([ApiKey("a", "the-key")]))
asyncio.run(identity.prepare())
assert identity.at_once({b"x-api-key": b"the-key"}).id == "a"
print(sorted({"jwt", "cryptography", "httpx"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=100)

    assert (done.stdout, done.stderr) == ("[]\n", "")
