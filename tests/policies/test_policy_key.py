"""What is promised about keys."""

import secrets
from hashlib import blake2b

import pytest

from policies.key import KeyHash, digest, kept, new_key, split

PEPPER = "a pepper that no file holds"


def counting(size: int) -> bytes:
    return bytes(range(size))


def test_a_new_key_is_its_id_and_256_bits_of_chance() -> None:
    key = new_key("web-1", counting)

    assert key == "web-1.AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
    assert new_key("web-1", secrets.token_bytes) != new_key("web-1", secrets.token_bytes)


@pytest.mark.parametrize("key_id", ["", ".", "a.b", "-a", "a b", "ä", "a" * 65, "a\n"])
def test_an_id_that_could_be_misread_is_refused(key_id: str) -> None:
    with pytest.raises(ValueError, match="expected an id like"):
        new_key(key_id, counting)


@pytest.mark.parametrize("pepper", [None, PEPPER, "p" * 200])
def test_a_presented_key_is_found_by_its_id_and_proven_by_its_secret(pepper: str | None) -> None:
    key = new_key("web-1", secrets.token_bytes)
    stored = KeyHash.from_text(str(kept(key, pepper)))

    assert split(key.encode()) == ("web-1", key.partition(".")[2].encode())
    assert digest("web-1", key.partition(".")[2].encode(), pepper) == stored.digest


@pytest.mark.parametrize(
    "presented",
    [b"", b"web-1", b"web-1.", b".secret", b"a b.secret", b"web-1.with space", b"web-1.\xff", b"a." + b"s" * 449],
)
def test_what_cannot_be_one_of_our_keys_is_not_looked_up(presented: bytes) -> None:
    assert split(presented) is None


def test_a_hash_opens_nothing_under_another_id_or_pepper() -> None:
    stored = digest("web-1", b"secret")

    assert stored not in {
        digest("web-2", b"secret"),
        digest("web-1", b"secret", PEPPER),
        blake2b(b"web-1.secret", digest_size=32).digest(),
    }


def test_a_hash_says_which_pepper_it_needs_and_not_what_it_is() -> None:
    key = new_key("web-1", counting)

    assert kept(key).pepper == ""
    assert kept(key, PEPPER).pepper == kept(new_key("web-2", counting), PEPPER).pepper != kept(key, "another").pepper
    assert PEPPER not in str(kept(key, PEPPER))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "blake2b:",
        "sha256:epvyilTxCFR6bV1XCSw7jurApMrs8MhgC8JJ3i0UbbI",
        "blake2b:epvyilTxCFR6bV1XCSw7jurApMrs8MhgC8JJ3i0Ubb",
        "blake2b:epvyilTxCFR6bV1XCSw7jurApMrs8MhgC8JJ3i0UbbJ",  # bits that 32 bytes do not have
        "blake2b:epvyilTxCFR6bV1XCSw7jurApMrs8MhgC8JJ3i0UbbI=",
        "blake2b:d7607d2:NV7A0op4_VdtvPFobvXa2YHMGwflZkSCM3nzoSL3rPE",
        "web-1.QVi7PxSFcIajDtoG2aA737cRI3U8zoXenmpcDSXRbMI",
    ],
)
def test_what_is_no_hash_is_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(ValueError, match="penstock keys new") as refused:
        KeyHash.from_text(text)

    assert len(text) < 9 or text not in str(refused.value)


def test_a_hash_does_not_show_in_logs() -> None:
    stored = kept(new_key("web-1", counting))

    assert str(stored.digest) not in repr(stored)
    assert str(stored) not in repr(stored)
