"""Errors in OpenAI's shape: as a body, and as the one event that ends a broken stream."""

import msgspec

from gateway.errors import GatewayError, UpstreamError


def error_body(error: GatewayError) -> bytes:
    """Encode an error; an upstream's own, where it already has this shape, goes out as it came."""
    if isinstance(error, UpstreamError) and error.body is not None:
        return error.body
    told = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    return msgspec.json.encode({"error": told})


def error_event(error: GatewayError) -> bytes:
    """Encode an error as an event of a stream."""
    # An upstream's body may have been laid out over several lines, which an event's data cannot hold.
    return b"data: " + error_body(error).replace(b"\r", b"").replace(b"\n", b"") + b"\n\n"
