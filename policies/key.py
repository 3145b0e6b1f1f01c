"""Keys `id.secret`: how one is made, and what is kept of it.

A key is found by its id and proven by its secret, of which only a hash is kept: keyed BLAKE2b with the id as further
input, so that a hash copied to another id opens nothing. The secret has 256 bits of chance, so no slow hash is needed.
The pepper, where there is one, is a secret of the gateway's that the policy files do not hold: who can write into them
can still make no key. Each hash says which pepper it was made with, so that a wrong or missing one is an error at the
start and not a gateway that knows nobody.
"""

import re
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b

MAX_KEY_BYTES = 512
SECRET_BYTES = 32
DIGEST_BYTES = 32
KEY_ID = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
# 43 characters of base64url are 258 bits; the last one of 32 bytes leaves its two lowest bits zero.
KEY_HASH = r"^blake2b:([0-9a-f]{8}:)?[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]$"
PRESENTED = re.compile(rb"([A-Za-z0-9][A-Za-z0-9_-]{0,63})\.([!-~]{1,448})")


@dataclass(frozen=True, slots=True, repr=False)
class KeyHash:
    """a hash of a key, as `penstock keys new` prints it."""

    digest: bytes
    pepper: str = ""  # the mark of the pepper it was made with

    @classmethod
    def from_text(cls, text: str) -> "KeyHash":
        """Read a hash. Raises `ValueError`, which does not repeat it."""
        if re.fullmatch(KEY_HASH, text) is None:
            raise ValueError("this is no hash of a key; expected the line that `penstock keys new` prints, blake2b:…")
        _, *pepper, digest = text.split(":")
        return cls(b64decode(digest + "=", altchars=b"-_", validate=True), *pepper)

    def __str__(self) -> str:
        return ":".join(part for part in ("blake2b", self.pepper, _text(self.digest)) if part)


def new_key(key_id: str, rng: Callable[[int], bytes]) -> str:
    """Make a key `id.secret`; `rng` gives so many random bytes. Raises `ValueError` for what is no id."""
    if re.fullmatch(KEY_ID, key_id) is None:
        raise ValueError(f"got {key_id!r}, expected an id like {KEY_ID}")
    return f"{key_id}.{_text(rng(SECRET_BYTES))}"


def split(presented: bytes) -> tuple[str, bytes] | None:
    """Take a presented key apart into id and secret; None for what cannot be one of ours."""
    match = PRESENTED.fullmatch(presented)
    return None if match is None else (match[1].decode(), match[2])


def digest(key_id: str, secret: bytes, pepper: str | None = None) -> bytes:
    """Give what is kept of a key; about 1 µs. Compare it in constant time."""
    state = blake2b(key=_short(pepper), digest_size=DIGEST_BYTES, person=b"penstock-key")
    state.update(key_id.encode() + b"." + secret)  # an id has no dot, so that no two keys are the same bytes
    return state.digest()


def kept(key: str, pepper: str | None = None) -> KeyHash:
    """Give what the policy file keeps of a whole key `id.secret`."""
    key_id, _, secret = key.partition(".")
    return KeyHash(digest(key_id, secret.encode(), pepper), pepper_mark(pepper))


def pepper_mark(pepper: str | None) -> str:
    """Name a pepper without telling it."""
    return blake2b(key=_short(pepper), digest_size=4, person=b"penstock-pepper").hexdigest() if pepper else ""


def _short(pepper: str | None) -> bytes:
    """Give a pepper of any length as a key that BLAKE2b takes."""
    return blake2b(pepper.encode(), person=b"penstock-pepper").digest() if pepper else b""


def _text(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()
