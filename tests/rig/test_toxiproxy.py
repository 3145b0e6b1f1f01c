"""What is written for Toxiproxy drives our proxies."""

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.rig.test_fault_proxy import Echo, broken, echoed, is_silent
from tests.rig.toxiproxy import Toxiproxy, toxiproxy


@pytest.fixture
def api() -> Iterator[Toxiproxy]:
    with toxiproxy() as server:
        yield server


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo(None)
    server.start()
    yield server
    server.end()


def ask(api: Toxiproxy, method: str, path: str, fields: Any = None) -> tuple[int, Any]:
    body = None if fields is None else json.dumps(fields).encode()
    request = urllib.request.Request(api.url + path, body, {"content-type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            data = answer.read()
            return answer.status, json.loads(data) if data else None
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def create(api: Toxiproxy, echo: Echo, **fields: Any) -> dict[str, Any]:
    host, port = echo.listener.getsockname()
    status, told = ask(api, "POST", "/proxies", {"name": "echo", "upstream": f"{host}:{port}", **fields})
    assert status == 201, told
    return dict(told)


def connect(told: dict[str, Any]) -> socket.socket:
    host, _, port = told["listen"].rpartition(":")
    return socket.create_connection((host, int(port)), timeout=30)


def test_a_proxy_is_made_looked_at_switched_off_and_deleted(api: Toxiproxy, echo: Echo) -> None:
    told = create(api, echo)
    with connect(told) as peer:
        assert echoed(peer, b"hello") == b"hello"
        assert ask(api, "GET", "/proxies") == (200, {"echo": told})
        assert ask(api, "POST", "/proxies/echo", {"enabled": False})[1]["enabled"] is False
        assert broken(peer)
    with pytest.raises(ConnectionRefusedError):
        connect(told)
    ask(api, "POST", "/proxies/echo", {"enabled": True})
    with connect(told) as peer:
        assert echoed(peer, b"again") == b"again"

    assert ask(api, "DELETE", "/proxies/echo") == (204, None)
    assert ask(api, "GET", "/proxies/echo") == (404, {"error": "proxy not found", "status": 404})


def test_a_toxic_is_added_changed_and_removed(api: Toxiproxy, echo: Echo) -> None:
    told = create(api, echo)
    toxic = {"type": "limit_data", "attributes": {"bytes": 3}}
    status, added = ask(api, "POST", "/proxies/echo/toxics", toxic)

    assert (status, added["name"], added["stream"]) == (200, "limit_data_downstream", "downstream")
    with connect(told) as peer:
        assert echoed(peer, b"0123456789") == b"012"
    ask(api, "POST", "/proxies/echo/toxics/limit_data_downstream", {"attributes": {"bytes": 5}})
    with connect(told) as peer:
        assert echoed(peer, b"0123456789") == b"01234"
    assert ask(api, "DELETE", "/proxies/echo/toxics/limit_data_downstream") == (204, None)
    with connect(told) as peer:
        assert echoed(peer, b"0123456789") == b"0123456789"


def test_reset_makes_everything_good_again(api: Toxiproxy, echo: Echo) -> None:
    told = create(api, echo)
    ask(api, "POST", "/proxies/echo/toxics", {"type": "timeout", "stream": "upstream", "name": "gone"})
    with connect(told) as peer:
        peer.sendall(b"lost")
        assert is_silent(peer)
    ask(api, "POST", "/proxies/echo", {"enabled": False})

    assert ask(api, "POST", "/reset") == (204, None)
    with connect(told) as peer:
        assert echoed(peer, b"back") == b"back"
    assert ask(api, "GET", "/proxies/echo/toxics") == (200, [])


@pytest.mark.parametrize(
    ("kind", "attributes"),
    [
        ("latency", {"latency": 5, "jitter": 2}),
        ("bandwidth", {"rate": 1000}),
        ("slicer", {"average_size": 10, "size_variation": 3, "delay": 5}),
        ("slow_close", {"delay": 10}),
        ("reset_peer", {"timeout": 60_000}),
        ("held", {}),
    ],
)
def test_every_type_is_told_as_it_was_given(api: Toxiproxy, echo: Echo, kind: str, attributes: dict[str, int]) -> None:
    create(api, echo)
    given = {"name": "one", "type": kind, "stream": "upstream", "toxicity": 0.5, "attributes": attributes}

    assert ask(api, "POST", "/proxies/echo/toxics", given) == (200, given)
    assert ask(api, "GET", "/proxies/echo/toxics/one") == (200, given)


@pytest.mark.parametrize(
    ("method", "path", "fields", "status"),
    [
        ("POST", "/proxies", {"name": "echo", "upstream": "127.0.0.1:1"}, 409),
        ("POST", "/proxies", {"name": "other"}, 400),
        ("POST", "/proxies", {"name": "other", "upstream": "nowhere"}, 400),
        ("POST", "/proxies/echo/toxics", {"type": "poison"}, 400),
        ("POST", "/proxies/echo/toxics", {"type": "latency", "stream": "sideways"}, 400),
        ("GET", "/proxies/echo/toxics/none", None, 404),
        ("GET", "/elsewhere", None, 404),
    ],
)
def test_what_cannot_be_done_is_said(
    api: Toxiproxy, echo: Echo, method: str, path: str, fields: Any, status: int
) -> None:
    create(api, echo)

    assert ask(api, method, path, fields)[0] == status
