"""Issuers' keys: which are believed, how they are kept fresh, and how little strangers can make us ask."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.http.httpx_transport import ClientTransport
from gateway.identity.key_set import (
    AGAIN_S,
    ALGORITHMS,
    MAX_DOCUMENT_BYTES,
    REFRESH_S,
    STALE_S,
    BadKeySet,
    Keys,
    KeySet,
    from_file,
    from_url,
)
from tests.rig.issuer import key_set, serving_keys, signing_key

ONE, OTHER = signing_key("one"), signing_key("other")
RSA = signing_key("rsa", "RS256")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Issuer:
    """Answers with a document or an error, and counts."""

    def __init__(self, *answers: bytes | Exception) -> None:
        self.answers = list(answers)
        self.asked = 0
        self.hold: asyncio.Event | None = None

    async def __call__(self) -> bytes:
        self.asked += 1
        if self.hold is not None:
            await self.hold.wait()
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def clock() -> Clock:
    return Clock()


def kids(keys: Keys | None) -> set[str]:
    assert keys is not None
    return {kid for kid in ("one", "other") if keys.find(kid, "EdDSA")}


async def settled(keys: KeySet) -> None:
    """Wait for what is under way, without asking anew."""
    while keys._flight is not None:
        await asyncio.sleep(0)


# What is believed


def test_nothing_symmetric_and_no_none_can_sign() -> None:
    assert set(ALGORITHMS) == {f"{f}{b}" for f in ("RS", "PS", "ES") for b in (256, 384, 512)} | {"EdDSA"}


@pytest.mark.parametrize("alg", sorted(ALGORITHMS))
def test_a_key_is_found_by_its_id_for_what_it_can_do(alg: str) -> None:
    keys = Keys(key_set(signing_key(alg, alg)))

    fits = {name for name in ALGORITHMS if keys.find(alg, name) is not None}

    assert fits == {name for name, kind in ALGORITHMS.items() if kind == ALGORITHMS[alg]}


def test_a_key_that_is_bound_to_an_algorithm_verifies_no_other() -> None:
    keys = Keys(key_set(RSA.jwk(alg="PS384")))

    assert keys.find("rsa", "PS384") is not None
    assert keys.find("rsa", "RS256") is None


def test_without_an_id_only_the_one_key_there_is_will_do() -> None:
    assert Keys(key_set(ONE, RSA)).find(None, "EdDSA") is not None
    assert Keys(key_set(ONE, OTHER, RSA)).find(None, "EdDSA") is None


@pytest.mark.parametrize(
    "member",
    [
        {"kty": "oct", "k": "c2VjcmV0", "kid": "rsa", "alg": "HS256"},
        {"kty": "oct", "k": "c2VjcmV0", "kid": "rsa"},
        RSA.jwk(use="enc"),
        RSA.jwk(key_ops=["encrypt"]),
        RSA.jwk(alg="HS256"),
        RSA.jwk(alg="none"),
        RSA.jwk(n="not base64!"),
        RSA.jwk(n=None),
        RSA.jwk(kty=["RSA"]),
        signing_key("weak", "RS256", bits=1024).jwk(),
        signing_key("es", "ES256").jwk(crv="secp256k1"),
        signing_key("es", "ES256").jwk(crv=None),
        signing_key("es", "ES256").jwk(x="AAAA"),
        {},
    ],
    ids=lambda member: json.dumps(member)[:50],
)
def test_what_cannot_verify_a_signature_is_left_out(member: dict[str, Any]) -> None:
    with pytest.raises(BadKeySet):
        Keys(key_set(member))

    assert kids(Keys(key_set(member, ONE))) == {"one"}


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"<html>",
        b"[]",
        b'{"keys": {}}',
        b'{"keys": [1]}',
        b'{"keys": []}',
        b'{"jwks": []}',
        b"\xff",
        b"[" * 100_000,
        b'{"keys":[' + b'{"a":' * 50_000,
    ],
    ids=lambda document: repr(document[:20]),
)
def test_what_is_no_key_set_is_refused(document: bytes) -> None:
    with pytest.raises(BadKeySet):
        Keys(document)


def test_the_private_part_of_a_key_is_not_taken() -> None:
    keys = Keys(key_set(ONE.jwk(d="AAAA"), RSA.jwk(d="AAAA", p="AA", q="AA")))

    assert not any(hasattr(key.key, "sign") for key in keys._all)


# How they are kept


async def test_nobody_has_keys_before_they_come_and_asking_waits_for_them(clock: Clock) -> None:
    issuer = Issuer(key_set(ONE))
    keys = KeySet("k", issuer, clock=clock)

    assert keys.look() is None
    await keys.ask()

    assert kids(keys.look()) == {"one"}
    assert issuer.asked == 1


async def test_everybody_who_waits_waits_for_one_fetch_and_may_leave_it(clock: Clock) -> None:
    issuer = Issuer(key_set(ONE))
    issuer.hold = asyncio.Event()
    keys = KeySet("k", issuer, clock=clock)
    waiting = [asyncio.ensure_future(keys.ask()) for _ in range(100)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.sleep(0)

    issuer.hold.set()
    await asyncio.gather(*waiting[1:])

    assert waiting[0].cancelled()
    assert issuer.asked == 1
    assert kids(keys.look()) == {"one"}


async def test_keys_are_fetched_anew_ahead_of_their_age_and_nobody_waits(clock: Clock) -> None:
    issuer = Issuer(key_set(ONE), key_set(ONE, OTHER))
    keys = KeySet("k", issuer, clock=clock)
    await keys.ask()
    clock.now += REFRESH_S - 1
    keys.look()
    await settled(keys)
    assert issuer.asked == 1
    clock.now += 1

    assert kids(keys.look()) == {"one"}  # at once, the old ones
    await settled(keys)

    assert kids(keys.look()) == {"one", "other"}
    assert issuer.asked == 2


async def test_an_idle_gateway_asks_nobody(clock: Clock) -> None:
    issuer = Issuer(key_set(ONE))
    keys = KeySet("k", issuer, clock=clock)
    await keys.ask()
    clock.now += 10 * REFRESH_S
    await asyncio.sleep(0)

    assert issuer.asked == 1


async def test_the_same_document_makes_no_other_keys(clock: Clock) -> None:
    keys = KeySet("k", Issuer(key_set(ONE)), clock=clock)
    await keys.ask()
    first = keys.look()
    clock.now += REFRESH_S
    await keys.ask()

    assert keys.look() is first
    assert keys.age_s == 0


async def test_a_storm_of_unknown_keys_asks_once_in_a_while(clock: Clock) -> None:
    issuer = Issuer(key_set(ONE))
    keys = KeySet("k", issuer, clock=clock)
    await keys.ask()
    start = clock.now
    while clock.now < start + 60:
        await asyncio.gather(*(keys.ask() for _ in range(50)))
        clock.now += 0.25

    assert issuer.asked == 60 / AGAIN_S


@pytest.mark.parametrize("trouble", [OSError("down"), b"<html>", BadKeySet("answered 500"), httpx.ConnectError("no")])
async def test_the_old_keys_hold_while_the_issuer_is_down_or_talks_nonsense(
    clock: Clock, trouble: bytes | Exception, caplog: pytest.LogCaptureFixture
) -> None:
    issuer = Issuer(key_set(ONE), trouble, trouble, key_set(OTHER))
    keys = KeySet("https://issuer.example/jwks", issuer, clock=clock)
    await keys.ask()
    clock.now += REFRESH_S
    await keys.ask()
    clock.now += AGAIN_S
    await keys.ask()

    assert kids(keys.look()) == {"one"}
    assert keys.failures == 2
    clock.now += AGAIN_S
    await keys.ask()
    assert kids(keys.look()) == {"other"}
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(told) == 2, "once when it fails, once when it works again"
    assert "the old keys hold" in told[0]


async def test_keys_of_yesterday_are_not_believed(clock: Clock) -> None:
    keys = KeySet("k", Issuer(key_set(ONE), OSError("down")), clock=clock)
    await keys.ask()
    clock.now += STALE_S
    assert kids(keys.look()) == {"one"}
    clock.now += 1

    assert keys.look() is None


async def test_an_issuer_that_was_never_reached_is_asked_again_later(clock: Clock) -> None:
    issuer = Issuer(OSError("down"), key_set(ONE))
    keys = KeySet("k", issuer, clock=clock)
    await keys.ask()
    await keys.ask()
    assert (keys.look(), issuer.asked) == (None, 1)
    clock.now += AGAIN_S
    await keys.ask()

    assert kids(keys.look()) == {"one"}


async def test_a_fetch_that_takes_too_long_is_given_up(clock: Clock) -> None:
    issuer = Issuer(key_set(ONE))
    issuer.hold = asyncio.Event()
    keys = KeySet("k", issuer, fetch_s=0.001, clock=clock)
    await keys.ask()

    assert (keys.look(), keys.failures) == (None, 1)


async def test_who_waits_goes_on_when_the_key_set_is_retired(clock: Clock) -> None:
    issuer = Issuer(key_set(ONE))
    issuer.hold = asyncio.Event()
    keys = KeySet("k", issuer, clock=clock)
    waiting = asyncio.ensure_future(keys.ask())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await keys.aclose()
    await waiting
    clock.now += STALE_S

    assert keys.look() is None
    assert issuer.asked == 1


# Where they come from


async def test_a_file_is_read_and_one_that_is_too_large_or_missing_is_not(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    with pytest.raises(OSError, match="No such file"):
        await from_file(path)()
    path.write_bytes(key_set(ONE))
    assert await from_file(path)() == key_set(ONE)
    path.write_bytes(b" " * (MAX_DOCUMENT_BYTES + 1))

    with pytest.raises(BadKeySet, match="more than"):
        await from_file(path)()


Fetching = Callable[[str], Awaitable[bytes]]


@pytest.fixture
async def fetching() -> Any:
    async with httpx.AsyncClient(transport=ClientTransport(), trust_env=False) as client:
        yield lambda url: from_url(client, url)()


async def test_a_server_is_asked_over_our_own_client(fetching: Fetching) -> None:
    async with serving_keys(ONE) as server:
        assert await fetching(server.url) == key_set(ONE)
        server.document = b" " * (MAX_DOCUMENT_BYTES + 1)
        with pytest.raises(BadKeySet, match="more than"):
            await fetching(server.url)


@pytest.mark.parametrize("status", [204, 301, 302, 401, 404, 500, 503])
async def test_only_200_is_an_answer_and_redirects_lead_nowhere(fetching: Fetching, status: int) -> None:
    async with serving_keys(ONE) as server:
        server.status, server.headers = status, (f"location: {server.url}",)
        if status == 204:
            server.document = b""
        with pytest.raises(BadKeySet, match=str(status)):
            await fetching(server.url)

        assert server.asked == 1


async def test_a_server_that_is_not_there_is_an_error_that_a_key_set_knows(clock: Clock) -> None:
    async with httpx.AsyncClient(transport=ClientTransport(), trust_env=False) as client:
        keys = KeySet("k", from_url(client, "http://127.0.0.1:1/jwks"), clock=clock)
        await keys.ask()

    assert keys.failures == 1


async def test_a_server_that_never_answers_is_left(clock: Clock) -> None:
    async with serving_keys(ONE) as server, httpx.AsyncClient(transport=ClientTransport(), trust_env=False) as client:
        server.hold = asyncio.Event()
        keys = KeySet("k", from_url(client, server.url), fetch_s=0.05, clock=clock)
        await keys.ask()

        assert (keys.look(), keys.failures) == (None, 1)
