"""Each mistake in a policy file is told with its place, its key, the value and what is allowed."""

import pytest

from policies.compile import Source, compile_policy
from policies.document import DocumentError
from policies.key import kept, pepper_mark

HASH = str(kept("web-1.secret"))
PEPPERED = str(kept("web-1.secret", "a pepper of some length"))
OTHER = str(kept("web-1.secret", "another pepper"))
MARK = pepper_mark("a pepper of some length")
RATE = (
    "expected so many a period, like 600/min, 2/10s or 5_000_000/day (s, min, h, and the UTC calendar's day and month)"
)
SPENDING = "expected US dollars a period, like 20/day or 0.50/h (s, min, h, and the UTC calendar's day and month)"
ABOVE_0 = "expected an amount above 0; what nobody may use is left out of `models`"
ONE_OF = "expected exactly one of requests, concurrency, input_tokens, output_tokens, tokens, cost"


def problems(*texts: str, served: tuple[str, ...] = ("demo", "big"), pepper: str | None = "") -> list[str]:
    sources = [Source(f"{'abc'[index]}.yaml", text) for index, text in enumerate(texts)]
    with pytest.raises(DocumentError) as caught:
        compile_policy(sources, served=served, pepper=pepper)
    return [str(problem) for problem in caught.value.problems]


def limit(entry: str) -> str:
    return f"defaults:\n  limits:\n    - {{{entry}}}\n"


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("requests: -1/min", f"3:18: defaults.limits[0].requests: got '-1/min', {RATE}"),
        ("requests: 0/min", f"3:18: defaults.limits[0].requests: got '0/min', {ABOVE_0}"),
        ("requests: 600", f"3:18: defaults.limits[0].requests: got '600', {RATE}"),
        ("requests: 1.5/min", f"3:18: defaults.limits[0].requests: got '1.5/min', {RATE}"),
        ("requests: 1/week", f"3:18: defaults.limits[0].requests: got '1/week', {RATE}"),
        ("requests: 1/0s", f"3:18: defaults.limits[0].requests: got '1/0s', {RATE}"),
        ("requests: 1/745h", f"3:18: defaults.limits[0].requests: got '1/745h', {RATE}"),
        (
            "tokens: 9_999_999_999_999_999/day",
            "3:16: defaults.limits[0].tokens: got '9_999_999_999_999_999/day', expected at most 4_503_599_627_370_496",
        ),
        (
            "tokens: 4_503_599_627_370_495/h",
            "3:8: defaults.limits[0].tokens: a bucket of 4503599627370495 that refills 4503599627370495 "
            "in 3600000000 µs cannot be counted exactly; choose a rounder amount or a smaller capacity",
        ),
        ("cost: 0.0000000001/day", f"3:14: defaults.limits[0].cost: got '0.0000000001/day', {SPENDING}"),
        ("cost: -5/day", f"3:14: defaults.limits[0].cost: got '-5/day', {SPENDING}"),
        (
            "cost: 5_000_000/day",
            "3:14: defaults.limits[0].cost: got '5_000_000/day', expected at most 4_503_599",
        ),
        (
            "concurrency: -8",
            "3:21: defaults.limits[0].concurrency: got '-8', expected a whole number from 1 to 1000000000",
        ),
        ("shadow: true", f"3:7: defaults.limits[0]: got none, {ONE_OF}"),
        ("requests: 1/s, tokens: 1/s", f"3:7: defaults.limits[0]: got requests and tokens, {ONE_OF}"),
        (
            "requests: 1/day, burst: 5",
            "3:25: defaults.limits[0].burst: got '5', but a day has no burst; only rates in s, min, h have",
        ),
        (
            "concurrency: 1, burst: 5",
            "3:24: defaults.limits[0].burst: got '5', but concurrency has no burst; only rates in s, min, h have",
        ),
        (
            "requests: 1/s, burst: 1.5",
            "3:23: defaults.limits[0].burst: got '1.5', expected a number above 0, in what the limit counts "
            "(US dollars for `cost`)",
        ),
        (
            "requests: 1/s, cached: free",
            "3:23: defaults.limits[0].cached: got 'free' beside requests; it has a meaning for input_tokens and tokens",
        ),
        (
            "requests: 1/s, modle: demo",
            "3:23: defaults.limits[0].modle: unknown key (did you mean 'model'?); allowed: burst, cached, concurrency, "
            "cost, input_tokens, model, output_tokens, requests, shadow, tokens",
        ),
    ],
)
def test_a_limit_that_cannot_be_is_refused(entry: str, expected: str) -> None:
    assert problems(limit(entry)) == [f"a.yaml:{expected}"]


def test_two_limits_of_one_kind_in_one_scope_are_refused() -> None:
    text = (
        "defaults: {limits: [{tokens: 1/min}, {tokens: 5/60s}, "
        "{tokens: 1/min, model: demo}, {tokens: 2/min, model: demo}]}"
    )

    assert problems(text) == [
        "a.yaml:1:38: defaults.limits[1]: a second limit on tokens/min; limits[0] is one already",
        "a.yaml:1:85: defaults.limits[3]: a second limit on tokens/min for 'demo'; limits[2] is one already",
    ]


def tenant(settings: str) -> str:
    return f"organisations:\n  acme:\n    teams: {{search: {{}}}}\n    tenants:\n      web: {{{settings}}}\n"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            "team: serach",
            "13: organisations.acme.tenants.web.team: got 'serach', no team of that name (did you mean 'search'?); "
            "allowed: search",
        ),
        (
            "max_output_tokens: {default: 5, cap: 4}",
            "33: organisations.acme.tenants.web.max_output_tokens.default: "
            "got 5, expected at most the cap beside it, 4",
        ),
        (
            "per_model: {demo: {max_output_tokens: {default: 5, cap: 4}}}",
            "52: organisations.acme.tenants.web.per_model.demo.max_output_tokens.default: "
            "got 5, expected at most the cap beside it, 4",
        ),
        (
            "per_model: {demo: {limits: []}}",
            "32: organisations.acme.tenants.web.per_model.demo.limits: unknown key; allowed: deadline_s, "
            "max_input_tokens, max_output_tokens, priority, queue_deadline_s, weight",
        ),
        (
            "priority: urgent",
            "23: organisations.acme.tenants.web.priority: got 'urgent', expected one of high, normal, low",
        ),
        (
            "on_store_failure: open",
            "31: organisations.acme.tenants.web.on_store_failure: got 'open', expected one of closed, local",
        ),
        (
            "queue_deadline_s: 0",
            "31: organisations.acme.tenants.web.queue_deadline_s: got '0', expected a number above 0, at most 86400",
        ),
        (
            "weight: 0",
            "21: organisations.acme.tenants.web.weight: got '0', expected a number from 0.001 to 1000",
        ),
        (
            "keys: {web-1: {hash: nonsense-of-a-hash}}",
            "34: organisations.acme.tenants.web.keys.web-1.hash: this is no hash of a key; "
            "expected the line that `penstock keys new` prints, blake2b:…",
        ),
        (
            f"keys: {{web-1: {{hash: '{PEPPERED}'}}}}",
            f"28: organisations.acme.tenants.web.keys.web-1.hash: made with the pepper {MARK}; `key_pepper` names none",
        ),
        (
            f"keys: {{web-1: {{hash: '{HASH}', expires: 2027-02-30}}}}",
            "98: organisations.acme.tenants.web.keys.web-1.expires: got '2027-02-30', expected a moment like "
            "2027-01-31T12:00:00Z, or a day like 2027-01-31, which begins at midnight UTC",
        ),
    ],
)
def test_what_a_tenant_cannot_be_is_refused(settings: str, expected: str) -> None:
    assert problems(tenant(settings)) == [f"a.yaml:5:{expected}"]


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (HASH, "made without a pepper, and `key_pepper` of penstock.yaml names one; make the key anew"),
        (OTHER, f"made with the pepper {pepper_mark('another pepper')}; that of `key_pepper` is {MARK}"),
    ],
)
def test_a_key_of_another_pepper_is_refused(stored: str, expected: str) -> None:
    text = tenant(f"keys: {{web-1: {{hash: '{stored}'}}}}")

    assert problems(text, pepper=MARK) == [f"a.yaml:5:28: organisations.acme.tenants.web.keys.web-1.hash: {expected}"]
    assert compile_policy([Source("a.yaml", text)], pepper=None).keys.keys() == {"web-1"}


@pytest.mark.parametrize(
    "misplaced",
    [
        f"keys: {{web-1: '{HASH}'}}",
        f"keys: {{web-1: {{hash: ['{HASH}']}}}}",
        f"keys: {{web-1: {{hash: '{HASH}x'}}}}",
        f"keys: {{web-1: {{hash: {HASH} }}, '{HASH}': {{hash: '{HASH}'}}}}",
        "keys: {web-1.secret-secret: {hash: x}}",
        "keys: {web-1: {hash: web-1.secret-secret}}",
        "keys: web-1.secret-secret",
    ],
)
def test_neither_keys_nor_hashes_are_told(misplaced: str) -> None:
    told = "\n".join(problems(tenant(misplaced)))

    assert HASH not in told
    assert HASH.removeprefix("blake2b:") not in told
    assert "secret-secret" not in told


def test_a_key_that_stands_twice_is_told_with_both_places() -> None:
    first = tenant(f"keys: {{web-1: {{hash: '{HASH}'}}}}")
    second = f"organisations: {{other: {{tenants: {{app: {{keys: {{web-1: {{hash: '{HASH}'}}}}}}}}}}}}"

    assert problems(first, second) == [
        "b.yaml:1:48: organisations.other.tenants.app.keys.web-1: the key 'web-1' is one of acme/web already; "
        "ids are unique over all files"
    ]


def test_a_name_that_stands_in_two_files_is_told_with_both_places() -> None:
    first = "prices:\n  demo: {input: 1, output: 1}\ndefaults: {}\norganisations:\n  acme: {}\n"

    assert problems(first, "organisations: {other: {}}", first) == [
        "c.yaml:2:3: prices.demo: stands in a.yaml:2 already; each name in one file",
        "c.yaml:3:1: defaults: stands in a.yaml:3 already; each name in one file",
        "c.yaml:5:3: organisations.acme: stands in a.yaml:5 already; each name in one file",
    ]


def test_everything_that_is_wrong_is_told_file_by_file() -> None:
    assert problems("defaults: {priority: x}\nx: 1", "y: 1", "prices: {") == [
        "a.yaml:1:22: defaults.priority: got 'x', expected one of high, normal, low",
        "a.yaml:2:1: x: unknown key; allowed: defaults, issuers, organisations, prices",
        "b.yaml:1:1: y: unknown key; allowed: defaults, issuers, organisations, prices",
        "c.yaml:2:1: not YAML: did not find expected node content",
    ]


@pytest.mark.parametrize(
    ("price", "expected"),
    [
        (
            "0.0005",
            "got '0.0005'; a token's price is a whole number of billionths of a dollar, so steps of 0.001",
        ),
        ("-1", "got '-1', expected US dollars per million tokens, like 0.10, in steps of 0.001"),
        ("1e3", "got '1e3', expected US dollars per million tokens, like 0.10, in steps of 0.001"),
        ("10001", "got '10001', expected at most 10000 US dollars per million tokens"),
    ],
)
def test_a_price_that_cannot_be_counted_is_refused(price: str, expected: str) -> None:
    text = f"prices: {{demo: {{input: {price}, output: 1}}}}"

    assert problems(text) == [f"a.yaml:1:24: prices.demo.input: {expected}"]


COST = "limits: [{cost: 1/day}]"
NO_PRICE = "counts calls to 'big', which has no price; name it in `prices`, or not in `models`"


@pytest.mark.parametrize(
    ("organisations", "wrong"),
    [
        (f"acme: {{{COST}}}", ["organisations.acme.limits[0].cost"]),
        (f"acme: {{models: [demo], {COST}}}", []),
        (f"acme: {{models: [demo], tenants: {{web: {{{COST}}}}}}}", []),
        (f"acme: {{models: ['*'], tenants: {{web: {{models: [d*], {COST}}}}}}}", []),
        (f"acme: {{tenants: {{web: {{{COST}}}}}}}", ["organisations.acme.tenants.web.limits[0].cost"]),
        (f"acme: {{teams: {{search: {{{COST}}}}}}}", ["organisations.acme.teams.search.limits[0].cost"]),
        (f"acme: {{defaults: {{{COST}}}}}", ["organisations.acme.defaults.limits[0].cost"]),
        (f"acme: {{defaults: {{models: [demo], {COST}}}}}", []),
        (
            f"acme: {{defaults: {{models: [demo], {COST}}}, tenants: {{web: {{models: [big]}}}}}}",
            ["organisations.acme.defaults.limits[0].cost"],
        ),
        (
            f"acme: {{tenants: {{web: {{keys: {{web-1: {{hash: '{HASH}', {COST}}}}}}}}}}}",
            ["organisations.acme.tenants.web.keys.web-1.limits[0].cost"],
        ),
        ("acme: {limits: [{cost: 1/day, model: d*}]}", []),
        ("acme: {limits: [{cost: 1/day, model: '*'}]}", ["organisations.acme.limits[0].cost"]),
    ],
)
def test_a_limit_on_costs_needs_a_price_for_every_model_that_it_counts(organisations: str, wrong: list[str]) -> None:
    text = f"prices: {{demo: {{input: 1, output: 1}}}}\norganisations: {{{organisations}}}"
    try:
        compile_policy([Source("a.yaml", text)], served=("demo", "big"))
        told = []
    except DocumentError as error:
        told = [str(problem).partition(": ")[2] for problem in error.problems]

    assert told == [f"{path}: {NO_PRICE}" for path in wrong]


def test_a_model_that_nobody_knew_of_and_that_has_no_price_is_not_free() -> None:
    made = compile_policy([Source("a.yaml", f"organisations: {{acme: {{{COST}}}}}")])
    found = made.find("acme", None, "web", None)

    assert found is not None
    assert not found.terms("demo").allowed


@pytest.mark.parametrize(
    ("issuer", "expected"),
    [
        ("jwks: keys.json", ": expected either `organisation` or `organisation_claim`, got neither"),
        (
            "jwks: keys.json, organisation: acme, organisation_claim: org",
            ": expected either `organisation` or `organisation_claim`, got both",
        ),
        (
            "jwks: keys.json, organisation: acne",
            ".organisation: got 'acne', no organisation of that name (did you mean 'acme'?); allowed: acme",
        ),
        (
            "jwks: http://id.example.com/keys, organisation: acme",
            ".jwks: got 'http://id.example.com/keys', expected https://, http:// on loopback, or a file",
        ),
        (
            "jwks: https://user:pw@id.example.com/keys, organisation: acme",
            ".jwks: holds a user or password; a URL of public keys needs none",
        ),
    ],
)
def test_an_issuer_that_cannot_be_is_refused(issuer: str, expected: str) -> None:
    text = f"organisations: {{acme: {{}}}}\nissuers: {{https://id: {{audiences: [a], {issuer}}}}}"
    [told] = problems(text)

    assert told.partition(": ")[2] == f"issuers.https://id{expected}"


def test_a_key_of_a_mapping_may_hold_no_line_end() -> None:
    assert problems('organisations: {"acme\\n": {}}') != []
