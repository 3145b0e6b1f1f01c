"""Choose: which upstreams may serve this call, and in which order?"""

from gateway.call import Call, Handler, Reply


class Choose:
    """Refuses with 400 what none of the model's upstreams can do at all. Acquires nothing.

    The order is the configuration's; an upstream that lacks what the request needs (a response format, a suffix) is
    left out, so that another one may serve it.
    """

    async def __call__(self, call: Call, inner: Handler) -> Reply:
        able, first = [], None
        for upstream in call.model.upstreams:
            refusal = upstream.refuses(call.request)
            if refusal is None:
                able.append(upstream)
            elif first is None:
                first = refusal
        if not able:
            assert first is not None, "a model without upstreams is not served"
            raise first
        call.route = tuple(able)
        return await inner(call)
