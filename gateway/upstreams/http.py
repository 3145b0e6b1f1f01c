"""An OpenAI-compatible HTTP server as an upstream.

The caller's body goes out byte for byte, but for `model` where the server calls it otherwise, for `stream_options`
where usage is to be told, and for the answer's length where policy sets it. Of the caller's headers only those go along
that are meant for the far end of a trace; its key never does. The answer comes back as received, chunk by chunk.

Each attempt minds four clocks: to connect, to the first event, between events, and the whole. The client below counts
bytes; here events are counted, so that an upstream which trickles bytes, or only comments, is late all the same.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from time import monotonic, time  # the first is the loop's clock; asking the loop costs a system call up to 3.11
from types import MappingProxyType, TracebackType

from gateway.call import Call, Event, Operation, Reply, Request, Single
from gateway.deadline import out_of_time
from gateway.errors import BadRequest, GatewayError, UpstreamError, UpstreamFailure, UpstreamTimeout
from gateway.http import errors as transport
from gateway.http.client import Client, PreparedRequest
from gateway.http.response import Response, Timeouts
from gateway.upstreams.base import Room
from gateway.upstreams.event_stream import EventStream
from gateway.upstreams.splice import put_field, put_output_limit, rename_model
from gateway.upstreams.wire import error_of_status, malformed, peek_at
from policies.concurrency import ConcurrencyLimiter
from policies.outcome import Outcome
from policies.retry import told_wait_s

PATHS = {Operation.CHAT: b"/chat/completions", Operation.COMPLETION: b"/completions"}
FORWARDED = (b"traceparent", b"tracestate", b"baggage", b"openai-beta")
MAX_ANSWER_BYTES = 64 << 20
MAX_ERROR_BYTES = 1 << 20
SETTLE_S = 0.1  # how long the connection of a stream that has ended may take to be at its own end
EVENT_STREAM = b"text/event-stream"
SHOULD_RETRY: Mapping[str, bool] = MappingProxyType({"true": True, "false": False})


@dataclass(frozen=True, slots=True)
class Clocks:
    """The clocks of one attempt, in seconds."""

    connect_s: float = 5.0
    first_chunk_s: float = 120.0
    between_s: float = 60.0
    total_s: float = 600.0


class HttpUpstream:
    """Sends to one server. `path` is its base URL's, such as `/v1`; `limiter` holds it to so many at a time.

    Without one every request is sent at once.
    """

    takes_ids = False

    def __init__(
        self,
        name: str,
        client: Client,
        path: str,
        *,
        key: str | None = None,
        clocks: Clocks | None = None,
        limiter: ConcurrencyLimiter | None = None,
        ask_usage: bool = False,
    ) -> None:
        self.name = name
        self.limiter = limiter
        self.in_flight = 0
        self._client = client
        self._clocks = clocks or Clocks()
        self._ask_usage = ask_usage
        headers = [(b"content-type", b"application/json"), (b"user-agent", b"penstock")]
        if key is not None:
            headers.append((b"authorization", b"Bearer " + key.encode("ascii")))
        base = path.rstrip("/").encode("ascii")
        self._requests: dict[tuple[Operation, bool], PreparedRequest] = {
            (operation, stream): client.prepare(
                b"POST", base + below, [*headers, (b"accept", EVENT_STREAM if stream else b"application/json")]
            )
            for operation, below in PATHS.items()
            for stream in (False, True)
        }
        clock = self._clocks
        self._streamed = Timeouts(clock.connect_s, clock.first_chunk_s, clock.between_s)
        self._whole = Timeouts(clock.connect_s, clock.total_s, clock.between_s)

    def refuses(self, request: Request) -> BadRequest | None:
        """Nothing: the server judges for itself."""
        return None

    def lease(self) -> "Slot":
        """Give a slot, occupied once it is entered."""
        return Slot(self)

    def fits(self, call: Call) -> bool:
        """Whether the limit lets one more go."""
        return self.limiter is None or self.limiter.free > 0

    def room(self) -> Room:
        """Tell how many slots are left."""
        return Room(None if self.limiter is None else self.limiter.free, self.in_flight)

    async def send(self, call: Call) -> Reply:
        """Send the call's body; give the answer at its head. Raises `UpstreamError` or `DeadlineExceeded`."""
        request = call.request
        total = monotonic() + self._clocks.total_s
        deadline = min(total, call.deadline)
        try:
            response = await self._client.send(
                self._requests[request.operation, request.stream],
                self._body(call),
                headers=_headers(call),
                timeouts=self._streamed if request.stream else self._whole,
                deadline=deadline,
            )
            if response.status != 200:
                raise await self._refused(response)
            if not request.stream:
                body = response.all_here(MAX_ANSWER_BYTES)
                if body is None:
                    body = await self._read(response)
                usage = peek_at(body).usage
                return Reply(200, {}, Single(Event(body, usage=None if usage is None else usage.to_usage())), raw=True)
        except transport.TransportError as error:
            raise translate(error, call if deadline < total else None) from error
        return Reply(200, {}, self._stream(call, response, deadline < total), raw=True)

    async def aclose(self) -> None:
        """Close every connection; running attempts fail."""
        await self._client.aclose()

    def _body(self, call: Call) -> bytes:
        body, request = call.body, call.request
        theirs = call.model.upstream_model or call.model.name
        if request.model != theirs:
            body = rename_model(body, theirs)
        if self._hides_usage(request):
            body = put_field(body, "stream_options", {"include_usage": True})
        if call.tokens.imposed and call.tokens.output is not None:
            body = put_output_limit(body, call.tokens.output, chat=request.operation is Operation.CHAT)
        return body

    def _hides_usage(self, request: Request) -> bool:
        return self._ask_usage and request.stream and not request.include_usage

    async def _refused(self, response: Response) -> UpstreamError:
        """Read the body of an answer that is an error, or should not have come."""
        status = response.status
        if not 400 <= status <= 599:
            response.close()
            message = f"The upstream answered with status {status}."
            return UpstreamError(message, kind=UpstreamFailure.PROTOCOL, answered=status)
        try:
            body = await response.read(MAX_ERROR_BYTES)
        except transport.ResponseTooLarge:
            body = b""
        finally:
            response.close()
        return error_of_status(
            status,
            body,
            retry_after_s=told_wait_s(_text(response, b"retry-after"), _text(response, b"retry-after-ms"), time()),
            should_retry=SHOULD_RETRY.get(_text(response, b"x-should-retry") or ""),
        )

    async def _read(self, response: Response) -> bytes:
        """Gather a whole answer."""
        try:
            return await response.read(MAX_ANSWER_BYTES)
        finally:
            response.close()

    async def _stream(self, call: Call, response: Response, by_caller: bool) -> AsyncGenerator[Event, None]:
        """Give the events as they come, in chunks as they came."""
        events = EventStream(hide_usage=self._hides_usage(call.request))
        try:
            await self._expect_stream(response)
            now = monotonic
            waiting_since: float | None = now()  # since when no event has come although bytes have
            async for chunk in response:
                event = events.feed(chunk)
                if event is not None:
                    yield event
                    waiting_since = now() if events.holding else None
                elif waiting_since is None:
                    waiting_since = now()
                elif events.begun and now() - waiting_since > self._clocks.between_s:
                    raise _late(UpstreamFailure.BETWEEN_TIMEOUT)
                elif not events.begun and now() - waiting_since > self._clocks.first_chunk_s:
                    raise _late(UpstreamFailure.FIRST_CHUNK_TIMEOUT)
                if events.error is not None:
                    raise events.error
                if events.done:
                    await _settle(response)
                    return
            event = events.finish()
            if event is not None:
                yield event
            if events.error is not None:
                raise events.error
            if not events.done:
                message = "The upstream ended its answer before the answer was over."
                raise UpstreamError(message, kind=UpstreamFailure.UNFINISHED)
        except transport.TransportError as error:
            raise translate(error, call if by_caller else None) from error
        finally:
            response.close()

    async def _expect_stream(self, response: Response) -> None:
        """Raise what came instead of an event stream."""
        coding = response.header(b"content-encoding")
        if coding is not None and coding.strip().lower() != b"identity":
            raise malformed("it is compressed, which nobody asked for")
        kind = response.header(b"content-type") or b""
        if kind.partition(b";")[0].strip().lower() == EVENT_STREAM:
            return
        peek_at(await response.read(MAX_ERROR_BYTES))  # raises the error that it holds, or that it holds no JSON
        raise malformed("it is no event stream")


class Slot:
    """One of an upstream's slots, occupied."""

    __slots__ = ("_upstream",)

    def __init__(self, upstream: HttpUpstream) -> None:
        self._upstream = upstream

    def sample(
        self, now: float, started: float, outcome: Outcome, prompt_tokens: int, first_event_s: float | None
    ) -> None:
        """Let the limit learn, if there is one."""
        limiter = self._upstream.limiter
        if limiter is not None:
            limiter.sample(now, started, outcome, prompt_tokens, first_event_s)

    def __enter__(self) -> None:
        upstream = self._upstream
        if upstream.limiter is not None:
            acquired = upstream.limiter.acquire()
            assert acquired, "whoever leases has seen that there is a slot"
        upstream.in_flight += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        upstream = self._upstream
        upstream.in_flight -= 1
        if upstream.limiter is not None:
            upstream.limiter.release()


def _headers(call: Call) -> list[tuple[bytes, bytes]]:
    headers = [(b"x-request-id", call.id.encode("ascii"))]
    for name in FORWARDED:
        value = call.headers.get(name)
        if value is not None:
            headers.append((name, value))
    return headers


def _text(response: Response, name: bytes) -> str | None:
    value = response.header(name)
    return None if value is None else value.decode("latin-1").strip()


async def _settle(response: Response) -> None:
    """Let a stream that has said its last word end on the wire too, so that its connection can be kept."""
    if response.ended:
        return
    try:
        async with asyncio.timeout(SETTLE_S):
            async for _ in response:
                pass
    except (TimeoutError, transport.TransportError):
        response.close()


WORDS = {
    UpstreamFailure.CONNECT: "The upstream cannot be reached.",
    UpstreamFailure.CONNECT_TIMEOUT: "The upstream did not accept a connection in time.",
    UpstreamFailure.FIRST_CHUNK_TIMEOUT: "The upstream did not begin its answer in time.",
    UpstreamFailure.BETWEEN_TIMEOUT: "The upstream's answer stopped coming.",
    UpstreamFailure.TOTAL_TIMEOUT: "The upstream did not finish its answer in time.",
    UpstreamFailure.RESET: "The upstream closed the connection before its answer was whole.",
    UpstreamFailure.PROTOCOL: "The upstream's answer is malformed.",
}
KINDS: dict[type[transport.TransportError], UpstreamFailure] = {
    transport.ConnectFailed: UpstreamFailure.CONNECT,
    transport.ConnectTimeout: UpstreamFailure.CONNECT_TIMEOUT,
    transport.PoolTimeout: UpstreamFailure.CONNECT_TIMEOUT,
    transport.FirstChunkTimeout: UpstreamFailure.FIRST_CHUNK_TIMEOUT,
    transport.BetweenTimeout: UpstreamFailure.BETWEEN_TIMEOUT,
    transport.DeadlinePassed: UpstreamFailure.TOTAL_TIMEOUT,
    transport.ConnectionReset: UpstreamFailure.RESET,
    transport.BadResponse: UpstreamFailure.PROTOCOL,
    transport.ResponseTooLarge: UpstreamFailure.PROTOCOL,
}
LATE = frozenset(kind for kind in UpstreamFailure if kind.value.endswith("timeout"))


def translate(error: transport.TransportError, sooner: Call | None) -> GatewayError:
    """Turn what the client met into what the caller is told; addresses stay inside.

    `sooner` is the call, where its own deadline comes before the attempt's.
    """
    if sooner is not None and isinstance(error, transport.DeadlinePassed):
        return out_of_time(sooner)
    kind = KINDS[type(error)]
    failed = UpstreamTimeout if kind in LATE else UpstreamError
    return failed(WORDS[kind], kind=kind, sent=error.sent)


def _late(kind: UpstreamFailure) -> UpstreamTimeout:
    return UpstreamTimeout(WORDS[kind], kind=kind)
