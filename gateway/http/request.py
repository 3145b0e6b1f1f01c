"""Cut a connection's bytes into requests, and refuse whatever two readers could understand differently.

No sockets and no clock here: bytes go in, `HttpRequest`s come out, each cut of the input gives the same ones. The
head is checked by llhttp in its strict mode (it refuses bare LF, folded lines, control characters, CL with TE, signs
and underscores in numbers); what it lets pass is refused below. Bodies are framed here, not by the parser, because
only then is it known where the next pipelined request begins.
"""

import re

from httptools import (
    HttpParserError,
    HttpParserInvalidMethodError,
    HttpParserInvalidURLError,
    HttpParserUpgrade,
    HttpRequestParser,
)

from gateway.http.chunked import ChunkedBody, body_too_large
from gateway.http.known_head import MAX_DIGITS, KnownHead, where_length_stands
from gateway.http.limits import ServerLimits
from gateway.http.message import HttpRequest
from gateway.http.refusal import Refused

# Joining these would make up a value that nobody sent, or hide which of two counts.
SINGLE = frozenset(
    (
        b"authorization",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"expect",
        b"host",
        b"idempotency-key",
        b"transfer-encoding",
        b"x-api-key",
    )
)
CR_LF = b"\r\n"
HOST = re.compile(rb"[A-Za-z0-9._~!$&'()*+;=:%\[\]-]*")
ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class RequestReader:
    """The read side of one connection, without the socket.

    `keep_alive` and `http10` speak of the request that `read` gave last; `continue_wanted` of the one whose body is
    awaited.
    """

    __slots__ = (
        "_body",
        "_buffer",
        "_chunked",
        "_headers",
        "_known",
        "_limits",
        "_missing",
        "_peer",
        "_repeated",
        "_request",
        "_scanned",
        "_strangers",
        "continue_wanted",
        "http10",
        "keep_alive",
    )

    def __init__(self, limits: ServerLimits, peer: str) -> None:
        self._limits = limits
        self._peer = peer
        self._buffer: bytes | bytearray = b""
        self._scanned = 0  # bytes of the buffer known not to begin the blank line
        self._request: HttpRequest | None = None  # whose body is awaited
        self._body = bytearray()  # what came of it so far, when it does not come at once
        self._missing = 0
        self._chunked: ChunkedBody | None = None
        self._headers: dict[bytes, bytes] = {}
        self._repeated: bytes | None = None
        self._known: KnownHead | None = None  # one that may come again
        self._strangers = 0  # heads since then that were others
        self.keep_alive = True
        self.http10 = False
        self.continue_wanted = False

    @property
    def buffered(self) -> int:
        """How many bytes wait to be cut."""
        return len(self._buffer)

    @property
    def in_body(self) -> bool:
        """Whether a head was read and its body is awaited."""
        return self._request is not None

    @property
    def body_received(self) -> int:
        """How much of the awaited body is here."""
        if self._chunked is not None:
            return self._chunked.received
        return len(self._body)

    def feed(self, data: bytes) -> None:
        """Take what the socket gave."""
        if not self._buffer:
            self._buffer = data
        elif isinstance(self._buffer, bytearray):
            self._buffer += data
        else:
            self._buffer = bytearray(self._buffer) + data

    def read(self, now: float) -> HttpRequest | None:
        """Give the next request once it is whole. Raises `Refused`, after which nothing more can be read."""
        request = self._request
        if request is None:
            known = self._known
            if known is not None:
                request = self._read_known(known, now)
                if request is not None:
                    return request
            request = self._read_head()
            if request is None:
                return None
        if self._chunked is not None:
            rest = self._chunked.feed(bytes(self._buffer))
            self._buffer = rest or b""
            if rest is None:
                self._request = request
                return None
            request.body = self._chunked.whole()
            self._chunked = None
        elif self._missing and not self._read_body(request):
            return None
        self._request = None
        self.continue_wanted = False
        request.received = now
        return request

    def _read_known(self, known: KnownHead, now: float) -> HttpRequest | None:
        """Give a request with a known head that came whole, at once and alone, which nearly all do; None for others."""
        data = self._buffer
        if type(data) is not bytes or (begun := known.begins(data)) is None:
            return None
        digits, end = begun
        size = len(data) - end
        if size != int(digits) or size > self._limits.body_bytes or end > self._limits.head_bytes:
            return None
        self._buffer = b""
        self._scanned = self._strangers = 0
        self.http10 = known.http10
        self.keep_alive = known.keep_alive
        headers = known.headers.copy()
        headers[b"content-length"] = digits
        return HttpRequest(known.method, known.path, known.query, headers, data[end:], self._peer, now)

    def _read_body(self, request: HttpRequest) -> bool:
        piece = bytes(self._buffer[: self._missing])
        self._buffer = self._buffer[len(piece) :]
        self._missing -= len(piece)
        if self._missing:
            self._request = request
            self._body += piece
            return False
        if self._body:
            piece = bytes(self._body + piece)
            self._body = bytearray()
        request.body = piece
        return True

    def _read_head(self) -> HttpRequest | None:
        buffer = self._buffer
        if buffer and buffer[0] in CR_LF:  # an empty line before the request line, RFC 9112, section 2.2
            while buffer[:2] == b"\r\n":
                buffer = self._buffer = buffer[2:]
            if buffer[:1] == b"\n" or (buffer[:1] == b"\r" and len(buffer) > 1):
                raise Refused(400, "invalid_request_line", "The request line is not one of HTTP/1.1.")
        limits = self._limits
        end = buffer.find(b"\r\n\r\n", self._scanned)
        if end < 0:
            if len(buffer) > limits.head_bytes:
                raise self._head_too_large(bytes(buffer))
            self._scanned = max(0, len(buffer) - 3)
            return None
        self._scanned = 0
        head = bytes(buffer[: end + 4])
        self._buffer = buffer[end + 4 :]
        if len(head) > limits.head_bytes:
            raise self._head_too_large(head)
        if head.count(b"\r\n") > limits.headers + 2:
            raise Refused(431, "headers_too_large", f"The request has more than {limits.headers} headers.")
        request = self._parse(head)
        self._strangers += 1
        if self._strangers & (self._strangers - 1) == 0:  # the 1st, 2nd, 4th ...: some clients never repeat a head
            self._remember(head, request)
        return request

    def _remember(self, head: bytes, request: HttpRequest) -> None:
        """Keep a head that was accepted, if the next may be the same; not one that asks us to react to what came."""
        headers = request.headers
        digits = headers.get(b"content-length")
        if digits is not None and b"expect" not in headers:
            at = where_length_stands(head, digits)
            if at > 0:
                self._known = KnownHead(
                    head[:at],
                    head[at + len(digits) :],
                    request.method,
                    request.path,
                    request.query,
                    headers.copy(),
                    self.http10,
                    self.keep_alive,
                )

    def _head_too_large(self, head: bytes) -> Refused:
        line = head.partition(b"\r\n")[0]
        if len(line) > self._limits.target_bytes:
            return Refused(
                414, "target_too_long", f"The request's URL is longer than {self._limits.target_bytes} bytes."
            )
        return Refused(431, "headers_too_large", f"The request's head is larger than {self._limits.head_bytes} bytes.")

    def _parse(self, head: bytes) -> HttpRequest:
        words = head[: head.find(b"\r\n")].split(b" ")
        if len(words) != 3:
            raise Refused(400, "invalid_request_line", "The request line is not METHOD, target and version.")
        method, target, version = words
        if version != b"HTTP/1.1" and version != b"HTTP/1.0":
            if version.startswith(b"HTTP/"):
                raise Refused(505, "unsupported_version", "Only HTTP/1.1 and HTTP/1.0 are spoken here.")
            raise Refused(400, "invalid_request_line", "The request line does not end with an HTTP version.")
        if len(target) > self._limits.target_bytes:
            raise self._head_too_large(head)
        self.http10 = version == b"HTTP/1.0"
        headers: dict[bytes, bytes] = {}
        self._headers = headers
        self._repeated = None
        try:
            HttpRequestParser(self).feed_data(head)
        except HttpParserUpgrade:
            pass  # asked for by the client; whether it is heeded is decided below
        except HttpParserInvalidMethodError:
            raise Refused(501, "unknown_method", "The request's method is not known.") from None
        except HttpParserInvalidURLError:
            raise Refused(400, "invalid_target", "The request's URL is malformed.") from None
        except HttpParserError as error:
            coding = headers.get(b"transfer-encoding")
            if coding is not None and coding.lower() != b"chunked" and b"content-length" not in headers:
                raise unknown_coding() from None
            raise Refused(400, "invalid_headers", f"The request's head is malformed: {error}.") from None
        if self._repeated is not None:
            raise Refused(400, "repeated_header", f"The header {self._repeated.decode('latin-1')} is given twice.")
        host = headers.get(b"host")
        if host is None:
            if not self.http10:
                raise Refused(400, "missing_host", "An HTTP/1.1 request names its Host.")
        elif HOST.fullmatch(host) is None:
            raise Refused(400, "invalid_host", "The Host header is not a host.")
        path, query = split_target(method, target)
        self._decide_connection(headers)
        self._decide_body(headers)
        return HttpRequest(method.decode("ascii"), path, query, headers, b"", self._peer, 0.0)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one header from the parser."""
        name = name.lower()
        headers = self._headers
        if name not in headers:
            headers[name] = value.strip(b" \t")
        elif name in SINGLE:
            self._repeated = name
        else:
            separator = b"; " if name == b"cookie" else b", "
            headers[name] = headers[name] + separator + value.strip(b" \t")

    def _decide_connection(self, headers: dict[bytes, bytes]) -> None:
        connection = headers.get(b"connection")
        if connection is None:
            self.keep_alive = not self.http10
            return
        options = {option.strip(b" \t") for option in connection.lower().split(b",")}
        self.keep_alive = b"close" not in options and (not self.http10 or b"keep-alive" in options)
        # Other upgrades (HTTP/2 without TLS) may be ignored, as clients expect; who asks for a WebSocket cannot go on.
        if b"upgrade" in options and headers.get(b"upgrade", b"").lower() == b"websocket":
            raise Refused(400, "upgrade_not_supported", "WebSocket connections are not served here.")

    def _decide_body(self, headers: dict[bytes, bytes]) -> None:
        coding = headers.get(b"transfer-encoding")
        length = headers.get(b"content-length")
        self._missing = 0
        if coding is not None:
            if length is not None or self.http10:
                raise Refused(400, "invalid_framing", "Transfer-Encoding excludes Content-Length and HTTP/1.0.")
            if coding.lower() != b"chunked":
                raise unknown_coding()
            self._chunked = ChunkedBody(self._limits.body_bytes)
        elif length is not None:
            if not length.isdigit() or len(length) > MAX_DIGITS:
                raise Refused(400, "invalid_framing", "Content-Length is not a number.")
            self._missing = int(length)
            if self._missing > self._limits.body_bytes:
                raise body_too_large(self._limits.body_bytes)
        expectation = headers.get(b"expect")
        if expectation is not None:
            if expectation.lower() != b"100-continue":
                raise Refused(417, "unknown_expectation", "Only 100-continue can be expected here.")
            # Whoever has sent some of the body already does not wait for us.
            awaited = self._missing > 0 or self._chunked is not None
            self.continue_wanted = awaited and not self._buffer and not self.http10


def unknown_coding() -> Refused:
    """Say that a body is coded in a way we do not undo."""
    return Refused(501, "unknown_transfer_coding", "Only the transfer coding chunked is understood.")


def split_target(method: bytes, target: bytes) -> tuple[str, str]:
    """Give a request target's decoded path and its query as received. Raises `Refused`.

    Dot segments, doubled and encoded slashes stay as they are: a path is compared, never resolved.
    """
    if target[:1] == b"/":
        if b"%" not in target and b"#" not in target and target.isascii():
            plain, _, rest = target.decode("ascii").partition("?")
            return plain, rest
    else:
        if target == b"*" and method == b"OPTIONS":
            return "*", ""
        scheme, found, after = target.partition(b"://")
        if not found or scheme.lower() not in (b"http", b"https"):
            raise Refused(400, "invalid_target", "The request's URL is neither a path nor absolute.")
        authority = re.split(rb"[/?#]", after, maxsplit=1)[0]
        target = after[len(authority) :]
        if target[:1] != b"/":
            target = b"/" + target
    path, _, query = target.partition(b"?")
    try:
        if b"#" in target:
            raise Refused(400, "invalid_target", "The request's URL has a fragment.")
        if b"%" in path:
            return decode_path(path), query.decode("ascii")
        return path.decode("ascii"), query.decode("ascii")
    except UnicodeDecodeError:
        raise Refused(400, "invalid_target", "The request's URL is not UTF-8.") from None


def decode_path(path: bytes) -> str:
    """Undo percent-encoding once. Raises `Refused`, and `UnicodeDecodeError` for what is not UTF-8."""
    if path.count(b"%") != len(ESCAPE.findall(path)):
        raise Refused(400, "invalid_target", "The request's URL has a broken percent-encoding.")
    decoded = ESCAPE.sub(lambda match: bytes((int(match[1], 16),)), path).decode("utf-8")
    if CONTROL.search(decoded) is not None:
        raise Refused(400, "invalid_target", "The request's URL has control characters.")
    return decoded
