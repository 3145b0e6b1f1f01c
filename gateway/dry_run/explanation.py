"""What would become of a request: the answer of `POST /v1/explain`, gathered from a call whose admission was rehearsed.

Numbers are those that the stages and the ledger came to, never worked out a second time. What the call did not get as
far as is null: the tokens of a model that is not there, the room of a route that was not chosen.
"""

from collections.abc import Mapping

import msgspec

from cache.reservation import Reservation, Standing
from gateway.call import Call, Model, TextPrompt
from gateway.edge import JSON, answer_headers
from gateway.errors import GatewayError
from gateway.protocols.openai_error import error_body
from gateway.quotas.error import amount
from gateway.quotas.headers import reset_us, window_s
from gateway.quotas.quota import level_of, num_choices
from policies.bucket import NEVER
from policies.holder import Measure, Rule
from policies.reservation import Verdict as Told
from policies.tenant import Price, Priority, Tenant


class Caller(msgspec.Struct):
    """Whose request it is; widest scope first."""

    organisation: str
    team: str | None
    tenant: str
    key: str | None


class Asked(msgspec.Struct):
    """What was asked for. `choices` are all answers to all prompts together."""

    path: str
    model: str | None = None
    stream: bool = False
    choices: int = 1
    max_tokens: int | None = None


class Served(msgspec.Struct):
    """The model behind the name, and what bounds it. `engine` says that it runs here."""

    name: str
    allowed: bool
    engine: bool
    max_context: int | None
    max_output: int | None


class Input(msgspec.Struct):
    """The prompts' tokens, and whether they were `counted` by `tokenizer`, given as `ids`, or guessed by `bytes`."""

    tokens: int
    exact: bool
    counted: str
    bytes_per_token: float | None
    max_input: int | None


class Output(msgspec.Struct):
    """The caps of the policy, and what they and what is left made of `max_tokens`: so many for each choice."""

    default: int | None
    cap: int | None
    over: str
    each: int | None = None
    imposed: bool = False


class Weight(msgspec.Struct):
    """What of a call counts, in what the limit counts: so much a call, and a token of each sort."""

    call: int
    input: int
    cached: int
    output: int


class Limited(msgspec.Struct):
    """One limit that the call counts against. Amounts are what it counts; costs are billionths of a US dollar.

    `takes` is what the call takes of it when it begins, `takes_at_most` with all the output that it may have, before
    the real use is settled. `free` is what there is now, `remains` what is left once the call has begun. `fits` says
    whether it has room, and if not, `wait_ms` when it would, null for never. `resets_ms`: nothing is spent any more.
    """

    limit: str
    level: str
    measure: Measure
    kind: str
    capacity: int
    window_s: int | None
    shadow: bool
    weight: Weight
    takes: int | None = None
    takes_at_most: int | None = None
    free: int | None = None
    remains: int | None = None
    resets_ms: int | None = None
    fits: bool | None = None
    wait_ms: int | None = None


class Reserved(msgspec.Struct):
    """The tokens that are promised when it begins, and what it may come to. `cut_by` has no more for now."""

    input: int
    output: int
    tokens: int
    output_at_most: int | None
    cut_by: str | None


class Cost(msgspec.Struct):
    """What it costs by the policy's prices; in US dollars the same as decimals."""

    input_nano_usd: int
    input_usd: str
    at_most_nano_usd: int | None
    at_most_usd: str | None


class Candidate(msgspec.Struct):
    """One upstream of the route: `room` for so many more now (null: no bound), or why it cannot serve the request."""

    upstream: str
    room: int | None
    refuses: str | None


class ErrorTold(msgspec.Struct):
    """An error in OpenAI's words."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(msgspec.Struct):
    """The body of an answer that is an error."""

    error: ErrorTold


class Verdict(msgspec.Struct):
    """Whether it would be let in; if not, the answer it would get. `waits` for room first, at most `max_wait_s`."""

    admitted: bool
    status: int = 200
    waits: bool = False
    max_wait_s: float | None = None
    limit: str | None = None
    retry_after_ms: int | None = None
    error: ErrorBody | None = None


class Explanation(msgspec.Struct):
    """All of it. `degraded` says that these are the shares of this process alone, because the store is down."""

    verdict: Verdict
    caller: Caller
    policy: str | None
    request: Asked
    model: Served | None = None
    input: Input | None = None
    output: Output | None = None
    limits: list[Limited] = []
    reservation: Reserved | None = None
    cost: Cost | None = None
    priority: Priority | None = None
    queue_deadline_s: float | None = None
    route: list[Candidate] = []
    degraded: bool = False
    headers: dict[str, str] = {}


def gather(told: Explanation, call: Call, models: Mapping[str, Model], standing: tuple[Standing, ...]) -> None:
    """Write down what a call came to; `standing` are the limits that it did not get as far as."""
    request, model = call.request, models.get(call.request.model)
    told.request = Asked(call.path, request.model, request.stream, num_choices(call), request.max_tokens)
    if model is not None:
        told.model = served(model, allowed=call.tenant.terms(model.name).allowed)
    if not hasattr(call, "terms"):
        return
    told.input, told.output, told.cost = input_of(call), output_of(call), cost_of(call)
    told.limits, told.reservation = limits_of(call, standing), reserved(call)
    told.priority, told.queue_deadline_s = call.terms.priority, call.terms.queue_deadline_s
    told.route = route_of(call)
    told.degraded = call.quota is not None and call.quota.degraded


def refuse(told: Explanation, error: GatewayError) -> None:
    """Write down the answer of a call that is not let in."""
    wait = error.headers.get("retry-after-ms")
    seconds = error.headers.get("retry-after")
    wait_ms = int(wait) if wait is not None else None if seconds is None else int(seconds) * 1_000
    body = msgspec.json.decode(error_body(error), type=ErrorBody)
    told.verdict = Verdict(False, error.status, retry_after_ms=wait_ms, error=body)
    told.headers = plain((JSON,), error.headers)


def plain(fixed: tuple[tuple[bytes, bytes], ...], further: Mapping[str, str]) -> dict[str, str]:
    """Give an answer's headers, the request's own name apart."""
    headers = answer_headers(fixed, "", further)
    return {name.decode(): value.decode("latin-1") for name, value in headers if name != b"x-request-id"}


def caller_of(tenant: Tenant) -> Caller:
    """Tell who asks."""
    return Caller(tenant.organisation, tenant.team, tenant.id, tenant.key)


def served(model: Model, *, allowed: bool) -> Served:
    """Tell of the model behind a name."""
    context = model.max_context or (None if model.encoder is None else model.encoder.max_context)
    return Served(model.name, allowed, model.needs_ids, context, model.max_output)


def input_of(call: Call) -> Input | None:
    """Tell what goes in, and how that is known."""
    if not hasattr(call, "tokens"):
        return None
    tokens, prompt = call.tokens, call.request.prompt
    given = isinstance(prompt, TextPrompt) and all(isinstance(each, tuple) for each in prompt.prompts)
    how = "bytes" if not tokens.exact else "ids" if given else "tokenizer"
    ratio = None if tokens.exact else call.model.bytes_per_token
    return Input(tokens.input, tokens.exact, how, ratio, call.terms.max_input)


def output_of(call: Call) -> Output:
    """Tell what may come out."""
    rule = call.terms.output
    told = Output(rule.default, rule.cap, "clamp" if rule.clamp else "refuse")
    if hasattr(call, "tokens"):
        told.each, told.imposed = call.tokens.output, call.tokens.imposed
    return told


def limits_of(call: Call, standing: tuple[Standing, ...]) -> list[Limited]:
    """Tell every limit, widest scope first, those of calls before those of tokens; `standing` of what was not tried."""
    quota, account = call.quota, call.terms.account
    told = []
    entry, tokens = (None, None) if quota is None else (quota.entry, quota.tokens)
    for rules, reservation in ((account.entry, entry), (account.tokens, tokens)):
        tried = [] if reservation is None else _tried(rules, reservation, at_most(call))
        told += tried or [_limited(rule, _of(rule, standing)) for rule in rules]
    return told


def was_tried(reservation: Reservation | None) -> bool:
    """Whether the store has said what it would say to this."""
    return reservation is not None and reservation.tried is not None and bool(reservation.tried[1].standings)


def reserved(call: Call) -> Reserved | None:
    """Tell what the call would be promised; None where no limit counts tokens, or it would not come so far."""
    reservation = None if call.quota is None else call.quota.tokens
    if reservation is None or reservation.tried is None or reservation.tried[1].verdict is not Told.GRANTED:
        return None
    counted = any(rule.output for rule in call.terms.account.tokens)
    output = reservation.granted if counted else 0
    return Reserved(
        call.tokens.input,
        output,
        call.tokens.input + output,
        at_most(call),
        None if reservation.tight is None else reservation.tight.key,
    )


def at_most(call: Call) -> int | None:
    """Tell how much output all choices together may have; None where nothing bounds it, or it is not known."""
    each = call.tokens.output if hasattr(call, "tokens") else None
    return None if each is None else each * num_choices(call)


def cost_of(call: Call) -> Cost | None:
    """Tell what the call would cost."""
    price: Price | None = call.terms.price
    if price is None or not hasattr(call, "tokens"):
        return None
    first = call.tokens.input * price.input
    output = at_most(call)
    most = None if output is None else first + output * price.output
    return Cost(first, _usd(first), most, None if most is None else _usd(most))


def route_of(call: Call) -> list[Candidate]:
    """Tell which upstreams there are, in the order in which they are asked."""
    told = []
    for upstream in call.model.upstreams:
        refusal = upstream.refuses(call.request)
        told.append(Candidate(upstream.name, upstream.room().slots, None if refusal is None else refusal.message))
    return told


def _limited(rule: Rule, standing: Standing | None) -> Limited:
    limit = rule.limit if standing is None else standing.limit
    return Limited(
        limit.key,
        level_of(limit.key),
        rule.measure,
        limit.kind.name.lower(),
        limit.capacity,
        window_s(limit),
        limit.shadow,
        Weight(rule.call, rule.input, rule.cached, rule.output),
        free=None if standing is None else standing.free,
        resets_ms=None if standing is None else -(-reset_us(standing) // 1_000),
    )


def _tried(rules: tuple[Rule, ...], reservation: Reservation, most: int | None) -> list[Limited]:
    if reservation.tried is None or not was_tried(reservation):
        return []
    step, answer = reservation.tried
    begins = answer.verdict is Told.GRANTED
    told = []
    for rule, claim, standing, wait_us in zip(rules, step.claims, reservation.standings, answer.waits, strict=True):
        limited = _limited(rule, standing)
        output = answer.granted if begins else step.least
        entry = claim.used + claim.base
        limited.takes = entry + output * claim.per
        if not claim.per:
            limited.takes_at_most = entry
        elif most is not None:
            limited.takes_at_most = entry + most * claim.per
        limited.free = standing.free + (limited.takes if begins else 0)
        limited.remains = standing.free if begins else None
        limited.fits = wait_us == 0
        limited.wait_ms = None if wait_us == NEVER else -(-wait_us // 1_000)
        told.append(limited)
    return told


def _of(rule: Rule, standings: tuple[Standing, ...]) -> Standing | None:
    return next((standing for standing in standings if standing.limit.key == rule.limit.key), None)


def _usd(nano: int) -> str:
    return amount(nano, Measure.COST)
