"""The bad network does what it is told to, when it is told, and nothing else."""

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from tests.rig.fault_proxy import FaultProxy
from tests.rig.toxics import Bandwidth, Direction, Held, Latency, LimitData, ResetPeer, Schedule, Slicer, Timeout

UP, DOWN = Direction.UP, Direction.DOWN
PATIENCE_S = 30.0


class Echo(threading.Thread):
    """A server that gives back what it gets, on TCP or a unix socket, connection by connection."""

    def __init__(self, path: Path | None) -> None:
        super().__init__(daemon=True)
        self.listener = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
        self.listener.bind(str(path) if path else ("127.0.0.1", 0))
        self.listener.listen(16)
        self.place = path or self.listener.getsockname()
        self.peers: list[socket.socket] = []

    def run(self) -> None:
        while True:
            try:
                peer, _ = self.listener.accept()
            except OSError:
                return
            self.peers.append(peer)
            threading.Thread(target=self.serve, args=(peer,), daemon=True).start()

    def serve(self, peer: socket.socket) -> None:
        with peer:
            try:
                while data := peer.recv(1 << 16):
                    peer.sendall(data)
            except OSError:
                return

    def end(self) -> None:
        for sock in (self.listener, *self.peers):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        self.join(PATIENCE_S)


@pytest.fixture(params=["tcp", "unix"])
def proxy(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FaultProxy]:
    unix = request.param == "unix"
    echo = Echo(tmp_path / "echo.sock" if unix else None)
    echo.start()
    try:
        with FaultProxy(echo.place, tmp_path / "proxy.sock" if unix else ("127.0.0.1", 0)) as proxy:
            yield proxy
    finally:
        echo.end()


def connect(proxy: FaultProxy, within_s: float = PATIENCE_S) -> socket.socket:
    place = str(proxy.place) if isinstance(proxy.place, Path) else proxy.place
    sock = socket.socket(socket.AF_UNIX if isinstance(place, str) else socket.AF_INET)
    sock.settimeout(within_s)
    try:
        sock.connect(place)
    except OSError:
        sock.close()
        raise
    sock.settimeout(PATIENCE_S)
    return sock


def echoed(peer: socket.socket, data: bytes) -> bytes:
    """Send, and read as much as was sent, or to the end."""
    peer.sendall(data)
    return read(peer, len(data))


def read(peer: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (piece := peer.recv(size - len(data))):
        data += piece
    return data


def is_silent(peer: socket.socket) -> bool:
    peer.settimeout(0.05)
    try:
        return peer.recv(1) == b"never"
    except TimeoutError:
        return True
    finally:
        peer.settimeout(PATIENCE_S)


def test_a_good_network_passes_everything_both_ways_and_the_end_too(proxy: FaultProxy) -> None:
    data = Random(1).randbytes(3 << 20)
    with connect(proxy) as peer:
        sender = threading.Thread(target=peer.sendall, args=(data,))
        sender.start()
        got = read(peer, len(data))
        sender.join()
        peer.shutdown(socket.SHUT_WR)

        assert (got == data, peer.recv(1)) == (True, b"")
    assert proxy.accepted == 1


@pytest.mark.parametrize("direction", [UP, DOWN])
def test_what_is_held_arrives_when_the_network_is_whole_again(proxy: FaultProxy, direction: Direction) -> None:
    with connect(proxy) as peer:
        assert echoed(peer, b"before") == b"before"
        name = proxy.add(Held(), direction)
        peer.sendall(b"meanwhile")

        assert is_silent(peer)
        proxy.remove(name)
        assert read(peer, 9) == b"meanwhile"


def test_what_a_timeout_swallowed_never_comes_and_its_connection_ends_with_it(proxy: FaultProxy) -> None:
    with connect(proxy) as peer, connect(proxy) as other:
        assert echoed(peer, b"before") == b"before"
        name = proxy.add(Timeout(), DOWN)
        peer.sendall(b"swallowed")

        assert is_silent(peer)
        proxy.remove(name)
        assert (peer.recv(1), other.recv(1)) == (b"", b"")
    with connect(proxy) as peer:
        assert echoed(peer, b"after") == b"after"


def test_a_timeout_with_a_time_ends_the_connection_by_itself(proxy: FaultProxy) -> None:
    proxy.add(Timeout(1), UP)
    with connect(proxy) as peer:
        assert peer.recv(1) == b""


def test_a_limit_lets_so_many_bytes_of_each_connection_pass(proxy: FaultProxy) -> None:
    proxy.add(LimitData(5), DOWN)
    for _ in range(2):
        with connect(proxy) as peer:
            assert echoed(peer, b"0123456789") == b"01234"


def test_a_reset_breaks_what_is_open_and_what_comes(proxy: FaultProxy) -> None:
    with connect(proxy) as peer:
        assert echoed(peer, b"before") == b"before"
        proxy.add(ResetPeer(), DOWN)
        assert broken(peer)
    with connect(proxy) as peer:
        assert broken(peer)


def test_a_cut_breaks_what_is_open_only(proxy: FaultProxy) -> None:
    with connect(proxy) as peer:
        assert echoed(peer, b"before") == b"before"
        proxy.cut()
        assert broken(peer)
    with connect(proxy) as peer:
        assert echoed(peer, b"after") == b"after"


def test_what_is_down_refuses_and_comes_back_at_the_same_place(proxy: FaultProxy) -> None:
    place = proxy.place
    with connect(proxy) as peer:
        assert echoed(peer, b"before") == b"before"
        proxy.down()
        assert broken(peer)
    with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
        connect(proxy)
    proxy.clear()
    with connect(proxy) as peer:
        assert (echoed(peer, b"after"), proxy.place) == (b"after", place)


@pytest.mark.parametrize("proxy", ["tcp"], indirect=True)
def test_what_is_unreachable_neither_takes_nor_refuses_and_leaves_what_is_open(proxy: FaultProxy) -> None:
    with connect(proxy) as peer:
        assert echoed(peer, b"before") == b"before"
        proxy.unreachable()
        with pytest.raises(TimeoutError):
            connect(proxy, within_s=0.05)
        assert echoed(peer, b"still") == b"still"
    proxy.clear()
    with connect(proxy) as peer:
        assert echoed(peer, b"after") == b"after"


def test_a_toxic_meets_its_share_of_the_connections(proxy: FaultProxy) -> None:
    proxy.add(LimitData(1), DOWN, toxicity=0.5)
    lengths = []
    for _ in range(24):
        with connect(proxy) as peer:
            lengths.append(len(echoed(peer, b"01")))

    assert set(lengths) == {1, 2}


@pytest.mark.parametrize("toxic", [Latency(5, 5), Bandwidth(1000), Slicer(100, 50, 10)])
def test_what_is_slow_arrives_whole_and_in_order(proxy: FaultProxy, toxic: Latency | Bandwidth | Slicer) -> None:
    proxy.add(toxic, UP)
    proxy.add(toxic, DOWN)
    data = Random(2).randbytes(3000)
    with connect(proxy) as peer:
        for at in range(0, len(data), 1000):
            assert echoed(peer, data[at : at + 1000]) == data[at : at + 1000]


def dues(*toxics: Latency | Bandwidth | Slicer, data: list[tuple[float, bytes]]) -> list[tuple[float, bytes]]:
    now = [0.0]
    schedule = Schedule({str(index): toxic for index, toxic in enumerate(toxics)}, Random(3), lambda: now[0])
    told = []
    for at, piece in data:
        now[0] = at
        told += [(round(due, 6), part) for due, part in schedule.pieces(piece)]
    return told


def test_latency_is_added_to_each_piece_and_not_to_those_before_it() -> None:
    told = dues(Latency(300), data=[(0.0, b"a"), (0.1, b"b")])

    assert told == [(0.3, b"a"), (0.4, b"b")]


def test_jitter_stays_within_its_bounds_and_overtakes_nobody() -> None:
    times = [due for due, _ in dues(Latency(300, 200), data=[(index / 100, b"x") for index in range(100)])]

    assert times == sorted(times)
    assert all(due - index / 100 >= 0.1 for index, due in enumerate(times))
    assert max(times) <= 0.99 + 0.5


def test_bandwidth_is_shared_by_what_follows_itself() -> None:
    told = dues(Bandwidth(1), data=[(0.0, b"x" * 500), (0.1, b"y" * 500), (9.0, b"z" * 100)])

    assert [due for due, _ in told] == [0.5, 1.0, 9.1]


def test_slices_have_the_size_and_the_pause() -> None:
    told = dues(Slicer(3, 0, 1000), data=[(0.0, b"abcdefgh")])

    assert told == [(0.0, b"abc"), (0.001, b"def"), (0.002, b"gh")]


def broken(peer: socket.socket) -> bool:
    try:
        return peer.recv(1) == b""
    except ConnectionResetError:
        return True
