"""Every route that serves anything of a tenant's asks who calls: tried on the routes that there are, not on a list."""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import httpx
import pytest

from gateway.identity.keyring import ApiKey
from gateway.routes import Route
from tests.gateway.conftest import Gateway, model, running
from tests.rig.in_process import InProcess

# What strangers may see: probes and metrics, for the machinery around the gateway. Nothing else, and this is the table.
OPEN = frozenset({"/health", "/ready", "/metrics"})

# A good request of each route, so that the one thing wrong with it is who asks. A new route has to stand here.
MESSAGES = [{"role": "user", "content": "hi"}]
GOOD: Mapping[tuple[str, str], dict[str, Any] | None] = MappingProxyType(
    {
        ("POST", "/v1/chat/completions"): {"model": "m", "messages": MESSAGES},
        ("POST", "/v1/completions"): {"model": "m", "prompt": "hi"},
        ("POST", "/v1/explain"): {"model": "m", "messages": MESSAGES},
        ("GET", "/v1/models"): None,
        ("GET", "/v1/models/"): None,
        ("GET", "/v1/requests"): None,
        ("POST", "/v1/requests/"): None,
        ("POST", "/tokenize"): {"model": "m", "prompt": "hi"},
        ("POST", "/detokenize"): {"model": "m", "tokens": [1]},
    }
)
KEY = "the-one-key"
STRANGERS: tuple[dict[str, str], ...] = (
    {},
    {"authorization": "Bearer wrong"},
    {"authorization": f"Basic {KEY}"},
    {"x-api-key": "wrong"},
    {"x-user": "t", "x-tenant": "t"},
    {"cookie": f"key={KEY}"},
)


async def ask(client: httpx.AsyncClient, route: Route, method: str, headers: Mapping[str, str]) -> httpx.Response:
    path = route.path + "m" if route.path.endswith("/") else route.path
    body = None if route.path in OPEN else GOOD[route.method, route.path]
    content = None if body is None else json.dumps(body).encode()
    return await client.request(method, path, content=content, headers={"content-type": "application/json", **headers})


def routes_of(gateway: Gateway) -> list[tuple[Route, str]]:
    """Every route, with every method that it is answered to."""
    routes = [(route, route.method) for route in gateway.app.routes]
    return routes + [(route, "HEAD") for route, method in routes if method == "GET"]


@pytest.mark.parametrize("headers", STRANGERS, ids=lambda headers: "+".join(headers) or "nothing")
async def test_strangers_come_in_nowhere_but_where_the_table_says(headers: dict[str, str]) -> None:
    upstream = InProcess()
    async with (
        running(model("m", upstream), keys=[ApiKey("t", KEY)]) as gateway,
        httpx.AsyncClient(base_url=gateway.url) as client,
    ):
        asked = routes_of(gateway)
        answers = {(route.path, method): await ask(client, route, method, headers) for route, method in asked}

    statuses = {place: answer.status_code for place, answer in answers.items()}
    assert statuses == {(path, method): 200 if path in OPEN else 401 for path, method in statuses}
    assert {path for path, _ in statuses} >= OPEN
    assert upstream.calls == []


async def test_who_has_a_key_comes_in_everywhere() -> None:
    """Else the test above would see refusals that have another reason."""
    async with (
        running(model("m", InProcess()), keys=[ApiKey("t", KEY)]) as gateway,
        httpx.AsyncClient(base_url=gateway.url) as client,
    ):
        for route, method in routes_of(gateway):
            answer = await ask(client, route, method, {"authorization": f"Bearer {KEY}"})
            no_tokenizer = route.path in ("/tokenize", "/detokenize") and answer.status_code == 400
            not_there = route.path == "/v1/requests/" and answer.status_code == 404
            assert answer.status_code == 200 or no_tokenizer or not_there, route
