"""What may be written into a head."""

import pytest

from gateway.http.head import field_lines, status_line


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"x", b"a\r\nset-cookie: b"),
        (b"x", b"a\nb"),
        (b"x", b"a\rb"),
        (b"x", b"a\0b"),
        (b"x", b"\n"),
        (b"content-type", b"a\r\n\r\n<html>"),
        (b"x: y\r\nz", b"a"),
        (b"x y", b"a"),
        (b"x:", b"a"),
        (b"", b"a"),
        (b"caf\xc3\xa9", b"a"),
    ],
)
def test_a_header_cannot_become_two(name: bytes, value: bytes) -> None:
    with pytest.raises(ValueError, match="header"):
        field_lines(((b"content-type", b"text/plain"), (name, value)))


def test_headers_are_written_as_given() -> None:
    assert field_lines(((b"content-type", b"a"), (b"X-Y", b"\xc3\xa9 b"))) == b"content-type: a\r\nX-Y: \xc3\xa9 b\r\n"


def test_a_status_without_a_phrase_is_still_a_status() -> None:
    assert (status_line(200), status_line(299)) == (b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 299 \r\n")
