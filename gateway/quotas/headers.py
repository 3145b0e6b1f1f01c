"""What an answer's headers say of the caller's limits: OpenAI's names, the IETF draft's, and our own.

`x-ratelimit-{limit,remaining,reset}-{requests,tokens}` are OpenAI's, with Go's durations; `reset` is when nothing is
spent any more, if what running calls hold is used up. `RateLimit-Policy` and `RateLimit` are those of
draft-ietf-httpapi-ratelimit-headers-10: structured fields, one member for each thing that is counted. The draft knows
no unit for tokens and costs; `qu` says ours. Where several limits count the same thing, the one with the least left is
told, because it is what binds; a shadow limit binds nobody and is not told.

`x-penstock-input-tokens: 812` is what the prompt was counted as, `812;estimate` where not by the served model's own
tokenizer. `x-penstock-degraded: quota` says that the store of the limits is down, and that these are the shares that
this process holds on its own.

Anthropic's set (`anthropic-ratelimit-*`, resets in RFC 3339) belongs to Anthropic's surface, and its place is beside
`_openai`, chosen by the path that the call came in on.
"""

from collections.abc import Mapping, Sequence

from cache.reservation import Standing
from gateway.call import Call
from gateway.quotas.error import go_duration, header_text
from gateway.quotas.quota import Quota
from policies.bucket import Kind, Limit
from policies.holder import Measure, Rule
from policies.period import DAY_US

MAX_KNOWN = 4096
MAX_INTEGER = 999_999_999_999_999  # of a structured field
UNITS = {
    Measure.REQUESTS: "requests",
    Measure.CONCURRENCY: "concurrent-requests",
    Measure.INPUT: "input-tokens",
    Measure.OUTPUT: "output-tokens",
    Measure.TOKENS: "tokens",
    Measure.COST: "nano-usd",
}
TOKENS = (Measure.TOKENS, Measure.INPUT, Measure.OUTPUT)

Binding = dict[Measure, Standing]


class LimitHeaders:
    """Writes the headers. Keeps what it has written of limits that do not change, for a bounded number of them."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Limit, str, str]] = {}  # by key: the limit, its name and its policy as told

    def of(self, call: Call, quota: Quota, further: Mapping[str, str]) -> dict[str, str]:
        """Give an answer's headers: those of the limits, and `further`."""
        binding: Binding = {}
        if quota.entry is not None:
            gather(quota.account.entry, quota.entry.standings, binding)
        if quota.tokens is not None:
            gather(quota.account.tokens, quota.tokens.standings, binding)
        headers = self.of_limits(binding)
        if hasattr(call, "tokens"):
            tokens = call.tokens
            headers["x-penstock-input-tokens"] = str(tokens.input) if tokens.exact else f"{tokens.input};estimate"
        if quota.degraded:
            headers["x-penstock-degraded"] = "quota"
        headers.update(further)
        return headers

    def of_limits(self, binding: Binding) -> dict[str, str]:
        """Give the headers that tell how limits stand."""
        headers: dict[str, str] = {}
        if binding:
            _openai(binding, headers)
            self._ietf(binding, headers)
        return headers

    def _ietf(self, binding: Binding, headers: dict[str, str]) -> None:
        policies, states = [], []
        for measure, standing in binding.items():
            limit = standing.limit
            known = self._known.get(limit.key)
            if known is None or known[0] is not limit:
                known = self._learn(limit, measure)
            _, name, policy = known
            policies.append(policy)
            state = f"{name};r={min(max(0, standing.free), MAX_INTEGER)}"
            states.append(state if limit.kind is Kind.GAUGE else f"{state};t={-(-reset_us(standing) // 1_000_000)}")
        headers["ratelimit-policy"] = ", ".join(policies)
        headers["ratelimit"] = ", ".join(states)

    def _learn(self, limit: Limit, measure: Measure) -> tuple[Limit, str, str]:
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        name = quoted(limit.key)
        window = window_s(limit)
        policy = f'{name};q={min(limit.capacity, MAX_INTEGER)};qu="{UNITS[measure]}"'
        known = self._known[limit.key] = (limit, name, policy if window is None else f"{policy};w={window}")
        return known


def gather(rules: Sequence[Rule], standings: Sequence[Standing], binding: Binding) -> None:
    """Keep in `binding`, of each measure, the standing that binds."""
    for rule, standing in zip(rules, standings, strict=False):  # there are none before the first answer
        if standing.limit.shadow:
            continue
        other = binding.get(rule.measure)
        if other is None or binds(standing, other):
            binding[rule.measure] = standing


def binds(one: Standing, other: Standing) -> bool:
    """Whether `one` leaves less than `other`, or as little for longer."""
    return one.free < other.free or (one.free == other.free and one.reset_us > other.reset_us)


def _openai(binding: Binding, headers: dict[str, str]) -> None:
    requests = binding.get(Measure.REQUESTS)
    if requests is not None:
        _three(requests, "requests", headers)
    tokens: Standing | None = None
    for measure in TOKENS:
        standing = binding.get(measure)
        if standing is not None and (tokens is None or binds(standing, tokens)):
            tokens = standing
    if tokens is not None:
        _three(tokens, "tokens", headers)


def _three(standing: Standing, of: str, headers: dict[str, str]) -> None:
    headers[f"x-ratelimit-limit-{of}"] = str(standing.limit.capacity)
    headers[f"x-ratelimit-remaining-{of}"] = str(max(0, standing.free))
    headers[f"x-ratelimit-reset-{of}"] = go_duration(reset_us(standing))


def reset_us(standing: Standing) -> int:
    """Tell when nothing is spent any more, if what is held now is used up and nobody else comes."""
    limit = standing.limit
    if limit.kind is not Kind.BUCKET:
        return standing.reset_us
    # So many ticks give back all that is spent, and one less does not: that bounds it, and whole tokens exactly.
    ticks = -(-standing.reset_us // limit.tick_us)
    spent = -(-((ticks - 1) * limit.rate + 1) // limit.unit) if ticks else 0
    held = max(0, limit.capacity - standing.free - spent)
    units = min(ticks * limit.rate, spent * limit.unit) + held * limit.unit
    return standing.reset_us + (-(-units // limit.rate) - ticks) * limit.tick_us


def window_s(limit: Limit) -> int | None:
    """Tell the seconds in which a limit's whole capacity comes back; None where it is none, or of no fixed length."""
    if limit.kind is Kind.BUCKET:
        return -(-limit.capacity * limit.unit * limit.tick_us // (limit.rate * 1_000_000))
    return DAY_US // 1_000_000 if limit.kind is Kind.DAY else None


def quoted(key: str) -> str:
    """Write a name as a structured field's string."""
    escaped = header_text(key).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
