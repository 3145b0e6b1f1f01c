"""A corpus of event streams, cut at random: what is read of each does not depend on where it was cut."""

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.call import Event
from gateway.errors import UpstreamFailure
from gateway.upstreams.event_stream import EventStream
from tests.rig.stream_corpus import BROKEN, sound

SOUND = dict(sound())
Read = tuple[bytes, bool, UpstreamFailure | None, object]


class Forgetful(EventStream):
    """The defence taken out: what is left of a chunk is not kept for the next one."""

    def feed(self, chunk: bytes) -> Event | None:
        event = super().feed(chunk)
        self._held.clear()
        return event


def read(pieces: Sequence[bytes], make: Callable[..., EventStream] = EventStream) -> Read:
    """Give what goes out to the caller, whether the stream was whole, what was wrong, and the usage."""
    stream = make(hide_usage=False)
    raw, usage = b"", None
    for event in [*map(stream.feed, pieces), stream.finish()]:
        if event is not None:
            raw += event.raw or b""
            usage = event.usage or usage
    return raw, stream.done, None if stream.error is None else stream.error.kind, usage


def split(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    return [data[begin:end] for begin, end in zip([0, *places], [*places, len(data)], strict=True) if begin < end]


some_cuts = st.lists(st.integers(0, 1 << 21), min_size=1, max_size=20)


@pytest.mark.fault_row(15)
def test_the_corpus_is_large_enough_and_read_as_what_it_is() -> None:
    assert len(SOUND) + len(BROKEN) >= 200
    for name, data in SOUND.items():
        raw, done, error, usage = read([data])
        assert (done, error, usage is not None) == (True, None, "usage" in name), name
        assert raw.decode().count("é…😀") == 1, name
        assert raw.count(b"[DONE]") == 1, name
    for name, data in BROKEN.items():
        raw, done, _, _ = read([data])
        assert not done, name
        assert raw in (b"", BROKEN["no end"]), name


@pytest.mark.fault_row(15)
@settings(max_examples=300)
@given(name=st.sampled_from(sorted(SOUND)), cuts=some_cuts)
def test_every_sound_stream_is_read_alike_at_every_cut(name: str, cuts: list[int]) -> None:
    data = SOUND[name]
    lines = [line for line in read(split(data, cuts))[0].splitlines() if not line.startswith(b":")]
    told = [line for line in read([data])[0].splitlines() if not line.startswith(b":")]  # comments before may be kept

    assert b"\n".join(filter(None, lines)) == b"\n".join(filter(None, told))
    assert read(split(data, cuts))[1:] == read([data])[1:]


@pytest.mark.fault_row(15)
@settings(max_examples=100)
@given(name=st.sampled_from(sorted(BROKEN)), cuts=some_cuts)
def test_every_broken_stream_is_found_out_at_every_cut(name: str, cuts: list[int]) -> None:
    assert read(split(BROKEN[name], cuts)) == read([BROKEN[name]])


@pytest.mark.fault_row(15, removed=True)
def test_a_reader_that_keeps_nothing_reads_something_else_at_nearly_every_cut() -> None:
    data = next(iter(SOUND.values()))
    wrong = [cut for cut in range(1, len(data)) if read(split(data, [cut]), Forgetful) != read([data])]

    assert len(wrong) > 0.9 * len(data)
