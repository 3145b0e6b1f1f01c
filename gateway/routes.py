"""Which endpoint answers which path and method."""

from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass

from msgspec import Struct

from gateway.errors import MethodNotAllowed, NotFound
from gateway.http.message import HttpRequest, Responder


class Visit(Struct):
    """One HTTP exchange: what was asked, where the answer goes, its name, and when it came (`time.monotonic()`)."""

    request: HttpRequest
    responder: Responder
    id: str
    received: float
    sent_bytes: int = 0  # the endpoint, where the application records its answers


Endpoint = Callable[[Visit], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Route:
    """One path. A path that ends with a slash stands for everything below it; GET is answered to HEAD as well.

    `recorded` says that the application records a good answer. Calls record themselves; probes and scrapes are noise.
    """

    method: str
    path: str
    endpoint: Endpoint
    recorded: bool = False


class Routes:
    """Finds the route of a request."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._exact: dict[str, dict[str, Route]] = {}
        self._below: dict[str, dict[str, Route]] = {}
        for route in routes:
            table = self._below if route.path.endswith("/") else self._exact
            methods = table.setdefault(route.path, {})
            methods[route.method] = route
            if route.method == "GET":
                methods["HEAD"] = route

    def __iter__(self) -> Iterator[Route]:
        """Give every route once."""
        for table in (*self._exact.values(), *self._below.values()):
            yield from dict.fromkeys(table.values())

    def find(self, method: str, path: str) -> Route:
        """Give the route. Raises `NotFound` and `MethodNotAllowed`."""
        methods = self._exact.get(path)
        if methods is None:
            methods = next((table for base, table in self._below.items() if _is_below(path, base)), None)
        if methods is None:
            raise NotFound(f"Unknown request URL: {method} {path[:256]}.", code="unknown_url")
        route = methods.get(method)
        if route is None:
            allowed = ", ".join(sorted(methods))
            message = f"Not allowed to {method} on {path[:256]} (allowed: {allowed})."
            raise MethodNotAllowed(message, code="method_not_supported", headers={"allow": allowed})
        return route


def _is_below(path: str, base: str) -> bool:
    return path.startswith(base) and len(path) > len(base)
