"""One answer for everybody who is not let in, and the reason, which only we learn."""

from enum import StrEnum

from gateway.errors import Overloaded, Unauthenticated

CHALLENGE = {"www-authenticate": "Bearer"}
RETRY_AFTER = {"retry-after": "10"}  # `key_set.AGAIN_S`: sooner nobody is asked


class Reason(StrEnum):
    """Why somebody was refused: a part of the error's label, for metrics and the access log, never told to callers."""

    __hash__ = str.__hash__  # an enum's own is written in Python

    NOTHING_SHOWN = "nothing_shown"
    KEY = "key"  # unknown, or the wrong secret
    KEY_EXPIRED = "key_expired"
    MALFORMED = "malformed"  # looks like a token and is none, or too long
    ISSUER = "issuer"  # no issuer of ours
    ALGORITHM = "algorithm"  # not on the issuer's list
    KEY_ID = "key_id"  # the issuer has no such key
    SIGNATURE = "signature"
    EXPIRED = "expired"
    NOT_YET = "not_yet"  # `nbf` or `iat` lies ahead
    AUDIENCE = "audience"  # meant for others
    CLAIMS = "claims"  # one that we need is missing, or is not what it should be
    TENANT = "tenant"  # sound, and of nobody whom the policy knows


def refused(reason: Reason) -> Unauthenticated:
    """Make the 401, in words that are the same whatever was wrong."""
    error = Unauthenticated("Incorrect API key provided.", code="invalid_api_key", headers=CHALLENGE)
    error.label = f"unauthenticated_{reason}"
    return error


def cannot_tell() -> Overloaded:
    """Make the 503 for who may be one of ours, while the issuer's keys cannot be had and so nobody can know."""
    message = "Credentials cannot be checked at the moment."
    error = Overloaded(message, code="identity_unavailable", headers=RETRY_AFTER)
    error.label = "identity_unavailable"
    return error
