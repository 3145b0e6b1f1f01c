"""What callers of a soak ask, drawn from a seed: well and badly, by several tenants, some of whom will leave.

A prompt holds a canary of its tenant, and one for an upstream a marker of its own, which the answer repeats.
"""

import json
import re
from dataclasses import dataclass, field
from random import Random
from typing import Any

from policies.key import kept, new_key
from tests.rig.event_log import Asked

ENGINE, SINGLE, PAIR = "tiny", "single", "pair"
TENANTS = {"acme/web": "web-1", "acme/batch": "batch-1", "umbra/lab": "lab-1"}  # with their keys' ids
JUDGES = {"acme": "judge-acme", "umbra": "judge-umbra"}  # one of each organisation asks afterwards what is left
MARKED = re.compile(r"canary-[a-z]+-[0-9a-f]+|mark-[A-Za-z0-9.]+")
BULKY = 77  # so many tokens are asked for by whom a stream of megabytes is written
COUNTRIES = ("France", "Germany", "Italy", "Spain", "Norway", "Japan", "Kenya", "Chile", "Canada", "Nepal", "Cuba")


def key_of(bearer: str) -> str:
    """Give a bearer's key, the same each time."""
    return new_key(bearer, lambda size: bearer.encode().ljust(size, b"."))


def kept_key_of(bearer: str) -> str:
    """Give what a policy file holds of it."""
    return str(kept(key_of(bearer)))


def canary_of(tenant: str) -> str:
    """Give what only a tenant's own prompts and answers hold."""
    return f"canary-{tenant.rpartition('/')[2]}-{tenant.encode().hex()}"


@dataclass(slots=True)
class Wish:
    """A request as it will be made, and how its caller behaves. `fault` names what is wrong with either."""

    asked: Asked
    body: bytes
    path: str = "/v1/chat/completions"
    headers: dict[str, str] = field(default_factory=dict)
    leave_after: int | None = None  # events; 0: before the first byte, once `linger_s` are over
    linger_s: float = 0.0
    reset: bool = False  # leaves with RST, not with FIN
    pause_s: float = 0.0  # without reading, after the head
    cancel_s: float | None = None  # until it is ended by `canceller`
    canceller: str = ""
    repeatable: bool = False
    fault: str = ""


def draw(rng: Random, name: str, models: tuple[str, ...] = (ENGINE, SINGLE, PAIR, PAIR)) -> Wish:
    """Draw what one caller asks next."""
    tenant, model, stream, chat = rng.choice(tuple(TENANTS)), rng.choice(models), rng.random() < 0.6, rng.random() < 0.7
    text = f"{canary_of(tenant)} What is the capital of {rng.choice(COUNTRIES)}?"
    fields: dict[str, Any] = {"model": model, "max_tokens": rng.choice((1, 6, 16, 40)), "stream": stream}
    if model == ENGINE:
        fields |= {"ignore_eos": True} if rng.random() < 0.5 else {}
    else:
        text = f"{text} mark-{name}"
    fields |= {"messages": [{"role": "user", "content": text}]} if chat else {"prompt": text}
    if stream and rng.random() < 0.5:
        fields["stream_options"] = {"include_usage": True}
    wish = Wish(Asked(name, tenant, model, stream), b"", headers={"authorization": f"Bearer {key_of(TENANTS[tenant])}"})
    wish.path = "/v1/chat/completions" if chat else "/v1/completions"
    wish.repeatable = model == ENGINE and not stream
    if wish.repeatable:
        fields["temperature"] = 0
    misbehave(rng, wish, fields)
    wish.body = wish.body or json.dumps(fields).encode()
    return wish


def sized(name: str, tokens: int, answer: int) -> Wish:
    """Ask the engine for so many tokens behind a prompt of so many, which begins like none of another size."""
    tenant = next(iter(TENANTS))
    prompt = list(range(10 + tokens, 10 + 2 * tokens))
    body = json.dumps({"model": ENGINE, "prompt": prompt, "max_tokens": answer, "ignore_eos": True}).encode()
    bearer = f"Bearer {key_of(TENANTS[tenant])}"
    return Wish(Asked(name, tenant, ENGINE), body, "/v1/completions", {"authorization": bearer})


def misbehave(rng: Random, wish: Wish, fields: dict[str, Any]) -> None:
    """Draw what is wrong with a request or its caller; nothing, for two of three."""
    asked, chance = wish.asked, rng.random()
    leaves, cut, tenant = False, False, asked.tenant
    if chance < 0.07:
        leaves, wish.fault, wish.leave_after = True, "left before the first byte", 0
        wish.linger_s = rng.choice((0.0, rng.uniform(0, 0.05), rng.uniform(0, 0.5)))
    elif chance < 0.14 and asked.stream:
        leaves, wish.fault, wish.leave_after = True, "left within the stream", rng.randrange(1, 12)
    elif chance < 0.18:
        wish.fault, wish.cancel_s = "cancelled", rng.uniform(0.0, 0.4)
        wish.canceller = tenant
    elif chance < 0.20:
        wish.fault, wish.cancel_s = "cancelled by another tenant", rng.uniform(0.0, 0.4)
        wish.canceller = rng.choice([other for other in TENANTS if other != tenant])
    elif chance < 0.22 and asked.stream and asked.model != ENGINE:
        wish.fault, wish.pause_s, cut = "slow reader", rng.choice((0.5, 1.5, 5.0)), True
        fields["max_tokens"] = BULKY
    elif chance < 0.26:
        wish.fault = "deadline"
        wish.headers["x-request-deadline"] = f"{rng.choice((1, 50, 300, 1500))}ms"
    elif chance < 0.33:
        tenant = spoil(rng, wish, fields)
    if leaves:
        wish.reset = rng.random() < 0.5
        wish.fault += ", RST" if wish.reset else ", FIN"
    wish.asked = Asked(asked.id, tenant, asked.model, asked.stream, leaves, cut)


def spoil(rng: Random, wish: Wish, fields: dict[str, Any]) -> str:
    """Make a request that is refused; gives whose it is by then."""
    tenant = wish.asked.tenant
    wish.repeatable = False
    match rng.randrange(7):
        case 0:
            wish.fault, wish.body = "bad request: broken JSON", b'{"model": "tiny", "messages": ['
        case 1:
            wish.fault, fields["max_tokens"] = "bad request: a negative number", -3
        case 2:
            wish.fault, fields["model"] = "bad request: unknown model", "nothing"
        case 3:
            wish.fault, tenant = "bad request: no key", ""
            wish.headers.pop("authorization")
        case 4:
            wish.fault, tenant = "bad request: a wrong key", ""
            wish.headers["authorization"] = f"Bearer {TENANTS[wish.asked.tenant]}.AAAAAAAAAAAAAAAAAAAAAAAA"
        case 5:
            wish.fault, fields["messages"] = "bad request: no messages", "none"
            fields.pop("prompt", None)
        case _:
            wish.fault, wish.path = "bad request: unknown path", "/v1/chat/complexions"
    return tenant
