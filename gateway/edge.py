"""The edge: one request in a dialect becomes a call, runs through the pipeline, and is answered.

Here stands the only place where a stream is written, and the promise that goes with it: a stream ends with its terminal
event, or with one error event, never silently. An error before the first byte is a status and a body.

The call's scope is unwound before an error is told, so that whatever the call held is free again by then.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import aclosing

from gateway.call import Call, Handler, Reply, Single
from gateway.deadline import HEADER, Clock, remaining_s
from gateway.errors import GatewayError
from gateway.http.message import Responder
from gateway.protocols.dialect import Dialect
from gateway.protocols.fields import require_json
from gateway.routes import Visit
from gateway.scope import Scope

# Proxies in front of us must not gather a stream's events.
STREAM_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)
JSON = (b"content-type", b"application/json")


class CallEndpoint:
    """Takes one operation's requests through the pipeline."""

    def __init__(
        self, dialect: Dialect, handler: Handler, deadline_s: float, *, now: Callable[[], float] = time.time
    ) -> None:
        self._dialect = dialect
        self._handler = handler
        self._deadline_s = deadline_s
        self._now = now

    async def __call__(self, visit: Visit) -> None:
        """Answer. Raises `GatewayError` for what cannot even become a call."""
        request = visit.request
        require_json(request.headers.get(b"content-type"))
        asked = self._dialect.decode(request.body)
        deadline, clock = visit.received + self._deadline_s, Clock.GATEWAY
        wished = request.headers.get(HEADER)
        if wished is not None and (left_s := remaining_s(wished, self._now())) < self._deadline_s:
            deadline, clock = visit.received + left_s, Clock.CALLER
        try:
            async with Scope() as scope:
                call = Call(
                    visit.id,
                    request.path,
                    visit.received,
                    request.body,
                    request.headers,
                    asked,
                    deadline,
                    scope,
                    clock,
                )
                reply = await self._handler(call)
                if reply.raw and not asked.stream and type(reply.events) is Single:
                    event = reply.events.take()
                    self._respond(call, reply, (event and event.raw) or b"", visit.responder)
                    return
                async with aclosing(reply.events):
                    if asked.stream:
                        await self._stream(call, reply, visit.responder)
                    else:
                        await self._whole(call, reply, visit.responder)
        except GatewayError as error:
            self._fail(visit, error)

    async def _whole(self, call: Call, reply: Reply, responder: Responder) -> None:
        if reply.raw:
            body = b""
            async for event in reply.events:
                body += event.raw or b""
        else:
            encoder = self._dialect.whole(call, int(self._now()))
            async for event in reply.events:
                encoder.add(event)
            body = encoder.body()
        self._respond(call, reply, body, responder)

    def _respond(self, call: Call, reply: Reply, body: bytes, responder: Responder) -> None:
        call.sent_bytes = len(body)
        call.told = True
        responder.respond(reply.status, answer_headers((JSON,), call.id, reply.headers), body)

    async def _stream(self, call: Call, reply: Reply, responder: Responder) -> None:
        responder.start(reply.status, answer_headers(STREAM_HEADERS, call.id, reply.headers))
        write = responder.write
        if reply.raw:
            last, ending = b"", None
            async for event in reply.events:
                if event.raw:
                    last = event.raw
                    call.sent_bytes += len(last)
                    write(last)
                    if event.last:  # the rest is between us and the upstream
                        self._finish(call, responder)
                    elif responder.congested:
                        await responder.drain()
                elif event.finish is not None:  # one of ours, in the upstream's place
                    ending = ending or self._dialect.resume(call, last)
                    data = ending.encode(event)
                    call.sent_bytes += len(data)
                    write(data)
            if ending is not None:
                data = ending.end()
                call.sent_bytes += len(data)
                write(data)
        else:
            encoder = self._dialect.stream(call, int(self._now()))
            async for event in reply.events:
                data = encoder.encode(event)
                if data:
                    call.sent_bytes += len(data)
                    write(data)
                    if responder.congested:
                        await responder.drain()
            data = encoder.end()
            call.sent_bytes += len(data)
            write(data)
        self._finish(call, responder)

    def _finish(self, call: Call, responder: Responder) -> None:
        if not call.told:
            call.told = True
            responder.finish()

    def _fail(self, visit: Visit, error: GatewayError) -> None:
        responder = visit.responder
        if responder.started:
            responder.write(self._dialect.error_event(error))
            responder.finish()
        else:
            headers = answer_headers((JSON,), visit.id, error.headers)
            responder.respond(error.status, headers, self._dialect.error_body(error))


def answer_headers(
    fixed: tuple[tuple[bytes, bytes], ...], request_id: str, further: Mapping[str, str]
) -> list[tuple[bytes, bytes]]:
    """Give an answer's headers: the request's name stands in every answer."""
    headers = [*fixed, (b"x-request-id", request_id.encode("ascii"))]
    if further:
        headers += [(name.encode("ascii"), value.encode("latin-1")) for name, value in further.items()]
    return headers
