"""Generate: from here on the work belongs to a generation, not to the socket that asked for it."""

from collections.abc import Awaitable

from gateway.call import Call, Handler, Reply
from gateway.generation import Generation


class Generate:
    """Refuses nothing. Begins the call's `Generation` and enters its scope on the call's: one reader drives it.

    What later stages acquire for the generation they enter on `call.generation.scope`. `gateway/generation.py` says
    how a generation comes to outlive its first reader, and that this is the place.
    """

    def __call__(self, call: Call, inner: Handler) -> Awaitable[Reply]:
        generation = call.generation = Generation(deadline=call.deadline)
        call.scope.push(generation.scope)
        return inner(call)
