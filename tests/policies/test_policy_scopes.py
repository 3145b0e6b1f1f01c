"""How scopes add up, tried over random documents against a reading of the rules that is slow and plain."""

import json
from fnmatch import fnmatchcase
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from policies.compile import Source, compile_policy
from policies.key import kept

MODELS = ("demo", "deep", "other")
PATTERNS = st.sampled_from(["demo", "deep", "d*", "*", "other"])
LIMITS = st.lists(
    st.fixed_dictionaries(
        {
            "measure": st.sampled_from(["requests", "tokens", "output_tokens"]),
            "period": st.sampled_from(["min", "day"]),
        },
        optional={"model": PATTERNS},
    ),
    max_size=4,
    unique_by=lambda entry: (entry["measure"], entry["period"], entry.get("model")),
)
SAID = st.fixed_dictionaries(
    {},
    optional={
        "max_input_tokens": st.integers(1, 9),
        "priority": st.sampled_from(["high", "normal", "low"]),
        "models": st.lists(PATTERNS, max_size=3, unique=True),
        "limits": LIMITS,
    },
)
Said = dict[str, Any]


def written(said: Said) -> Said:
    """What one scope says, as a file has it; a limit's amount tells which entry it is."""
    entries = [
        {entry["measure"]: f"{number + 1}/{entry['period']}"} | ({"model": entry["model"]} if "model" in entry else {})
        for number, entry in enumerate(said.get("limits", []))
    ]
    return said | ({"limits": entries} if "limits" in said else {})


def expected_limits(scope: str, said: Said, model: str) -> dict[str, int]:
    """Limits by key with their amounts: one for all models, and of those for some the closest."""
    found: dict[str, int] = {}
    closest: dict[str, bool] = {}
    for number, entry in enumerate(said.get("limits", [])):
        pattern = entry.get("model")
        key = f"{scope} {entry['measure']}/{entry['period']}" + (f" {model}" if pattern else "")
        if pattern is None:
            found[key] = number + 1
        elif fnmatchcase(model, pattern) and (key not in found or (pattern == model and not closest[key])):
            found[key] = number + 1
            closest[key] = pattern == model
    return found


@settings(deadline=None)
@given(*[SAID] * 6, st.sampled_from(MODELS))
def test_scopes_add_up_as_the_reference_says(
    top: Said, organisation: Said, defaults: Said, team: Said, tenant: Said, key: Said, model: str
) -> None:
    document = {
        "defaults": written(top),
        "organisations": {
            "acme": {
                **written(organisation),
                "defaults": written(defaults),
                "teams": {"search": written(team)},
                "tenants": {
                    "web": {
                        **written(tenant),
                        "team": "search",
                        "keys": {"web-1": {**written(key), "hash": str(kept("web-1.secret"))}},
                    }
                },
            }
        },
    }
    stored = compile_policy([Source("a.yaml", json.dumps(document))], served=MODELS).keys["web-1"]
    terms = stored.tenant.terms(model)
    filled = top | defaults | tenant
    chain = {"acme": organisation, "acme/search/*": team, "acme/search/web": filled, "acme/search/web#web-1": key}
    limits: dict[str, int] = {}
    for scope, said in chain.items():
        limits |= expected_limits(scope, said, model)
    caps = [said["max_input_tokens"] for said in chain.values() if "max_input_tokens" in said]
    nearest = (key, tenant, team, defaults, organisation, top)
    allowed = [any(fnmatchcase(model, each) for each in said["models"]) for said in chain.values() if "models" in said]
    rules = (*terms.account.entry, *terms.account.tokens)
    other = compile_policy([Source("a.yaml", json.dumps(document))], served=MODELS).find("acme", "x", "y", None)

    assert {rule.limit.key: rule.limit.capacity for rule in rules} == limits
    assert len(rules) == len(limits)
    assert terms.max_input == min(caps, default=None)
    assert terms.priority == next((said["priority"] for said in nearest if "priority" in said), "normal")
    assert terms.allowed == all(allowed)
    assert other is not None
    assert {rule.limit.key for rule in rules}.isdisjoint(
        rule.limit.key
        for rule in (*other.terms(model).account.entry, *other.terms(model).account.tokens)
        if rule.limit.key.startswith("acme/")
    )
