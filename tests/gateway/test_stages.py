"""Each stage alone: what it refuses, what it writes, what it leaves behind."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import pytest

from gateway.call import (
    Call,
    ChatPrompt,
    Event,
    Operation,
    Reply,
    Request,
    compose,
)
from gateway.errors import (
    BadRequest,
    DeadlineExceeded,
    GatewayError,
    ModelNotFound,
    Overloaded,
    Unauthenticated,
    UpstreamError,
    UpstreamFailure,
)
from gateway.generation import Generation
from gateway.identity.identity import ANYBODY, Identity
from gateway.identity.keyring import ApiKey, Keyring, tenant_named
from gateway.scope import Scope
from gateway.stages.authenticate import Authenticate
from gateway.stages.choose import Choose
from gateway.stages.generate import Generate
from gateway.stages.record import Record
from gateway.stages.resolve import Resolve
from gateway.telemetry.record import Ending, RequestRecord
from policies.tenant import UNLIMITED, Tenant
from tests.gateway.conftest import model
from tests.rig.in_process import InProcess

CHAT = ChatPrompt([{"role": "user", "content": "hi"}])


def call(headers: dict[bytes, bytes] | None = None, body: bytes = b"{}", **fields: object) -> Call:
    request = Request(Operation.CHAT, "m", CHAT, **fields)  # type: ignore[arg-type]
    asked = Call("id", "/v1/chat/completions", 0.0, body, headers or {}, request, 1e9, Scope())
    asked.terms = UNLIMITED
    return asked


async def empty() -> AsyncGenerator[Event, None]:
    return
    yield


async def answer(call: Call) -> Reply:
    return Reply(200, {}, empty())


async def test_the_first_listed_stage_sees_the_call_first() -> None:
    seen: list[str] = []

    @dataclass
    class Named:
        name: str

        async def __call__(self, call: Call, inner: object) -> Reply:
            seen.append(self.name)
            return await inner(call)  # type: ignore[operator,no-any-return]

    await compose([Named("a"), Named("b"), Named("c")], answer)(call())

    assert seen == ["a", "b", "c"]


# Authenticate


@pytest.mark.parametrize(
    "headers",
    [
        {b"authorization": b"Bearer key-of-a"},
        {b"authorization": b"bearer  key-of-a "},
        {b"x-api-key": b"key-of-a"},
    ],
)
async def test_a_key_names_its_tenant(headers: dict[bytes, bytes]) -> None:
    asked = call(headers)

    await Authenticate(Identity(Keyring([ApiKey("a", "key-of-a"), ApiKey("b", "key-of-b")])))(asked, answer)

    assert asked.tenant == tenant_named("a")
    assert asked.tenant.salt != tenant_named("b").salt


async def test_a_missing_and_a_wrong_key_are_told_in_the_same_words() -> None:
    stage = Authenticate(Identity(Keyring([ApiKey("a", "key-of-a")])))
    told = set()
    for headers in (
        {},
        {b"authorization": b"Bearer wrong"},
        {b"authorization": b"Bearer "},
        {b"authorization": b"Basic key-of-a"},
        {b"authorization": b"key-of-a"},
        {b"x-api-key": b"key-of-A"},
        {b"x-api-key": b"k" * 10_000},
        {b"authorization": b"Bearer wrong", b"x-api-key": b"key-of-a"},
        {b"x-api-key": b"\xff"},
    ):
        with pytest.raises(Unauthenticated) as caught:
            await stage(call(headers), answer)
        told.add((caught.value.message, caught.value.code, tuple(caught.value.headers.items())))

    assert told == {("Incorrect API key provided.", "invalid_api_key", (("www-authenticate", "Bearer"),))}


async def test_without_keys_everybody_is_the_same_tenant() -> None:
    asked = call({b"authorization": b"Bearer anything"})

    await Authenticate(Identity(Keyring([])))(asked, answer)

    assert asked.tenant is ANYBODY


def test_a_keyring_holds_no_key_and_a_key_shows_none() -> None:
    key = ApiKey("a", "very-secret")

    assert "very-secret" not in repr(key)
    assert "very-secret" not in repr(vars(Keyring([key])))


def test_two_tenants_cannot_have_the_same_key() -> None:
    with pytest.raises(ValueError, match="same key"):
        Keyring([ApiKey("a", "k"), ApiKey("b", "k")])


# Resolve


async def test_a_name_leads_to_its_model() -> None:
    served = model("served")
    asked = call()
    asked.tenant = Tenant("somebody")

    await Resolve({"m": served})(asked, answer)

    assert asked.model is served


async def test_an_unknown_name_is_not_found() -> None:
    asked = call()
    asked.tenant = Tenant("somebody")

    with pytest.raises(ModelNotFound) as caught:
        await Resolve({"other": model("other")})(asked, answer)

    assert (caught.value.status, caught.value.param, caught.value.code) == (404, "model", "model_not_found")


# Generate


class Leaving:
    """A context that writes down when it is left."""

    def __init__(self, order: list[str], name: str) -> None:
        self.order = order
        self.name = name

    async def __aexit__(self, *_: object) -> None:
        self.order.append(self.name)


async def test_a_generations_scope_ends_with_the_calls() -> None:
    asked, order = call(), list[str]()
    asked.scope.push(Leaving(order, "call"))

    await Generate()(asked, answer)
    asked.generation.scope.push(Leaving(order, "generation"))
    async with asked.scope:
        assert isinstance(asked.generation, Generation)
        assert order == []

    assert order == ["generation", "call"]


# Choose


async def test_the_order_of_upstreams_is_the_models() -> None:
    first, second = InProcess(), InProcess()
    asked = call()
    asked.model = model("m", first, second)

    await Choose()(asked, answer)

    assert asked.route == (first, second)


async def test_an_upstream_that_cannot_is_left_out() -> None:
    cannot, can = InProcess(refusal=BadRequest("no")), InProcess()
    asked = call()
    asked.model = model("m", cannot, can)

    await Choose()(asked, answer)

    assert asked.route == (can,)


async def test_what_no_upstream_can_is_refused_with_the_first_ones_reason() -> None:
    asked = call()
    asked.model = model("m", InProcess(refusal=BadRequest("no grammar")), InProcess(refusal=BadRequest("no suffix")))

    with pytest.raises(BadRequest, match="no grammar"):
        await Choose()(asked, answer)


# Record


@dataclass
class Gauge:
    in_flight: int = 0


async def recorded(asked: Call, error: BaseException | None = None) -> RequestRecord:
    gauge, records = Gauge(), list[RequestRecord]()
    try:
        async with asked.scope:
            await Record(gauge, [records.append], clock=lambda: 2.5)(asked, answer)
            assert gauge.in_flight == 1
            assert records == []
            if error is not None:
                raise error
    except (GatewayError, asyncio.CancelledError, RuntimeError):
        pass
    assert gauge.in_flight == 0
    (record,) = records
    return record


async def test_a_good_answer_is_recorded_when_everything_is_given_back() -> None:
    asked = call(stream=True, body=b"12345")
    asked.tenant, asked.model = Tenant("t"), model("served")

    record = await recorded(asked)

    assert (record.id, record.path, record.status, record.ending) == ("id", "/v1/chat/completions", 200, Ending.OK)
    assert (record.tenant, record.model, record.asked_model, record.operation) == ("t", "served", "m", Operation.CHAT)
    assert (record.stream, record.bytes_in, record.duration_s) == (True, 5, 2.5)


@pytest.mark.parametrize(
    ("error", "ending", "label"),
    [
        (UpstreamError("x", kind=UpstreamFailure.RESET), Ending.REFUSED, "upstream"),
        (asyncio.CancelledError(), Ending.LEFT, "client_closed"),
        (RuntimeError("a defect"), Ending.REFUSED, "internal"),
    ],
)
async def test_an_answer_that_broke_off_keeps_the_status_that_went_out(
    error: BaseException, ending: Ending, label: str
) -> None:
    record = await recorded(call(stream=True), error)

    assert (record.status, record.ending, record.error) == (200, ending, label)


@pytest.mark.parametrize(("error", "status"), [(DeadlineExceeded("x"), 504), (asyncio.CancelledError(), 499)])
async def test_a_whole_answer_that_failed_while_it_was_gathered_was_never_a_success(
    error: BaseException, status: int
) -> None:
    assert (await recorded(call(), error)).status == status

    sent = call()
    sent.told = True
    record = await recorded(sent, asyncio.CancelledError())
    assert (record.status, record.ending) == (200, Ending.OK)


async def test_refusals_have_their_own_status_and_those_who_left_have_499() -> None:
    for error, status in (
        (BadRequest("x"), 400),
        (Overloaded("x"), 503),
        (asyncio.CancelledError(), 499),
        (RuntimeError(), 500),
    ):
        records = list[RequestRecord]()

        async def refuse(call: Call, error: BaseException = error) -> Reply:
            raise error

        asked = call()
        with pytest.raises(type(error)):
            async with asked.scope:
                await Record(Gauge(), [records.append])(asked, refuse)

        assert [record.status for record in records] == [status]
        assert records[0].model is None
