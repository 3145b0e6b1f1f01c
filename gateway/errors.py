"""Every error that a caller can be answered with, in one tree.

GatewayError                  status, OpenAI `type` and `code`, the parameter at fault, a label for metrics
├── BadRequest                400: the body or a parameter
│   └── ContextTooLong        400 context_length_exceeded, with both numbers
├── Unauthenticated           401
├── Forbidden                 403
├── RateLimited               429: a limit of the tenant's own, with what stands and when to come back
├── NotFound                  404: no such route
│   └── ModelNotFound         404 model_not_found
├── MethodNotAllowed          405, with Allow
├── TooLarge                  413: the body
├── UnsupportedMedia          415: the content type
├── Quarantined               422: the same request has killed the process twice
├── Cancelled                 499: ended by its own tenant
├── Overloaded                503: no room in time, or draining; Retry-After
├── QuotaUnavailable          503: nobody can say what the tenant's limits leave; Retry-After
├── DeadlineExceeded          504: names the clock that ran out
├── UpstreamError             502: what an attempt met, see UpstreamFailure
│   └── UpstreamTimeout       504: an upstream's clock ran out
└── InternalError             500: our own defect

`label` is a low-cardinality string for metrics (Helicone's idea). `headers` go out with the answer.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class GatewayError(Exception):
    """The root: what the caller is told. Each class fixes status, type and label; instances carry the rest."""

    status = 500
    type = "server_error"
    label = "internal"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.param = param
        self.headers = headers


class BadRequest(GatewayError):
    """The body cannot be read, or a parameter is wrong."""

    status = 400
    type = "invalid_request_error"
    label = "bad_request"


class ContextTooLong(BadRequest):
    """Prompt and answer do not fit the model."""

    label = "context_too_long"


class Unauthenticated(GatewayError):
    """No key, or not one of ours; the answer does not tell which."""

    status = 401
    type = "invalid_request_error"
    label = "unauthenticated"


class Forbidden(GatewayError):
    """The tenant may not do this."""

    status = 403
    type = "invalid_request_error"
    label = "forbidden"


class RateLimited(GatewayError):
    """A limit of the tenant's policy; the message names it, `headers` carry Retry-After and what is left."""

    status = 429
    type = "rate_limit_error"
    label = "rate_limited"


class NotFound(GatewayError):
    """No such route."""

    status = 404
    type = "invalid_request_error"
    label = "not_found"


class ModelNotFound(NotFound):
    """No model of that name is served."""

    label = "model_not_found"


class MethodNotAllowed(GatewayError):
    """The route exists, the method does not; `headers` carries Allow."""

    status = 405
    type = "invalid_request_error"
    label = "method_not_allowed"


class TooLarge(GatewayError):
    """The body is larger than the configured limit."""

    status = 413
    type = "invalid_request_error"
    label = "too_large"


class UnsupportedMedia(GatewayError):
    """The body is not declared as JSON."""

    status = 415
    type = "invalid_request_error"
    label = "unsupported_media"


class Quarantined(GatewayError):
    """The same request was being computed when the process died, twice and more; it is not tried for a while."""

    status = 422
    type = "invalid_request_error"
    label = "quarantined"


class Cancelled(GatewayError):
    """The caller's own tenant ended the request. The number is nginx's for a caller who left."""

    status = 499
    type = "invalid_request_error"
    label = "cancelled"


class Overloaded(GatewayError):
    """No room before the deadline or the room's bound, or the process drains; `headers` carries Retry-After."""

    status = 503
    type = "server_error"
    label = "overloaded"


class QuotaUnavailable(GatewayError):
    """The store of the limits does not answer, and the policy lets nobody in without it; `headers` has Retry-After."""

    status = 503
    type = "server_error"
    label = "quota_unavailable"


class DeadlineExceeded(GatewayError):
    """The request's own deadline ran out; the message names the clock."""

    status = 504
    type = "timeout_error"
    label = "deadline"


class UpstreamFailure(StrEnum):
    """What an attempt met. The value is the label for metrics."""

    CONNECT = "connect"  # refused, unresolvable, TLS failed: nothing was sent
    CONNECT_TIMEOUT = "connect_timeout"
    FIRST_CHUNK_TIMEOUT = "first_chunk_timeout"
    BETWEEN_TIMEOUT = "between_timeout"
    TOTAL_TIMEOUT = "total_timeout"
    RESET = "reset"  # closed before the answer was whole
    PROTOCOL = "protocol"  # not HTTP, not the framing announced, not the event stream promised
    STATUS = "status"  # an error status; `answered` and `body` hold what came
    UNFINISHED = "unfinished"  # a stream without its terminal event
    IN_BAND = "in_band"  # an error event inside a 200
    ENGINE = "engine"  # the engine stopped or a step failed


class UpstreamError(GatewayError):
    """An attempt failed. `kind` says how; `sent` whether the upstream may have begun to work on it.

    `answered` is the status that the upstream gave, if it gave one; `status` replaces the class's own. `body`, where
    set, is an error in the caller's own format and goes out as it is. `retry_after_s` and `should_retry` are what the
    upstream said of coming again.
    """

    status = 502
    type = "upstream_error"
    label = "upstream"

    def __init__(
        self,
        message: str,
        *,
        kind: UpstreamFailure,
        sent: bool = True,
        code: str | None = None,
        status: int | None = None,
        answered: int | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
        retry_after_s: float | None = None,
        should_retry: bool | None = None,
    ) -> None:
        super().__init__(message, code=code or f"upstream_{kind.value}", headers=headers)
        self.kind = kind
        self.sent = sent
        self.answered = answered
        self.body = body
        self.retry_after_s = retry_after_s
        self.should_retry = should_retry
        if status is not None:
            self.status = status


class UpstreamTimeout(UpstreamError):
    """An upstream's clock ran out: connect, first chunk, between chunks or total."""

    status = 504
    type = "timeout_error"
    label = "upstream_timeout"


class InternalError(GatewayError):
    """A defect of ours; the message tells the caller nothing but the request id."""
