"""Toxiproxy's HTTP API over our own proxies, so that what is written for it drives them, in whatever language.

    python -m tests.rig.toxiproxy [--port 8474]

Paths, bodies and statuses are those of Toxiproxy 2 (github.com/Shopify/toxiproxy, "HTTP API"). Besides, there is the
type `held`, and `listen` and `upstream` may be paths of unix sockets.
"""

import argparse
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tests.rig.fault_proxy import FaultProxy, Place, Planted
from tests.rig.toxics import (
    Bandwidth,
    Direction,
    Held,
    Latency,
    LimitData,
    ResetPeer,
    Slicer,
    SlowClose,
    Timeout,
    Toxic,
)

# By type: how a toxic is made, and its attributes in the order of its fields, all of them numbers.
TYPES: Mapping[str, tuple[Callable[..., Toxic], tuple[str, ...]]] = MappingProxyType(
    {
        "latency": (Latency, ("latency", "jitter")),
        "bandwidth": (Bandwidth, ("rate",)),
        "slicer": (Slicer, ("average_size", "size_variation", "delay")),
        "limit_data": (LimitData, ("bytes",)),
        "timeout": (Timeout, ("timeout",)),
        "reset_peer": (ResetPeer, ("timeout",)),
        "slow_close": (SlowClose, ("delay",)),
        "held": (Held, ()),
    }
)


class Refused(Exception):
    """A request that cannot be served."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Toxiproxy(ThreadingHTTPServer):
    """The server; `proxies` by name. One request at a time changes them."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.proxies: dict[str, FaultProxy] = {}
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, method: str, path: str, fields: Any) -> tuple[int, object]:
        """Do what is asked; gives the status and the body. Raises `Refused`."""
        parts = path.strip("/").split("/")
        match method, *parts:
            case "GET", "version":
                return 200, {"version": "2.12.0"}
            case "POST", "reset":
                for proxy in self.proxies.values():
                    proxy.clear()
                return 204, None
            case "GET", "proxies":
                return 200, {name: self.told(name) for name in self.proxies}
            case "POST", "proxies":
                return 201, self.create(fields)
            case "POST", "populate":
                return 201, {"proxies": [self.create(each) for each in fields]}
            case _, "proxies", name, *rest:
                self.proxy(name)
                return self.of_proxy(method, name, rest, fields)
        raise Refused(404, "no such path")

    def of_proxy(self, method: str, name: str, rest: list[str], fields: Any) -> tuple[int, object]:
        """Do what is asked of one proxy."""
        proxy = self.proxy(name)
        match method, *rest:
            case ("GET",):
                return 200, self.told(name)
            case ("POST" | "PATCH",):
                (proxy.up if fields.get("enabled", True) else proxy.down)()
                return 200, self.told(name)
            case ("DELETE",):
                self.proxies.pop(name).__exit__(None, None, None)
                return 204, None
            case "GET", "toxics":
                return 200, [described(planted) for planted in proxy.planted.values()]
            case "POST", "toxics":
                return 200, described(plant(proxy, fields, fields.get("type", "")))
            case _, "toxics", toxic if toxic in proxy.planted:
                planted = proxy.planted[toxic]
                if method == "DELETE":
                    proxy.remove(toxic)
                    return 204, None
                if method in ("POST", "PATCH"):
                    was = described(planted)
                    attributes = was["attributes"] | fields.get("attributes", {})
                    planted = plant(proxy, was | fields | {"attributes": attributes, "name": toxic}, was["type"])
                return 200, described(planted)
        raise Refused(404, "toxic not found")

    def create(self, fields: Any) -> dict[str, Any]:
        """Put up a proxy."""
        name = fields.get("name", "")
        if not name or not fields.get("upstream"):
            raise Refused(400, "missing required field: name, upstream")
        if name in self.proxies:
            raise Refused(409, "proxy already exists")
        proxy = FaultProxy(place_of(fields["upstream"]), place_of(fields.get("listen") or "127.0.0.1:0"))
        proxy.__enter__()
        self.proxies[name] = proxy
        if not fields.get("enabled", True):
            proxy.down()
        return self.told(name)

    def proxy(self, name: str) -> FaultProxy:
        if name not in self.proxies:
            raise Refused(404, "proxy not found")
        return self.proxies[name]

    def told(self, name: str) -> dict[str, Any]:
        proxy = self.proxies[name]
        return {
            "name": name,
            "listen": spelt(proxy.place),
            "upstream": spelt(proxy.target),
            "enabled": proxy.listening,
            "toxics": [described(planted) for planted in proxy.planted.values()],
        }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Toxiproxy

    def _serve(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        try:
            fields = json.loads(self.rfile.read(length) or b"{}")
            with self.server.lock:
                status, body = self.server.answer(self.command, self.path, fields)
        except Refused as refused:
            status, body = refused.status, {"error": str(refused), "status": refused.status}
        except (ValueError, TypeError, AttributeError, OSError) as error:
            status, body = 400, {"error": str(error), "status": 400}
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PATCH = do_DELETE = _serve  # noqa: N815 - names of http.server's

    def log_message(self, *args: object) -> None:
        """Stay silent."""


def plant(proxy: FaultProxy, fields: Any, kind: str) -> Planted:
    """Add a toxic as its fields say. Raises `Refused`."""
    if kind not in TYPES:
        raise Refused(400, f"invalid toxic type: {kind!r}, expected one of {', '.join(TYPES)}")
    make, names = TYPES[kind]
    attributes = fields.get("attributes", {})
    toxic = make(*[attributes.get(name, 0) for name in names])
    direction = Direction(fields.get("stream") or Direction.DOWN)
    name = fields.get("name") or f"{kind}_{direction}"
    proxy.add(toxic, direction, name=name, toxicity=float(fields.get("toxicity", 1.0)))
    return proxy.planted[name]


def described(planted: Planted) -> dict[str, Any]:
    """Tell a toxic as Toxiproxy does."""
    kind, names = next((kind, names) for kind, (make, names) in TYPES.items() if make is type(planted.toxic))
    values = [getattr(planted.toxic, each) for each in type(planted.toxic).__slots__]
    return {
        "name": planted.name,
        "type": kind,
        "stream": planted.direction.value,
        "toxicity": planted.toxicity,
        "attributes": dict(zip(names, values, strict=True)),
    }


def place_of(text: str) -> Place:
    """Read `host:port`, or the path of a unix socket. Raises `Refused`."""
    if text.startswith("/"):
        return Path(text)
    match = re.fullmatch(r"\[?([^\[\]]*?)\]?:(\d+)", text)
    if match is None:
        raise Refused(400, f"got {text!r}, expected host:port or /path")
    return match[1] or "127.0.0.1", int(match[2])


def spelt(place: Place) -> str:
    return str(place) if isinstance(place, Path) else f"{place[0]}:{place[1]}"


@contextmanager
def toxiproxy(port: int = 0) -> Iterator[Toxiproxy]:
    """Run the server on a thread, and end every proxy with it."""
    server = Toxiproxy(port)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        for proxy in server.proxies.values():
            proxy.__exit__(None, None, None)


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve Toxiproxy's HTTP API over our own proxies.")
    parser.add_argument("--port", type=int, default=8474)
    options = parser.parse_args()
    with toxiproxy(options.port) as server:
        print(f"on {server.url}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
