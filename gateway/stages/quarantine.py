"""Quarantine: has this very request killed the process before?"""

from collections.abc import Awaitable
from types import TracebackType

from gateway.call import Call, Handler, Reply
from gateway.errors import Overloaded, Quarantined
from gateway.process.journal import Docket, Journal, Verdict


class Quarantine:
    """Refuses with 422 a request that was being computed at two deaths of the process: `gateway/process/journal.py`.

    Refuses with 503 a suspect while another suspect is in flight: one at a time, so that the next death has one name.
    Enters the request's place in the journal on the generation's scope. Calls to other models than engines run
    elsewhere, and cost nothing here.
    """

    def __init__(self, journal: Journal, docket: Docket) -> None:
        self._journal = journal
        self._docket = docket
        self._suspects = 0

    def __call__(self, call: Call, inner: Handler) -> Awaitable[Reply]:
        if not call.model.needs_ids:
            return inner(call)
        fingerprint = self._docket.fingerprint(call.tenant.id, call.body)
        verdict = self._docket.verdict(fingerprint)
        if verdict is Verdict.QUARANTINED:
            message = "This very request was being computed when the engine died, twice or more. It is not tried again."
            raise Quarantined(message, code="request_quarantined", headers={"x-should-retry": "false"})
        suspect = verdict is Verdict.SUSPECT
        if suspect and self._suspects:
            message = "This request is one of several that may have ended the engine; they are tried one at a time."
            raise Overloaded(message, code="request_suspected", headers={"retry-after": "5"})
        self._suspects += suspect
        call.generation.scope.push(Journaled(self, fingerprint, self._journal.enter(fingerprint), suspect))
        return inner(call)

    def ended(self, fingerprint: bytes, place: int, *, suspect: bool, well: bool) -> None:
        """Take a request out of the journal again."""
        self._journal.leave(place)
        self._suspects -= suspect
        if well and self._docket.acquit(fingerprint):
            self._journal.acquit(fingerprint)


class Journaled:
    """The exit half of one request in the journal."""

    __slots__ = ("_fingerprint", "_place", "_quarantine", "_suspect")

    def __init__(self, quarantine: Quarantine, fingerprint: bytes, place: int, suspect: bool) -> None:
        self._quarantine = quarantine
        self._fingerprint = fingerprint
        self._place = place
        self._suspect = suspect

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._quarantine.ended(self._fingerprint, self._place, suspect=self._suspect, well=error is None)
