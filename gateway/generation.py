"""One generation: what runs on behalf of a call from admission to the last token.

A generation has a scope of its own, because it may one day outlive the call that began it: identical calls join it, an
idempotent retry finds it again, a broken connection resumes it. So what a generation holds (the attempt, the upstream's
slot, later the reserved tokens) is entered on `Generation.scope`, never on the scope of whoever came first.

As long as there is one reader, that reader drives it: `Generate` enters the generation's scope on the call's, the edge
pulls the events straight through dispatch from the upstream, and there is no task and no queue between them. A second
reader (`Coalesce`, `Idempotent`) has its place exactly there: instead of entering the scope on the call, the stage
gives the generation a task that owns the scope, appends each event to `emitted`'s successor, a log, and lets readers
subscribe; the last reader's leaving cancels that task, at once or after the grace that policy grants.
"""

from msgspec import Struct, field

from cache.reservation import Reservation
from gateway.call import Call, FinishReason, Usage
from gateway.scope import Scope


class Generation(Struct):
    """The state of one generation. `deadline` is in loop seconds."""

    deadline: float
    scope: Scope = field(default_factory=Scope)
    usage: Usage | None = None  # dispatch: None until the upstream has said it; else meter, or an engine that was left
    emitted: dict[int, list[int]] = field(default_factory=dict)  # dispatch: per choice, the token ids sent so far
    finishes: dict[int, FinishReason] = field(default_factory=dict)  # dispatch: per choice, once it has ended
    counted: int | None = None  # meter: the tokens of a whole answer's text, where the model has a tokenizer
    lost: int = 0  # dispatch: tokens that attempts brought which lost a race
    limit: str | None = None  # dispatch, or meter where it stopped an upstream: the limit that ended a choice
    reservation: Reservation | None = None  # meter: the tokens promised to it; None where no limit counts tokens


def usage_of(call: Call) -> Usage:
    """Give what is known of a call's tokens: what the upstream said, else what we counted."""
    if not hasattr(call, "generation"):
        return Usage()
    generation = call.generation
    if generation.usage is not None:
        return generation.usage
    emitted = sum(map(len, generation.emitted.values()))
    return Usage(prompt=call.tokens.input if call.tokens.exact and call.attempts else 0, completion=emitted)
