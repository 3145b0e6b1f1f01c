"""What the request reader promises: the same requests however the bytes are cut, and nothing ambiguous let through."""

from collections.abc import Iterable, Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.http.chunked import CHUNK_BYTES, FREE_CHUNKS
from gateway.http.limits import ServerLimits
from gateway.http.message import HttpRequest
from gateway.http.refusal import Refused
from gateway.http.request import RequestReader

LIMITS = ServerLimits(target_bytes=200, head_bytes=1000, headers=10, body_bytes=100)

THREE = (
    b"POST /v1/chat%20s?a=%20b HTTP/1.1\r\nHost: x:80\r\nContent-Length: 5\r\nX-A: 1\r\nx-a: 2\r\n\r\nhello"
    b"\r\n"
    b"PUT /b HTTP/1.1\r\nhost: x\r\nTransfer-Encoding: Chunked\r\n\r\n"
    b"3;ext=1\r\nabc\r\n00A\r\n0123456789\r\n0\r\nTrailer: t\r\n\r\n"
    b"GET http://other/c HTTP/1.0\r\n\r\n"
)


def read_all(pieces: Iterable[bytes], limits: ServerLimits = LIMITS) -> Iterator[HttpRequest]:
    reader = RequestReader(limits, "peer")
    for piece in pieces:
        reader.feed(piece)
        while (request := reader.read(7.0)) is not None:
            yield request


def expected() -> list[HttpRequest]:
    first = {b"host": b"x:80", b"content-length": b"5", b"x-a": b"1, 2"}
    second = {b"host": b"x", b"transfer-encoding": b"Chunked"}
    return [
        HttpRequest("POST", "/v1/chat s", "a=%20b", first, b"hello", "peer", 7.0),
        HttpRequest("PUT", "/b", "", second, b"abc0123456789", "peer", 7.0),
        HttpRequest("GET", "/c", "", {}, b"", "peer", 7.0),
    ]


@pytest.mark.parametrize("cut", range(len(THREE) + 1))
def test_a_cut_anywhere_changes_nothing(cut: int) -> None:
    assert list(read_all((THREE[:cut], THREE[cut:]))) == expected()


def test_single_bytes_change_nothing() -> None:
    assert list(read_all(THREE[i : i + 1] for i in range(len(THREE)))) == expected()


@given(st.lists(st.integers(0, len(THREE)), max_size=12))
def test_any_cuts_change_nothing(cuts: list[int]) -> None:
    bounds = [0, *sorted(cuts), len(THREE)]

    assert list(read_all(THREE[a:b] for a, b in pairwise(bounds))) == expected()


def post(*headers: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join((b"POST /a HTTP/1.1", b"Host: x", *headers, b"", body))


def chunked(body: bytes) -> bytes:
    return post(b"Transfer-Encoding: chunked", body=body)


REFUSALS = [
    # framing
    (post(b"Content-Length: 5", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"), 400),
    (post(b"Transfer-Encoding: chunked", b"Content-Length: 5", body=b"0\r\n\r\n"), 400),
    (post(b"Content-Length: 5", b"Content-Length: 5", body=b"hello"), 400),
    (post(b"Content-Length: 5", b"Content-Length: 6", body=b"hello"), 400),
    (post(b"Content-Length: 5, 5", body=b"hello"), 400),
    (post(b"Content-Length: +5", body=b"hello"), 400),
    (post(b"Content-Length: -5", body=b"hello"), 400),
    (post(b"Content-Length: 0_5", body=b"hello"), 400),
    (post(b"Content-Length: 0x5", body=b"hello"), 400),
    (post(b"Content-Length: 5 5", body=b"hello"), 400),
    (post(b"Content-Length: ", body=b"hello"), 400),
    (post(b"Content-Length: 99999999999999999999999"), 400),
    (post(b"Content-Length: 999999999999999999"), 413),
    (post(b"Transfer-Encoding: gzip"), 501),
    (post(b"Transfer-Encoding: gzip, chunked"), 501),
    (post(b"Transfer-Encoding: xchunked"), 501),
    (post(b"Transfer-Encoding: identity"), 501),
    (post(b"Transfer-Encoding: chunked, chunked"), 400),
    (post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"), 400),
    (post(b"Transfer-Encoding:\x0bchunked"), 400),
    (post(b"Transfer-Encoding : chunked"), 400),
    (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    # lines
    (b"GET / HTTP/1.1\nHost: x\n\n\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: x\n\r\n\r\n", 400),
    (b"\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    (b"\rGET / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    (post(b"X: a\rb"), 400),
    (post(b"X: a", b" folded"), 400),
    (post(b"X: a", b"\tfolded"), 400),
    (post(b"X : a"), 400),
    (post(b": a"), 400),
    (post(b"X(y): a"), 400),
    (post(b"no colon"), 400),
    (post(b"X: a\0b"), 400),
    (post(b"X: a\x01b"), 400),
    (post(b"X: a\x7fb"), 400),
    (b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    (b"GET / HTTP/1.1 \r\nHost: x\r\n\r\n", 400),
    (b" GET / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    (b"GET\t/ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    (b"GET /\r\nHost: x\r\n\r\n", 400),
    (b"GET / a HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    # method and version
    (b"BREW / HTTP/1.1\r\nHost: x\r\n\r\n", 501),
    (b"get / HTTP/1.1\r\nHost: x\r\n\r\n", 501),
    (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505),
    (b"GET / HTTP/1.2\r\nHost: x\r\n\r\n", 505),
    (b"GET / http/1.1\r\nHost: x\r\n\r\n", 400),
    (b"GET / RTSP/1.0\r\nHost: x\r\n\r\n", 400),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),  # TLS where none is spoken
    # host
    (b"GET / HTTP/1.1\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: x/foo?\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: user@x\r\n\r\n", 400),
    # other headers that must be one
    (post(b"Authorization: Bearer a", b"authorization: Bearer b"), 400),
    (post(b"Content-Type: a/b", b"Content-Type: c/d"), 400),
    (post(b"Expect: 200-ok", b"Content-Length: 1"), 417),
    (post(b"Connection: keep-alive, Upgrade", b"Upgrade: websocket"), 400),
    # target
    (b"GET a HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    (b"GET * HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    (b"GET ftp://x/ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    (b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    (b"GET /a#b HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    (b"GET /\x01 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    (b"GET /\xc3\xa9 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    (b"GET /%00 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    (b"GET /%0d%0a HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    (b"GET /%ff HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    (b"GET /%c0%ae HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    (b"GET /%ed%a0%80 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    (b"GET /%2 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    (b"GET /%zz HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    (b"GET /%+1 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    # sizes
    (b"GET /" + b"a" * 200 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
    (b"GET /" + b"a" * 2000, 414),
    (post(b"X: " + b"a" * 1000), 431),
    (b"GET / HTTP/1.1\r\nX: " + b"a" * 2000, 431),
    (post(*(b"X%d: 1" % i for i in range(10))), 431),
    (post(b"Content-Length: 101"), 413),
    # chunks
    (chunked(b"65\r\n"), 413),
    (chunked(b"40\r\n" + b"a" * 64 + b"\r\n40\r\n"), 413),
    (chunked(b"Z\r\n"), 400),
    (chunked(b"\r\n"), 400),
    (chunked(b"+5\r\nhello\r\n"), 400),
    (chunked(b"0x5\r\nhello\r\n"), 400),
    (chunked(b" 5\r\nhello\r\n"), 400),
    (chunked(b"5_0\r\nhello\r\n"), 400),
    (chunked(b"1000000000000000\r\n"), 400),
    (chunked(b"5\nhello\r\n"), 400),
    (chunked(b"5\rhello\r\n"), 400),
    (chunked(b"5\r\nhelloX\r\n"), 400),
    (chunked(b"5\r\nhello\n0\r\n"), 400),
    (chunked(b"5\r\nhello\rX"), 400),
    (chunked(b"5;" + b"e" * 300), 400),
    (chunked(b"5;a\0b\r\n"), 400),
    (chunked(b"0\r\nno colon\r\n\r\n"), 400),
    (chunked(b"0\r\nX: a\n\r\n\r\n"), 400),
    (chunked(b"0\r\n" + b"X: a\r\n" * 3000 + b"\r\n"), 431),
    (chunked(b"0\r\nX: " + b"a" * 10_000), 400),
]


@pytest.mark.parametrize(("data", "status"), REFUSALS, ids=lambda value: repr(value)[:60])
def test_what_two_readers_could_understand_differently_is_refused(data: bytes, status: int) -> None:
    with pytest.raises(Refused) as whole:
        list(read_all((data,)))
    with pytest.raises(Refused) as bytewise:
        list(read_all(data[i : i + 1] for i in range(len(data))))

    assert (whole.value.status, bytewise.value.status) == (status, status)


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"/", "/", ""),
        (b"/a?b?c=%20", "/a", "b?c=%20"),
        (b"/%41%2fb", "/A/b", ""),
        (b"/caf%C3%A9", "/café", ""),
        (b"//a/../b/", "//a/../b/", ""),
        (b"/%252e", "/%2e", ""),
        (b"HTTP://x:1/a?b", "/a", "b"),
        (b"http://x", "/", ""),
        (b"http://x?q", "/", "q"),
    ],
)
def test_a_path_is_decoded_once_and_never_resolved(target: bytes, path: str, query: str) -> None:
    [request] = read_all((b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n",))

    assert (request.path, request.query) == (path, query)


def test_options_may_ask_about_the_whole_server() -> None:
    [request] = read_all((b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",))

    assert request.path == "*"


@pytest.mark.parametrize(
    ("head", "kept"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n", True),
        (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Close\r\n", False),
        (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: TE, close\r\n", False),
        (b"GET / HTTP/1.0\r\n", False),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n", True),
    ],
)
def test_the_version_and_connection_decide_whether_it_is_kept(head: bytes, kept: bool) -> None:
    reader = RequestReader(LIMITS, "peer")
    reader.feed(head + b"\r\n")
    reader.read(0.0)

    assert reader.keep_alive == kept


def test_an_offer_of_http2_is_ignored() -> None:
    data = post(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"Content-Length: 2", body=b"ok")

    assert [request.body for request in read_all((data + data,))] == [b"ok", b"ok"]


def test_cookies_are_joined_as_cookies() -> None:
    [request] = read_all((post(b"Cookie: a=1", b"Cookie: b=2", b"Content-Length: 0"),))

    assert request.headers[b"cookie"] == b"a=1; b=2"


def test_tiny_chunks_are_refused_past_a_number() -> None:
    limits = ServerLimits()
    few = chunked(b"1\r\na\r\n" * FREE_CHUNKS + b"0\r\n\r\n")
    [request] = read_all((few,), limits)
    assert len(request.body) == FREE_CHUNKS

    fair = b"%x\r\n%b\r\n" % (CHUNK_BYTES, b"a" * CHUNK_BYTES)
    [request] = read_all((chunked(fair * 2 * FREE_CHUNKS + b"0\r\n\r\n"),), limits)
    assert len(request.body) == 2 * FREE_CHUNKS * CHUNK_BYTES

    with pytest.raises(Refused):
        list(read_all((chunked(b"1\r\na\r\n" * 2 * FREE_CHUNKS),), limits))


def test_a_body_is_awaited_only_by_who_asked() -> None:
    reader = RequestReader(LIMITS, "peer")
    reader.feed(post(b"Expect: 100-Continue", b"Content-Length: 4"))

    assert (reader.read(0.0), reader.continue_wanted, reader.in_body) == (None, True, True)
    reader.feed(b"body")
    assert reader.read(0.0) is not None
    assert not reader.continue_wanted


def test_who_sends_the_body_at_once_is_not_told_to_continue() -> None:
    reader = RequestReader(LIMITS, "peer")
    reader.feed(post(b"Expect: 100-continue", b"Content-Length: 4", body=b"bo"))

    assert (reader.read(0.0), reader.continue_wanted, reader.body_received) == (None, False, 2)


def outcome(reader: RequestReader, data: bytes) -> tuple[object, ...]:
    """What a reader makes of the bytes of one request."""
    reader.feed(data)
    try:
        request = reader.read(7.0)
    except Refused as refused:
        return refused.status, refused.code
    return request, reader.keep_alive, reader.http10, reader.continue_wanted, reader.in_body, reader.buffered


KNOWN = post(b"Content-Length: 5", b"X-A: 1", body=b"hello")


@pytest.mark.parametrize(
    "data",
    [
        KNOWN,
        post(b"Content-Length: 05", b"X-A: 1", body=b"other"),
        post(b"Content-Length: 0", b"X-A: 1"),
        post(b"Content-Length: 100", b"X-A: 1", body=b"b" * 100),
        post(b"Content-Length: 101", b"X-A: 1", body=b"b" * 101),
        post(b"Content-Length: " + b"1" * 18, b"X-A: 1"),
        post(b"Content-Length: " + b"1" * 19, b"X-A: 1"),
        post(b"Content-Length: " + b"1" * 900, b"X-A: 1"),
        post(b"Content-Length: ", b"X-A: 1"),
        post(b"Content-Length: 5 ", b"X-A: 1", body=b"hello"),
        post(b"Content-Length: 5, 5", b"X-A: 1", body=b"hello"),
        post(b"Content-Length: \xb2", b"X-A: 1", body=b"hello"),
        post(b"Content-Length: 5\r\nContent-Length: 5", b"X-A: 1", body=b"hello"),
        post(b"Content-Length: 5", b"X-A: 1\r\nX-A: 1", body=b"hello"),
        post(b"Content-Length: 5", b"X-A: 2", body=b"hello"),
        post(b"Content-Length: 5", body=b"hello"),
        KNOWN[:-7],
        *(data for data, _ in REFUSALS),
    ],
)
def test_a_reader_who_knows_a_head_judges_the_next_as_one_who_does_not(data: bytes) -> None:
    knowing = RequestReader(LIMITS, "peer")
    for _ in range(2):
        outcome(knowing, KNOWN)

    assert outcome(knowing, data) == outcome(RequestReader(LIMITS, "peer"), data)


HEADS = (b"POST /a HTTP/1.1", b"GET /b HTTP/1.1", b"POST /a HTTP/1.0")
CHUNKED = b"Transfer-Encoding: chunked"
LINES = (
    *(b"Content-Length: %d" % size for size in (0, 5, 77)),
    *(
        b"content-length:5",
        b"Content-Length:  5",
        b"Content-Length: 5\t",
        b"X-Content-Length: 5",
        b"X: Content-Length: 5",
    ),
    *(b"Connection: close", b"Expect: 100-continue", b"Transfer-Encoding: chunked", b"X-A: 1", b"X-A: 2", b"Host: y"),
)


@given(st.lists(st.tuples(st.sampled_from(HEADS), st.lists(st.sampled_from(LINES), max_size=3)), max_size=12))
def test_what_came_before_changes_no_request(asked: list[tuple[bytes, list[bytes]]]) -> None:
    reader = RequestReader(LIMITS, "peer")
    for line, lines in asked:
        data = b"\r\n".join((line, b"Host: x", *lines, b"", b"0\r\n\r\n" if CHUNKED in lines else b""))
        data += b"b" * sum(
            int(each.rpartition(b":")[2]) for each in lines if each.lower().startswith(b"content-length")
        )
        fresh = outcome(RequestReader(LIMITS, "peer"), data)

        assert outcome(reader, data) == fresh
        if not isinstance(fresh[0], HttpRequest):
            reader = RequestReader(LIMITS, "peer")


def test_a_request_does_not_share_its_headers_with_the_next() -> None:
    first, second, third = read_all([KNOWN * 3])
    second.headers.clear()

    assert third == first
