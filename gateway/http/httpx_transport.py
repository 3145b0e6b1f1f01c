"""httpx over our own client: for everything off the hot path, where httpx's comfort is worth its price.

Health probes, key sets and tests thus use the same connections, clocks and TLS as dispatch does. Request bodies are
collected before they are sent; answers stream.
"""

import asyncio
from collections.abc import AsyncIterator
from types import MappingProxyType

import httpx

from gateway.http.client import Client
from gateway.http.errors import (
    BadResponse,
    BetweenTimeout,
    ConnectFailed,
    ConnectionReset,
    ConnectTimeout,
    DeadlinePassed,
    FirstChunkTimeout,
    PoolTimeout,
    ResponseTooLarge,
    TransportError,
)
from gateway.http.origin import Origin
from gateway.http.pool import PoolLimits
from gateway.http.response import Response, Timeouts

AS_HTTPX = MappingProxyType[type[TransportError], type[httpx.TransportError]](
    {
        TransportError: httpx.TransportError,
        ConnectFailed: httpx.ConnectError,
        ConnectTimeout: httpx.ConnectTimeout,
        PoolTimeout: httpx.PoolTimeout,
        FirstChunkTimeout: httpx.ReadTimeout,
        BetweenTimeout: httpx.ReadTimeout,
        DeadlinePassed: httpx.ReadTimeout,
        ConnectionReset: httpx.ReadError,
        BadResponse: httpx.RemoteProtocolError,
        ResponseTooLarge: httpx.RemoteProtocolError,
    }
)
OURS = frozenset((b"connection", b"content-length", b"transfer-encoding"))
SAFE = frozenset(("GET", "HEAD", "OPTIONS"))
DAY_S = 86_400.0  # httpx's "no timeout": a clock all the same


class Body(httpx.AsyncByteStream):
    """An answer's body as httpx reads it."""

    def __init__(self, response: Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Give pieces as they come, and our errors as httpx's."""
        try:
            async for chunk in self._response:
                yield chunk
        except TransportError as error:
            raise AS_HTTPX[type(error)](str(error)) from error

    async def aclose(self) -> None:
        """Close the answer."""
        self._response.close()


class ClientTransport(httpx.AsyncBaseTransport):
    """A transport for `httpx.AsyncClient` with one of our clients per origin. What is safe to repeat is repeated."""

    def __init__(self, limits: PoolLimits | None = None) -> None:
        self._limits = limits or PoolLimits()
        self._clients: dict[Origin, Client] = {}

    def mount(self, client: Client) -> None:
        """Use this client, with its TLS context or unix socket, for its origin."""
        origin = client.origin
        self._clients[Origin(origin.scheme, origin.host, origin.port)] = client

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request. Raises httpx's errors."""
        if request.url.scheme not in ("http", "https"):
            raise httpx.UnsupportedProtocol(f"expected an http or https URL, got {request.url}")
        origin = Origin.parse(f"{request.url.scheme}://{request.url.netloc.decode('ascii')}")
        client = self._clients.get(origin)
        if client is None:
            client = self._clients[origin] = Client(origin, self._limits)
        body = await request.aread()
        headers = [(name, value) for name, value in request.headers.raw if name.lower() not in OURS]
        clocks = request.extensions.get("timeout", {})
        timeouts = Timeouts(
            connect_s=clocks.get("connect") or clocks.get("pool") or DAY_S,
            first_chunk_s=clocks.get("read") or DAY_S,
            between_s=clocks.get("read") or DAY_S,
        )
        try:
            response = await client.request(
                request.method.encode("ascii"),
                request.url.raw_path,
                headers,
                body,
                timeouts=timeouts,
                deadline=asyncio.get_running_loop().time() + DAY_S,
                idempotent=request.method in SAFE,
            )
        except TransportError as error:
            raise AS_HTTPX[type(error)](str(error)) from error
        except ValueError as error:
            raise httpx.LocalProtocolError(str(error)) from error
        return httpx.Response(response.status, headers=response.headers, stream=Body(response))

    async def aclose(self) -> None:
        """Close every client."""
        for client in self._clients.values():
            await client.aclose()
