"""Signed tokens: what makes one good, every way in which one is not, and who waits for an issuer."""

import asyncio
import hashlib
import hmac
import json
import logging
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import Overloaded, Unauthenticated
from gateway.identity.identity import Identity
from gateway.identity.json_web_token import MAX_NAME_CHARS, MAX_TOKEN_BYTES, JsonWebTokens, take_apart
from gateway.identity.key_set import AGAIN_S, ALGORITHMS, REFRESH_S
from gateway.identity.refusal import Reason
from policies.policy import Issuer, Policy
from policies.tenant import Tenant
from tests.rig.issuer import (
    NOW,
    URL,
    SigningKey,
    by_hand,
    claims,
    issuer_at,
    key_set,
    policy_of,
    serving_keys,
    signing_key,
)

ED = signing_key("ed")
RS = signing_key("rs", "RS256")
ALGS = tuple(sorted(ALGORITHMS))
SAID = ("Incorrect API key provided.", "invalid_api_key", 401, (("www-authenticate", "Bearer"),))


class Clocks:
    """The wall clock, and one that only goes forward."""

    def __init__(self) -> None:
        self.wall = NOW
        self.loop = 1000.0

    def pass_s(self, seconds: float) -> None:
        self.wall += seconds
        self.loop += seconds


class Rig:
    """A verifier over a key set in a file."""

    def __init__(self, path: Path, *, remember: int = 100) -> None:
        self.path = path
        self.clocks = Clocks()
        self.tokens = JsonWebTokens(
            wall_clock=lambda: self.clocks.wall, clock=lambda: self.clocks.loop, remember=remember
        )
        self.policy = policy_of(self.issuer())

    def issuer(self, **settings: Any) -> Issuer:
        return issuer_at(str(self.path), algorithms=ALGS, **settings)

    def publish(self, *keys: SigningKey | dict[str, Any]) -> None:
        self.path.write_bytes(key_set(*keys))

    async def show(self, token: bytes) -> Tenant:
        tenant = self.tokens.at_once(self.policy, token)
        return tenant or await self.tokens.after_asking(lambda: self.policy, token)

    async def refusal(self, token: bytes) -> str:
        """Show what is refused; give the reason, which must be told to nobody else."""
        with pytest.raises(Unauthenticated) as caught:
            await self.show(token)
        error = caught.value
        assert (error.message, error.code, error.status, tuple(error.headers.items())) == SAID
        return Reason(error.label.removeprefix("unauthenticated_"))


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    made = Rig(tmp_path / "jwks.json")
    made.publish(ED, RS)
    yield made
    await made.tokens.aclose()


# Good ones


@pytest.mark.parametrize("alg", ALGS)
async def test_a_token_speaks_for_the_tenant_that_it_names(rig: Rig, alg: str) -> None:
    key = signing_key(f"of-{alg}", alg)
    rig.publish(key)

    tenant = await rig.show(key.sign(claims()))

    assert (tenant.id, tenant.organisation, tenant.key) == ("acme/web", "acme", "web")


async def test_claims_name_organisation_team_and_tenant_where_the_policy_says_so(rig: Rig) -> None:
    rig.policy = policy_of(
        rig.issuer(organisation=None, organisation_claim="org", team_claim="https://x/team", tenant_claim="client_id")
    )

    tenant = await rig.show(ED.sign(claims(org="acme", client_id="batch", **{"https://x/team": "search"})))

    assert (tenant.organisation, tenant.team, tenant.id, tenant.key) == ("acme", "search", "acme/search/batch", "web")


@pytest.mark.parametrize("audience", ["penstock", ["penstock"], ["other", "penstock"], ["other", 7, "penstock"]])
async def test_one_of_the_audiences_is_enough(rig: Rig, audience: object) -> None:
    assert await rig.show(ED.sign(claims(aud=audience)))


async def test_a_token_without_a_key_id_will_do_where_one_key_can_be_meant(rig: Rig) -> None:
    assert await rig.show(ED.sign(claims(), kid=None))
    rig.publish(ED, signing_key("ed-2"))
    rig.clocks.pass_s(REFRESH_S)
    await rig.tokens.after_asking(lambda: rig.policy, ED.sign(claims(jti="2")))

    assert await rig.refusal(ED.sign(claims(jti="3"), kid=None)) == Reason.KEY_ID


@pytest.mark.fault_row(35)
@pytest.mark.parametrize(
    ("fields", "seconds", "reason"),
    [
        ({"exp": NOW + 10}, 69, None),
        ({"exp": NOW + 10}, 70, Reason.EXPIRED),
        ({"exp": NOW + 10.5}, 70, None),
        ({"nbf": NOW + 60}, 0, None),
        ({"nbf": NOW + 61}, 0, Reason.NOT_YET),
        ({"iat": NOW + 60}, 0, None),
        ({"iat": NOW + 61}, 0, Reason.NOT_YET),
        ({"nbf": None, "iat": None}, 0, None),
    ],
)
async def test_a_token_holds_for_its_time_give_or_take_the_leeway(
    rig: Rig, fields: dict[str, Any], seconds: float, reason: Reason | None
) -> None:
    token = ED.sign(claims(**fields))
    rig.clocks.wall += seconds

    if reason is None:
        assert await rig.show(token)
    else:
        assert await rig.refusal(token) == reason


# Forged ones


def hmac_with(secret: bytes, alg: str = "HS256") -> bytes:
    """A token signed with a secret that everybody knows."""
    unsigned = by_hand({"alg": alg, "kid": "rs", "typ": "JWT"}, claims()).rsplit(b".", 1)[0]
    digest = hmac.digest(secret, unsigned, hashlib.sha256)
    return unsigned + b"." + urlsafe_b64encode(digest).rstrip(b"=")


@pytest.mark.parametrize("alg", ["HS256", "hs256"])
@pytest.mark.parametrize("algorithms", [ALGS, ("HS256", "RS256", "none")])
async def test_a_public_key_is_no_shared_secret(rig: Rig, alg: str, algorithms: tuple[str, ...]) -> None:
    rig.policy = policy_of(issuer_at(str(rig.path), algorithms=algorithms))
    for secret in (RS.pem(), RS.pem().strip(), json.dumps(RS.jwk()).encode(), b""):
        assert await rig.refusal(hmac_with(secret, alg)) == Reason.ALGORITHM


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "nOnE", "", "RS1", "ES256K", "dir", "EdDSA "])
@pytest.mark.parametrize("algorithms", [ALGS, ("none", "RS256")])
async def test_a_token_signed_by_nothing_is_signed_by_nobody(rig: Rig, alg: str, algorithms: tuple[str, ...]) -> None:
    rig.policy = policy_of(issuer_at(str(rig.path), algorithms=algorithms))

    assert await rig.refusal(by_hand({"alg": alg, "kid": "rs"}, claims())) == Reason.ALGORITHM


async def test_an_unsigned_token_has_not_even_the_shape(rig: Rig) -> None:
    assert await rig.refusal(by_hand({"alg": "none"}, claims(), b"")) == Reason.MALFORMED


async def test_only_the_algorithms_of_the_issuers_list_count(rig: Rig) -> None:
    rig.policy = policy_of(issuer_at(str(rig.path), algorithms=("RS256",)))

    assert await rig.show(RS.sign(claims()))
    assert await rig.refusal(ED.sign(claims())) == Reason.ALGORITHM


async def test_a_key_verifies_only_what_it_was_made_for(rig: Rig) -> None:
    """The header says another algorithm than the key's, allowed as it is."""
    for alg in ALGS:
        if ALGORITHMS[alg] != ALGORITHMS["RS256"]:
            assert await rig.refusal(by_hand({"alg": alg, "kid": "rs"}, claims())) == Reason.KEY_ID
        else:
            assert await rig.refusal(by_hand({"alg": alg, "kid": "rs"}, claims())) == Reason.SIGNATURE


@pytest.mark.parametrize("alg", ["RS256", "PS256", "ES256", "ES512", "EdDSA"])
async def test_another_key_of_the_same_name_signs_nothing(rig: Rig, alg: str) -> None:
    published, forged = signing_key(f"same-{alg}", alg), signing_key(f"forged-{alg}", alg)
    rig.publish(published)
    good = published.sign(claims())

    assert await rig.refusal(forged.sign(claims(), kid=published.kid)) == Reason.SIGNATURE
    head, body, signature = good.split(b".")
    other = published.sign(claims(sub="root")).split(b".")[1]
    assert await rig.refusal(b".".join((head, other, signature))) == Reason.SIGNATURE
    for cut in (b"AA", signature[:-4], signature + b"AAAA", b"A" * len(signature)):
        assert await rig.refusal(b".".join((head, body, cut))) == Reason.SIGNATURE
    assert await rig.show(good)


async def test_keys_that_a_token_brings_along_are_not_looked_at(rig: Rig) -> None:
    mine = signing_key("mine")
    for header in ({"jwk": mine.jwk()}, {"jku": "https://attacker.example/jwks"}, {"x5c": ["AAAA"]}):
        assert await rig.refusal(mine.sign(claims(), kid="ed", **header)) == Reason.SIGNATURE


async def test_an_issuer_cannot_speak_for_another(rig: Rig, tmp_path: Path) -> None:
    other = signing_key("ed-of-another")
    (tmp_path / "other.json").write_bytes(key_set(other))
    rig.policy = policy_of(rig.issuer(), issuer_at(str(tmp_path / "other.json"), url="https://other.example"))

    assert await rig.show(other.sign(claims(iss="https://other.example")))
    assert await rig.refusal(other.sign(claims())) == Reason.KEY_ID
    assert await rig.refusal(other.sign(claims(), kid="ed")) == Reason.SIGNATURE


async def test_extensions_that_must_be_understood_are_not(rig: Rig) -> None:
    signed = by_hand({"alg": "EdDSA", "kid": "ed", "crit": ["b64"], "b64": False}, claims())

    assert await rig.refusal(signed) == Reason.MALFORMED


# Bad claims


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"iss": "https://issuer.example/realms/other"}, Reason.ISSUER),
        ({"iss": URL + "/"}, Reason.ISSUER),
        ({"iss": None}, Reason.ISSUER),
        ({"iss": [URL]}, Reason.ISSUER),
        ({"iss": 7}, Reason.ISSUER),
        ({"aud": "other"}, Reason.AUDIENCE),
        ({"aud": "penstock "}, Reason.AUDIENCE),
        ({"aud": None}, Reason.AUDIENCE),
        ({"aud": []}, Reason.AUDIENCE),
        ({"aud": {"penstock": 1}}, Reason.AUDIENCE),
        ({"aud": [["penstock"]]}, Reason.AUDIENCE),
        ({"exp": None}, Reason.CLAIMS),
        ({"exp": str(NOW + 100)}, Reason.CLAIMS),
        ({"exp": True}, Reason.CLAIMS),
        ({"exp": NOW - 61}, Reason.EXPIRED),
        ({"exp": -1}, Reason.EXPIRED),
        ({"nbf": "soon"}, Reason.CLAIMS),
        ({"iat": [NOW]}, Reason.CLAIMS),
        ({"sub": None}, Reason.CLAIMS),
        ({"sub": ""}, Reason.CLAIMS),
        ({"sub": 7}, Reason.CLAIMS),
        ({"sub": "a\nb"}, Reason.CLAIMS),
        ({"sub": "a\x00"}, Reason.CLAIMS),
        ({"sub": "x" * (MAX_NAME_CHARS + 1)}, Reason.CLAIMS),
    ],
)
async def test_what_is_claimed_must_be_right(rig: Rig, fields: dict[str, Any], reason: Reason) -> None:
    assert await rig.refusal(ED.sign(claims(**fields))) == reason


async def test_numbers_that_are_none_are_no_times(rig: Rig) -> None:
    for number in (b"1e999", b"NaN", b"Infinity", b"9" * 400):
        payload = json.dumps(claims(exp=0)).encode().replace(b'"exp": 0', b'"exp": ' + number)
        unsigned = by_hand({"alg": "EdDSA", "kid": "ed"}, payload).rsplit(b".", 1)[0]
        signature = ED.private.sign(unsigned)  # type: ignore[call-arg,union-attr]
        token = unsigned + b"." + urlsafe_b64encode(signature).rstrip(b"=")
        assert await rig.refusal(token) in (Reason.CLAIMS, Reason.MALFORMED)


async def test_a_claim_that_the_policy_needs_must_be_there(rig: Rig) -> None:
    for settings in (
        {"team_claim": "team"},
        {"tenant_claim": "app"},
        {"organisation": None, "organisation_claim": "o"},
    ):
        rig.policy = policy_of(rig.issuer(**settings))
        assert await rig.refusal(ED.sign(claims())) == Reason.CLAIMS


async def test_nobody_that_the_policy_knows_is_nobody(rig: Rig) -> None:
    rig.policy = policy_of(rig.issuer(organisation=None, organisation_claim="org"))

    assert await rig.refusal(ED.sign(claims(org="evil"))) == Reason.TENANT


# What is none at all


GOOD = ED.sign(claims())


@pytest.mark.parametrize(
    "token",
    [
        b"eyJ.e30.AA",
        b"eyJ..",
        b"eyJhbGciOiJFZERTQSJ9.e30.",
        b"eyJhbGciOiJFZERTQSJ9..AA",
        GOOD + b"=",
        GOOD + b".",
        GOOD + b" ",
        GOOD + b"\n",
        GOOD.replace(b".", b"..", 1),
        GOOD.replace(b"_", b"/") + b"+",
        b"eyJ\xff.e30.AA",
        by_hand(b'{"alg":7}', claims()),
        by_hand(b'{"kid":"ed"}', claims()),
        by_hand({"alg": "EdDSA", "kid": ["ed"]}, claims()),
        by_hand({"alg": ["EdDSA"], "kid": "ed"}, claims()),
        by_hand({"alg": "EdDSA"}, b"[]"),
        by_hand({"alg": "EdDSA"}, b'"text"'),
        by_hand({"alg": "EdDSA"}, b"{"),
        by_hand({"alg": "EdDSA"}, b'{"iss":"\xff"}'),
        by_hand({"alg": "EdDSA"}, b'{"a":' + b"[" * 4000),
        by_hand(b'{"alg":"EdDSA","x":' + b"[" * 4000, claims()),
        by_hand({"alg": "EdDSA"}, b"{}", b"\x00" * MAX_TOKEN_BYTES),
        b"eyJ" + b"A" * MAX_TOKEN_BYTES + b".e30.AA",
    ],
    ids=lambda token: repr(token[:24]),
)
async def test_what_is_no_token_is_refused_and_nobody_is_asked(rig: Rig, token: bytes) -> None:
    assert await rig.refusal(token) == Reason.MALFORMED


async def test_a_token_as_long_as_allowed_is_read_and_one_longer_is_not(rig: Rig) -> None:
    room = MAX_TOKEN_BYTES - len(ED.sign(claims(pad="")))
    fits = max(
        n for n in range(room * 3 // 4 - 6, room * 3 // 4 + 3) if len(ED.sign(claims(pad="x" * n))) <= MAX_TOKEN_BYTES
    )

    assert await rig.show(ED.sign(claims(pad="x" * fits)))
    assert await rig.refusal(ED.sign(claims(pad="x" * (fits + 3)))) == Reason.MALFORMED


@given(
    st.binary(max_size=300).map(lambda tail: b"eyJ" + tail)
    | st.tuples(*[st.binary(max_size=80)] * 3).map(lambda p: by_hand(*p))
)
def test_no_bytes_do_anything_but_be_refused(token: bytes) -> None:
    with suppress(Unauthenticated):
        take_apart(token)


async def test_a_token_with_any_one_character_changed_is_no_token(rig: Rig) -> None:
    """The last character of an Ed25519 signature has four bits that mean nothing; all others count."""
    for at in range(len(GOOD) - 1):
        for other in b"A_.":
            changed = GOOD[:at] + bytes([other]) + GOOD[at + 1 :]
            if changed != GOOD:
                await rig.refusal(changed)
    assert await rig.show(GOOD)


# What is remembered


async def test_a_token_that_was_good_is_not_verified_twice_and_not_beyond_its_time(rig: Rig) -> None:
    token = ED.sign(claims(exp=NOW + 100))
    verified = await rig.show(token)

    assert rig.tokens.at_once(rig.policy, token) is verified
    rig.clocks.pass_s(159)
    assert rig.tokens.at_once(rig.policy, token) is verified
    rig.clocks.pass_s(1)
    assert await rig.refusal(token) == Reason.EXPIRED


async def test_what_is_remembered_is_bounded_and_holds_no_token(rig: Rig, tmp_path: Path) -> None:
    small = Rig(rig.path, remember=3)
    shown = [ED.sign(claims(sub=f"web-{n}")) for n in range(10)]
    for token in shown:
        await small.show(token)
        await small.refusal(token[:-4] + b"AAAA")

    assert len(small.tokens._remembered) == 3
    for token in shown:
        assert token.decode() not in repr(vars(small.tokens))
        assert token.rsplit(b".", 1)[1].decode() not in repr(vars(small.tokens))
    await small.tokens.aclose()


async def test_another_policy_holds_at_once_for_tokens_that_were_good(rig: Rig) -> None:
    token = ED.sign(claims())
    await rig.show(token)

    rig.policy = policy_of(rig.issuer(audiences=("elsewhere",)), version="2")
    assert await rig.refusal(token) == Reason.AUDIENCE
    rig.policy = policy_of(rig.issuer(), find=lambda *_: None, version="3")
    assert await rig.refusal(token) == Reason.TENANT
    rig.policy = policy_of(version="4")
    assert await rig.refusal(token) == Reason.ISSUER


async def test_a_key_that_its_issuer_took_back_opens_nothing_after_the_next_fetch(rig: Rig) -> None:
    token = ED.sign(claims())
    await rig.show(token)
    rig.publish(RS)
    rig.clocks.pass_s(REFRESH_S)

    assert await rig.show(token), "the old keys, while new ones are fetched"
    (key_set_of,) = rig.tokens._key_sets.values()
    await key_set_of.ask()

    assert await rig.refusal(token) == Reason.KEY_ID


# Issuers that are asked


class Served:
    """An identity over a policy whose issuer is a server."""

    def __init__(self, url: str) -> None:
        self.clocks = Clocks()
        self.policy = policy_of(issuer_at(url))
        self.identity = Identity(None, lambda: self.policy, wall_clock=lambda: self.clocks.wall)
        self.identity._tokens = JsonWebTokens(wall_clock=lambda: self.clocks.wall, clock=lambda: self.clocks.loop)

    async def show(self, token: bytes) -> Tenant:
        return await self.identity.tenant(headers(token))


def headers(token: bytes) -> dict[bytes, bytes]:
    return {b"authorization": b"Bearer " + token}


async def test_a_rotated_key_is_found_by_asking_once(rig: Rig) -> None:
    new = signing_key("ed-new")
    async with serving_keys(ED) as server:
        served = Served(server.url)
        await served.show(ED.sign(claims()))
        server.document = key_set(new)
        served.clocks.pass_s(AGAIN_S)

        tenants = await asyncio.gather(*(served.show(new.sign(claims(sub=f"web-{n}"))) for n in range(20)))

        assert {tenant.id for tenant in tenants} == {f"acme/web-{n}" for n in range(20)}
        assert server.asked == 2
        await served.identity.aclose()


async def test_a_storm_of_unknown_key_ids_asks_the_issuer_once() -> None:
    async with serving_keys(ED) as server:
        served = Served(server.url)
        await served.show(ED.sign(claims()))
        served.clocks.pass_s(AGAIN_S)
        for _ in range(5):
            storm = [served.show(ED.sign(claims(), kid=f"made-up-{n}")) for n in range(100)]
            answers = await asyncio.gather(*storm, return_exceptions=True)
            assert all(isinstance(answer, Unauthenticated) for answer in answers)

        assert server.asked == 2
        await served.identity.aclose()


async def test_those_whose_keys_are_known_do_not_wait_for_a_fetch() -> None:
    async with serving_keys(ED) as server:
        served = Served(server.url)
        await served.show(ED.sign(claims()))
        server.hold = asyncio.Event()
        server.arrived.clear()
        served.clocks.pass_s(REFRESH_S)
        stranger = asyncio.ensure_future(served.show(ED.sign(claims(), kid="made-up")))
        await server.arrived.wait()

        assert served.identity.at_once(headers(ED.sign(claims(sub="other")))) is not None
        assert not stranger.done()
        server.hold.set()
        with pytest.raises(Unauthenticated):
            await stranger
        await served.identity.aclose()


async def test_while_an_issuer_was_never_reached_nobody_can_tell_and_says_so() -> None:
    async with serving_keys(ED) as server:
        server.status = 500
        served = Served(server.url)

        for _ in range(3):
            with pytest.raises(Overloaded) as caught:
                await served.show(ED.sign(claims()))
        assert (caught.value.status, caught.value.code) == (503, "identity_unavailable")
        assert float(caught.value.headers["retry-after"]) == AGAIN_S
        assert server.asked == 1
        assert served.identity.failed_fetches() == 1
        server.status = 200
        served.clocks.pass_s(AGAIN_S)
        assert await served.show(ED.sign(claims()))
        await served.identity.aclose()


async def test_what_cannot_be_one_of_ours_does_not_ask_anybody() -> None:
    async with serving_keys(ED) as server:
        server.status = 500
        served = Served(server.url)
        served.policy = policy_of(issuer_at(server.url))
        for token in (
            ED.sign(claims(iss="https://unknown.example")),
            by_hand({"alg": "none"}, claims()),
            by_hand({"alg": "EdDSA"}, b"{"),
        ):
            with pytest.raises(Unauthenticated):
                await served.show(token)
        await served.identity.aclose()

        assert server.asked <= 1, "the keys of a policy's issuers are fetched ahead, once"


async def test_an_issuer_that_goes_while_somebody_waits_for_it_leaves_a_refusal() -> None:
    async with serving_keys(ED) as server:
        server.hold = asyncio.Event()
        served = Served(server.url)
        waiting = asyncio.ensure_future(served.show(ED.sign(claims())))
        await server.arrived.wait()
        served.policy = policy_of(version="2")
        with pytest.raises(Unauthenticated):
            await served.show(ED.sign(claims(jti="other")))
        server.hold.set()

        with pytest.raises(Unauthenticated):
            await waiting
        await served.identity.aclose()


async def test_the_keys_are_there_before_the_first_caller_where_the_policy_is() -> None:
    async with serving_keys(ED) as server:
        policy = policy_of(issuer_at(server.url))
        identity = Identity(None, lambda: policy, wall_clock=lambda: NOW)
        await identity.prepare()
        await server.arrived.wait()

        assert (await identity.tenant(headers(ED.sign(claims())))).id == "acme/web"
        assert server.asked == 1
        assert identity.key_set_age_s() < 3600
        await identity.aclose()


async def test_what_is_logged_holds_no_token(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with serving_keys(ED) as server:
        server.document = b'{"keys": "' + b"garbage-from-the-issuer" + b'"}'
        served = Served(server.url)
        token = ED.sign(claims())
        with pytest.raises(Overloaded) as caught:
            await served.show(token)
        server.document = key_set(ED)
        served.clocks.pass_s(AGAIN_S)
        await served.show(token)
        await served.identity.aclose()

    shown = caplog.text + str(caught.value) + repr(caught.value) + repr(vars(served.identity))
    for part in token.split(b"."):
        assert part.decode() not in shown
    assert "garbage-from-the-issuer" not in shown


def test_what_these_tests_call_a_policy_is_one() -> None:
    assert isinstance(policy_of(), Policy)
    assert isinstance(policy_of().issuers, Mapping)
