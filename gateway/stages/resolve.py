"""Resolve: which served model stands behind the name?"""

from collections.abc import Awaitable, Mapping

from gateway.call import Call, Handler, Model, Reply
from gateway.deadline import Clock
from gateway.errors import Forbidden, ModelNotFound
from policies.tenant import Tenant, Terms


class Resolve:
    """Refuses with 404 a name that nothing is served under, with 403 a model that is not the tenant's.

    Brings the call's deadline forward to its policy's. Acquires nothing.

    `models` maps every name that callers may use, aliases included, to the model behind it.
    """

    def __init__(self, models: Mapping[str, Model]) -> None:
        self._models = models

    def __call__(self, call: Call, inner: Handler) -> Awaitable[Reply]:
        call.model, call.terms = usable_model(self._models, call.request.model, call.tenant)
        deadline_s = call.terms.deadline_s
        if deadline_s is not None and call.received + deadline_s < call.deadline:
            call.deadline, call.clock = call.received + deadline_s, Clock.TENANT
        return inner(call)


def usable_model(models: Mapping[str, Model], name: str, tenant: Tenant) -> tuple[Model, Terms]:
    """Give the model of that name, and what holds for the tenant there. Raises `ModelNotFound`, `Forbidden`."""
    model = find_model(models, name)
    terms = tenant.terms(model.name)
    if not terms.allowed:
        message = f"The model `{model.name}` is not among those that this key may use."
        raise Forbidden(message, param="model", code="model_not_allowed")
    return model, terms


def find_model(models: Mapping[str, Model], name: str) -> Model:
    """Give the model of that name. Raises `ModelNotFound`."""
    model = models.get(name)
    if model is None:
        message = f"The model `{name[:256]}` does not exist or you do not have access to it."
        raise ModelNotFound(message, param="model", code="model_not_found")
    return model
