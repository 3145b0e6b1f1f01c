"""The endpoints that run no generation: models, tokens, probes, metrics.

Models and tokens want a key where keys are configured, and show a tenant only what its policy allows it: to ask for the
tokens of another model is answered 403 as a call to it would be, to look one up 404 as if it did not exist. Probes and
metrics are for the machinery around the gateway, which has no key; they tell nothing of tenants.
"""

from collections.abc import Callable, Mapping

import msgspec

from gateway.call import Json, Model, PromptEncoder
from gateway.edge import JSON, answer_headers
from gateway.errors import BadRequest
from gateway.identity.identity import Identity
from gateway.protocols.fields import require_json
from gateway.protocols.tokens import DetokenizeAnswer, TokenizeAnswer, decode_detokenize, decode_tokenize
from gateway.routes import Visit
from gateway.stages.resolve import find_model, usable_model
from policies.tenant import Tenant

MODELS_PATH = "/v1/models"

_json = msgspec.json.Encoder().encode


class Models:
    """GET /v1/models and /v1/models/{name}."""

    def __init__(self, models: Mapping[str, Model], identity: Identity) -> None:
        self._models = models
        self._identity = identity

    async def __call__(self, visit: Visit) -> None:
        """Answer. Raises `Unauthenticated` and `ModelNotFound`."""
        tenant = await self._identity.tenant(visit.request.headers)
        name = visit.request.path.removeprefix(MODELS_PATH).removeprefix("/")
        shown = {alias: model for alias, model in self._models.items() if tenant.terms(model.name).allowed}
        if name:
            told = model_json(name, find_model(shown, name))
        else:
            told = {"object": "list", "data": [model_json(*item) for item in shown.items()]}
        respond_json(visit, 200, _json(told))


class Tokens:
    """POST /tokenize and /detokenize."""

    def __init__(self, models: Mapping[str, Model], identity: Identity) -> None:
        self._models = models
        self._identity = identity

    async def tokenize(self, visit: Visit) -> None:
        """Give a text's ids, or a chat's. Raises `GatewayError`."""
        tenant = await self._identity.tenant(visit.request.headers)
        asked = decode_tokenize(body_of(visit))
        encoder = self._encoder(asked.model, tenant)
        context = encoder.max_context or find_model(self._models, asked.model).max_context
        if asked.prompt is None:
            (ids,) = await encoder.encode(asked.chat(), tenant.salt)
        else:
            ids = await encoder.encode_text(asked.prompt, tenant.salt, special=asked.add_special_tokens)
        spelt = [encoder.token_text(each) for each in ids] if asked.return_token_strs else None
        respond_json(visit, 200, _json(TokenizeAnswer(len(ids), context, ids, spelt)))

    async def detokenize(self, visit: Visit) -> None:
        """Give ids' text. Raises `GatewayError`."""
        tenant = await self._identity.tenant(visit.request.headers)
        asked = decode_detokenize(body_of(visit))
        text = self._encoder(asked.model, tenant).detokenize(asked.tokens)
        respond_json(visit, 200, _json(DetokenizeAnswer(text)))

    def _encoder(self, name: str, tenant: Tenant) -> PromptEncoder:
        model, _ = usable_model(self._models, name, tenant)
        if model.encoder is None:
            raise BadRequest(f"The gateway has no tokenizer for the model `{model.name}`.", param="model")
        return model.encoder


class Probe:
    """GET /health (the process answers) and /ready (it takes new requests)."""

    def __init__(self, reason: Callable[[], str | None]) -> None:
        self._reason = reason

    async def __call__(self, visit: Visit) -> None:
        """Answer 200 where nothing stands in the way, and 503 with what does."""
        reason = self._reason()
        if reason is None:
            respond_json(visit, 200, b'{"status":"ok"}')
        else:
            respond_json(visit, 503, _json({"status": "unavailable", "reason": reason}))


class Exposition:
    """GET /metrics."""

    def __init__(self, read: Callable[[], bytes], content_type: bytes) -> None:
        self._read = read
        self._content_type = content_type

    async def __call__(self, visit: Visit) -> None:
        """Answer with what the registry gives."""
        headers = answer_headers(((b"content-type", self._content_type),), visit.id, {})
        visit.responder.respond(200, headers, self._read())


def model_json(name: str, model: Model) -> dict[str, Json]:
    """Tell a model in OpenAI's words, and its context in vLLM's."""
    told: dict[str, Json] = {"id": name, "object": "model", "created": model.created, "owned_by": model.owned_by}
    context = model.max_context or (model.encoder.max_context if model.encoder is not None else None)
    if context is not None:
        told["max_model_len"] = context
    return told


def body_of(visit: Visit) -> bytes:
    """Give a body that says it is JSON. Raises `UnsupportedMedia`."""
    require_json(visit.request.headers.get(b"content-type"))
    return visit.request.body


def respond_json(visit: Visit, status: int, body: bytes) -> None:
    """Send a whole answer."""
    visit.sent_bytes = len(body)
    visit.responder.respond(status, answer_headers((JSON,), visit.id, {}), body)
