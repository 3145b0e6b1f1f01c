"""An upstream's stream goes out as it came, whatever its chunks; what is no stream is noticed."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.call import Usage
from gateway.errors import UpstreamFailure
from gateway.upstreams.event_stream import MAX_EVENT_BYTES, EventStream, data_of

CHUNK = b'data: {"choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":null}]}\n\n'
LAST = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}\n\n'
DONE = b"data: [DONE]\n\n"
ERROR = b'data: {"error":{"message":"broke","type":"server_error","code":null}}\n\n'
PLAIN = CHUNK % b"a" + CHUNK % "é".encode() + LAST + DONE

# Whole streams, as servers write them, and as the standard allows.
WHOLE = {
    "plain": PLAIN,
    "usage": CHUNK % b"a" + LAST + USAGE + DONE,
    "CRLF": PLAIN.replace(b"\n", b"\r\n"),
    "CR": PLAIN.replace(b"\n", b"\r"),
    "mixed line ends": CHUNK % b"a" + LAST.replace(b"\n", b"\r\n") + DONE.replace(b"\n", b"\r"),
    "no space": PLAIN.replace(b"data: ", b"data:"),
    "byte order mark": b"\xef\xbb\xbf" + PLAIN,
    "comments": b": hello\n\n" + CHUNK % b"a" + b": still here\n\n" + LAST + DONE,
    "names and ids": b"event: message\nid: 1\n" + CHUNK % b"a" + b"retry: 10\n\n" + LAST + DONE,
    "data on two lines": b'data: {"choices":\ndata: [{"index":0,"finish_reason":"stop"}]}\n\n' + DONE,
    "the words usage and error": CHUNK % b'\\"usage\\": \\"error\\"' + LAST + DONE,
    "blank data": CHUNK % b"a" + b"data:\n\n" + LAST + DONE,
    "usage null": CHUNK.replace(b"}]}", b'}],"usage":null}') % b"a" + LAST + DONE,
    "error null": CHUNK.replace(b"}]}", b'}],"error":null}') % b"a" + LAST + DONE,
    "a long line": CHUNK % (b"x" * 300_000) + LAST + DONE,
}


def run(pieces: list[bytes], *, hide_usage: bool = False) -> tuple[bytes, Usage | None, EventStream]:
    stream = EventStream(hide_usage=hide_usage)
    raw, usage = b"", None
    for event in [*map(stream.feed, pieces), stream.finish()]:
        if event is not None:
            raw += event.raw or b""
            usage = event.usage or usage
    return raw, usage, stream


def events_of(raw: bytes) -> list[object]:
    """What a client reads, by a reader of its own."""
    text = raw.decode().replace("\r\n", "\n").replace("\r", "\n")
    blocks = [[line for line in block.split("\n") if line.startswith("data:")] for block in text.split("\n\n")]
    told = ["\n".join(line[5:].removeprefix(" ") for line in block) for block in blocks if block]
    return [each if each == "[DONE]" else json.loads(each) for each in told if each.strip()]


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    return [data[begin:end] for begin, end in zip([0, *places], [*places, len(data)], strict=True)]


@pytest.mark.fault_row(15)
@pytest.mark.parametrize("name", WHOLE)
@given(cuts=st.lists(st.integers(0, 10_000), max_size=12))
def test_every_cut_of_a_stream_says_the_same(name: str, cuts: list[int]) -> None:
    raw, usage, stream = run(split(WHOLE[name], cuts))

    assert events_of(raw) == events_of(WHOLE[name].removeprefix(b"\xef\xbb\xbf"))
    assert stream.done
    assert stream.error is None
    assert usage == (Usage(3, 2) if name == "usage" else None)


@pytest.mark.fault_row(15)
@pytest.mark.parametrize("name", [name for name in WHOLE if name != "a long line"])
def test_a_stream_may_come_byte_by_byte(name: str) -> None:
    raw, _, stream = run([bytes([byte]) for byte in WHOLE[name]])

    assert events_of(raw) == events_of(WHOLE[name].removeprefix(b"\xef\xbb\xbf"))
    assert stream.done


def test_a_whole_chunk_goes_out_as_the_very_bytes_that_came() -> None:
    stream = EventStream()
    stream.feed(CHUNK % b"a")
    chunk = CHUNK % b"b"

    event = stream.feed(chunk)

    assert event is not None
    assert event.raw is chunk


def test_an_event_waits_for_its_rest() -> None:
    stream = EventStream()
    whole = CHUNK % b"a"

    assert stream.feed(whole[:20]) is None
    assert stream.holding
    event = stream.feed(whole[20:] + whole[:5])
    assert event is not None
    assert event.raw == whole


def test_comments_alone_are_no_beginning() -> None:
    stream = EventStream()

    assert stream.feed(b": working on it\n\n") is None
    assert not stream.begun


def test_a_stream_whose_last_choice_ended_gets_the_terminal_event_that_it_owes() -> None:
    for end in (LAST, CHUNK % b"a" + LAST + USAGE, LAST[:-1]):
        raw, _, stream = run([end])

        assert stream.done
        assert raw.endswith(DONE)


@pytest.mark.parametrize("end", [b"", CHUNK % b"a", (CHUNK % b"a")[:-2], CHUNK % b"a" + LAST[:30]])
def test_a_stream_that_ends_before_its_answer_is_not_done(end: bytes) -> None:
    raw, _, stream = run([end])

    assert not stream.done
    assert DONE not in raw


def test_what_follows_the_terminal_event_is_dropped() -> None:
    raw, _, stream = run([PLAIN + DONE + CHUNK % b"late", CHUNK % b"later"])

    assert raw == PLAIN
    assert stream.done


@pytest.mark.parametrize("cut", [False, True])
def test_an_error_event_comes_after_what_preceded_it(cut: bool) -> None:
    raw, _, stream = run([CHUNK % b"a", ERROR] if cut else [CHUNK % b"a" + ERROR + CHUNK % b"b"])

    assert raw == CHUNK % b"a"
    assert not stream.done
    assert stream.error is not None
    assert (stream.error.kind, stream.error.message) == (UpstreamFailure.IN_BAND, "broke")


@pytest.mark.parametrize(
    ("error", "status", "forwarded"),
    [
        ('{"error":{"message":"x","code":429}}', 429, True),
        ('{"error":{"message":"x","code":"rate"}}', 502, True),
        ('{"error":{"message":"x","code":401}}', 502, True),
        ('{"error":"no model"}', 502, False),
        ('{"error":{"code":400}}', 400, False),
        ('{"object":"error","message":"x","code":400}', 502, False),
    ],
)
def test_an_error_event_tells_the_status_that_it_should_have_been(error: str, status: int, forwarded: bool) -> None:
    _, _, stream = run([f"data: {error}\n\n".encode()])

    assert stream.error is not None
    assert stream.error.status == status
    assert stream.error.body == (error.encode() if forwarded else None)


@pytest.mark.fault_row(15)
@pytest.mark.parametrize(
    "data",
    [
        *("oops", '{"choices":', "[]", "5", '{"choices":5}', '{"a":NaN}', "\xff", '{"usage":"much"}', "{" * 5_000),
        *("{oops}", '{"a":"\xff"}', '{"a":"\x01"}', '{"a":\n1}', '{"a":\r1}', "{}}", "{} {}", "{}\n\ndata: {oops}"),
    ],
)
def test_what_is_no_chunk_is_an_error(data: str) -> None:
    chunk, wrong = CHUNK % b"a", b"data: " + data.encode("latin-1") + b"\n\n"
    for before, apart in ((b"", False), (chunk, False), (chunk, True)):
        raw, _, stream = run([before, wrong] if apart else [before + wrong])

        assert raw.removesuffix(b"data: {}\n\n") == before
        assert stream.error is not None
        assert stream.error.kind is UpstreamFailure.PROTOCOL


@pytest.mark.fault_row(15)
def test_an_event_without_end_is_an_error() -> None:
    stream = EventStream()
    piece = b"x" * 65_536
    for _ in range(MAX_EVENT_BYTES // len(piece) + 1):
        stream.feed(b"data: " + piece if not stream.holding else piece)

    assert stream.error is not None
    assert not stream.holding


def test_usage_that_nobody_asked_for_stays_here() -> None:
    raw, usage, _ = run([CHUNK % b"a" + LAST, USAGE, DONE], hide_usage=True)

    assert raw == CHUNK % b"a" + LAST + DONE
    assert usage == Usage(3, 2)


def test_cached_tokens_are_read() -> None:
    details = b'"prompt_tokens_details":{"cached_tokens":8}'
    told = b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":1,%b}}\n\n' % details

    assert run([told])[1] == Usage(9, 1, 8)


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b"data: x\n\n", b"x"),
        (b"data:x\n\n", b"x"),
        (b"data:  x\n\n", b" x"),
        (b"data: a\ndata: b\n\n", b"a\nb"),
        (b"data: [DONE] \r\n\r\n", b"[DONE]"),
        (b": comment\n\n", None),
        (b"data\n\n", None),
        (b"data: \n\n", None),
        (b"database: x\n\n", None),
        (b"id: 1\n\n", None),
    ],
)
def test_the_data_of_an_event(event: bytes, data: bytes | None) -> None:
    assert data_of(event) == data
