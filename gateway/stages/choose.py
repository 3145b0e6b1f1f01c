"""Choose: which upstreams may serve this call, and in which order?"""

from gateway.call import Call, Handler, Reply


class Choose:
    """Refuses with 400 what none of the model's upstreams can do at all. Acquires nothing.

    The order is the configuration's; an upstream that lacks what the request needs (a response format, a suffix) is
    left out, so that another one may serve it.
    """

    async def __call__(self, call: Call, inner: Handler) -> Reply:
        upstreams = call.model.upstreams
        refusals = [upstream.refuses(call.request) for upstream in upstreams]
        call.route = tuple(upstream for upstream, no in zip(upstreams, refusals, strict=True) if no is None)
        if not call.route:
            raise next(no for no in refusals if no is not None)
        return await inner(call)
