"""Bad input of every kind over a real socket: the right status, OpenAI's shape, the parameter at fault, a record."""

import json
from collections.abc import AsyncIterator

import httpx
import pytest

from gateway.identity.keyring import ApiKey
from gateway.telemetry.record import Ending
from tests.gateway.conftest import Gateway, http_upstream, model, running
from tests.rig.upstream import Upstream

CHAT = "/v1/chat/completions"
GOOD = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=gateway.url, timeout=10) as client:
        yield client


def error_in(response: httpx.Response) -> dict[str, object]:
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    return body["error"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        (b"", 400, None, None),
        (b"{", 400, None, None),
        (b'{"a":' * 50_000, 400, None, None),
        (b'{"model":"m","messages":[],"n":NaN}', 400, None, None),
        (b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}', 400, None, None),
        (b'{"model":"m","model":"m","messages":[{"role":"user"}]}', 400, None, None),
        (b"[]", 400, None, None),
        (json.dumps({**GOOD, "temperature": "hot"}).encode(), 400, "temperature", "invalid_type"),
        (json.dumps({**GOOD, "temperature": 9}).encode(), 400, "temperature", "invalid_value"),
        (json.dumps({**GOOD, "messages": []}).encode(), 400, "messages", "invalid_value"),
        (json.dumps({"model": "m"}).encode(), 400, "messages", "missing_required_parameter"),
        (json.dumps({**GOOD, "model": "unheard-of"}).encode(), 404, "model", "model_not_found"),
    ],
)
async def test_a_bad_body_is_told(
    gateway: Gateway, client: httpx.AsyncClient, upstream: Upstream, body: bytes, status: int, param: str, code: str
) -> None:
    response = await client.post(CHAT, content=body, headers={"content-type": "application/json"})

    error = error_in(response)
    assert (response.status_code, error["type"]) == (status, "invalid_request_error")
    assert (error["param"], error["code"]) == (param, code)
    assert upstream.seen == []
    (record,) = gateway.records
    assert (record.status, record.ending, record.path) == (status, Ending.REFUSED, CHAT)
    assert record.id == response.headers["x-request-id"]


async def test_another_content_type_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.post(CHAT, data={"a": "b"})

    assert response.status_code == 415
    assert "application/x-www-form-urlencoded" in str(error_in(response)["message"])


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/chat/completions/", "/v1/chat", "/v2/models", "/v1/models/"])
async def test_an_unknown_route_is_not_found(client: httpx.AsyncClient, path: str) -> None:
    response = await client.post(path, json=GOOD)

    assert response.status_code == 404
    assert error_in(response)["code"] == "unknown_url"


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", CHAT, "POST"),
        ("PUT", "/v1/completions", "POST"),
        ("DELETE", "/v1/models/m", "GET, HEAD"),
        ("POST", "/health", "GET, HEAD"),
        ("OPTIONS", "/v1/models", "GET, HEAD"),
    ],
)
async def test_a_wrong_method_is_told_the_right_ones(
    client: httpx.AsyncClient, method: str, path: str, allow: str
) -> None:
    response = await client.request(method, path)

    assert response.status_code == 405
    assert response.headers["allow"] == allow
    assert error_in(response)["code"] == "method_not_supported"


async def test_too_large_a_body_is_refused(gateway: Gateway, client: httpx.AsyncClient) -> None:
    size = gateway.server.limits.body_bytes + 1
    response = await client.post(CHAT, content=b"x" * size, headers={"content-type": "application/json"})

    assert response.status_code == 413
    assert response.json()["error"]["type"] == "invalid_request_error"


async def test_an_answer_carries_the_callers_name_for_it_if_it_is_sane(client: httpx.AsyncClient) -> None:
    for brought, kept in (("my-request:1", True), ("x" * 129, False), ("a b", False), ("", False), ("é", False)):
        response = await client.get("/health", headers={"x-request-id": brought.encode("latin-1")})

        assert (response.headers["x-request-id"] == brought) is kept
        assert response.headers["x-request-id"]


async def test_probes_are_open_and_models_are_listed(gateway: Gateway, client: httpx.AsyncClient) -> None:
    assert (await client.get("/health")).json() == {"status": "ok"}
    assert (await client.get("/ready")).status_code == 200
    assert (await client.head("/health")).status_code == 200
    listed = (await client.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert listed["data"] == [{"id": "m", "object": "model", "created": 1_700_000_000, "owned_by": "tests"}]
    assert (await client.get("/v1/models/m")).json() == listed["data"][0]
    missing = await client.get("/v1/models/nope")
    assert (missing.status_code, error_in(missing)["code"]) == (404, "model_not_found")
    assert "penstock_requests_total" in (await client.get("/metrics")).text
    assert [record.path for record in gateway.records] == ["/v1/models", "/v1/models/m", "/v1/models/nope"]


async def test_tokens_need_a_tokenizer(client: httpx.AsyncClient) -> None:
    response = await client.post("/tokenize", json={"model": "m", "prompt": "hi"})

    assert response.status_code == 400
    assert error_in(response)["param"] == "model"


async def test_draining_makes_unready_and_refuses_new_calls(gateway: Gateway, client: httpx.AsyncClient) -> None:
    gateway.app.drain()

    assert (await client.get("/health")).status_code == 200
    assert (await client.get("/ready")).status_code == 503
    response = await client.post(CHAT, json=GOOD)
    assert (response.status_code, error_in(response)["code"]) == (503, "draining")
    assert response.headers["retry-after"] == "1"


async def test_strangers_see_nothing_but_probes(upstream: Upstream) -> None:
    served = model("m", http_upstream(upstream.url))
    async with (
        running(served, keys=[ApiKey("t", "the-key")]) as gateway,
        httpx.AsyncClient(base_url=gateway.url) as client,
    ):
        for method, path in (("POST", CHAT), ("POST", "/v1/completions"), ("GET", "/v1/models"), ("POST", "/tokenize")):
            response = await client.request(method, path, json={**GOOD, "prompt": "x"} if method == "POST" else None)
            assert (response.status_code, error_in(response)["code"]) == (401, "invalid_api_key")
            assert response.headers["www-authenticate"] == "Bearer"
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/v1/models", headers={"x-api-key": "the-key"})).status_code == 200
        response = await client.post(CHAT, json=GOOD, headers={"authorization": "Bearer the-key"})
        assert response.status_code == 200

    (seen,) = upstream.seen
    assert "the-key" not in str(seen.headers)
    assert gateway.records[-1].tenant == "t"
