"""What a policy document means: which limits, caps and words hold for whom."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.account import OnFailure
from policies.bucket import Kind, Limit
from policies.compile import Source, compile_policy
from policies.document import DocumentError
from policies.holder import Measure, Rule
from policies.key import kept, new_key
from policies.policy import Policy
from policies.tenant import OutputRule, Price, Priority, Tenant, Terms

EXAMPLES = sorted((Path(__file__).parents[2] / "policies" / "examples").glob("*.yaml"))
HASH = str(kept("web-1.secret"))
MINUTE_US = 60_000_000


def policy(*texts: str, served: tuple[str, ...] = ("demo",), pepper: str = "") -> Policy:
    sources = [Source(f"{index}.yaml", text, "/etc/penstock") for index, text in enumerate(texts)]
    return compile_policy(sources, served=served, pepper=pepper)


def problems(*texts: str, served: tuple[str, ...] = ("demo",), pepper: str = "") -> list[str]:
    with pytest.raises(DocumentError) as caught:
        policy(*texts, served=served, pepper=pepper)
    return [str(problem) for problem in caught.value.problems]


def find(made: Policy, organisation: str, tenant: str, team: str | None = None) -> Tenant:
    found = made.find(organisation, team, tenant, None)
    assert found is not None
    return found


def terms(text: str, model: str = "demo", served: tuple[str, ...] = ("demo",)) -> Terms:
    """The terms of tenant `web` of organisation `acme`."""
    return find(policy(text, served=served), "acme", "web").terms(model)


def keys(found: Terms) -> list[str]:
    return [rule.limit.key for rule in (*found.account.entry, *found.account.tokens)]


def acme(limits: str) -> str:
    return f"organisations: {{acme: {{tenants: {{web: {{limits: {limits}}}}}}}}}"


@pytest.mark.parametrize(
    ("entry", "rule"),
    [
        (
            "requests: 600/min",
            Rule(Limit.bucket("acme/web requests/min", 600, MINUTE_US), call=1, measure=Measure.REQUESTS),
        ),
        (
            "requests: 2/10s, burst: 5",
            Rule(Limit.bucket("acme/web requests/10s", 2, 10_000_000, capacity=5), call=1, measure=Measure.REQUESTS),
        ),
        (
            "input_tokens: 1_000_000/60s",  # the same period as min, and the same name
            Rule(
                Limit.bucket("acme/web input_tokens/min", 1_000_000, MINUTE_US),
                input=1,
                cached=1,
                measure=Measure.INPUT,
            ),
        ),
        (
            "input_tokens: 10/h, cached: free",
            Rule(Limit.bucket("acme/web input_tokens/h", 10, 60 * MINUTE_US), input=1, measure=Measure.INPUT),
        ),
        (
            "output_tokens: 10/s, shadow: true",
            Rule(
                Limit.bucket("acme/web output_tokens/s", 10, 1_000_000, shadow=True), output=1, measure=Measure.OUTPUT
            ),
        ),
        (
            "tokens: 5_000_000/day",
            Rule(Limit.budget("acme/web tokens/day", Kind.DAY, 5_000_000), input=1, cached=1, output=1),
        ),
        (
            "tokens: 7/month, model: demo",
            Rule(Limit.budget("acme/web tokens/month demo", Kind.MONTH, 7), input=1, cached=1, output=1),
        ),
        (
            "concurrency: 8",
            Rule(Limit.gauge("acme/web concurrency", 8), call=1, measure=Measure.CONCURRENCY),
        ),
    ],
)
def test_a_limit_counts_what_it_says(entry: str, rule: Rule) -> None:
    account = terms(acme(f"[{{{entry}}}]")).account

    assert (*account.entry, *account.tokens) == (rule,)
    assert (rule in account.entry) == (rule.measure in (Measure.REQUESTS, Measure.CONCURRENCY))


def test_money_is_counted_in_billionths_of_a_dollar() -> None:
    text = "prices: {demo: {input: 0.10, cached_input: 0.01, output: 0.40}}\n" + acme("[{cost: 20/day}, {cost: 0.5/h}]")
    found = terms(text)

    assert found.price == Price(input=100, cached=10, output=400)
    assert found.account.tokens == (
        Rule(Limit.budget("acme/web cost/day", Kind.DAY, 20 * 10**9), 0, 100, 10, 400, Measure.COST),
        Rule(Limit.bucket("acme/web cost/h", 5 * 10**8, 60 * MINUTE_US), 0, 100, 10, 400, Measure.COST),
    )


def test_cached_input_costs_like_any_other_where_nothing_is_said() -> None:
    found = terms("prices: {d*: {input: 1, output: 2}}\n" + acme("[]"))

    assert found.price == Price(input=1000, cached=1000, output=2000)


CHAIN = f"""
organisations:
  acme:
    limits: [{{requests: 1000/min}}]
    models: [demo, "big-*"]
    max_input_tokens: 9000
    max_output_tokens: {{default: 100, cap: 4000}}
    priority: low
    queue_deadline_s: 30
    deadline_s: 100
    weight: 0.5
    on_store_failure: local
    teams:
      search:
        limits: [{{requests: 500/min}}]
        models: ["*"]
        max_input_tokens: 8000
        max_output_tokens: {{cap: 3000, over: clamp}}
        slice_tokens: 64
    tenants:
      web:
        team: search
        limits: [{{requests: 100/min}}]
        models: ["*-1", demo]
        max_output_tokens: {{default: 3400, cap: 3500}}
        priority: high
        queue_deadline_s: 40
        deadline_s: 90
        weight: 4
        keys:
          web-1: {{hash: "{HASH}", limits: [{{requests: 10/min}}], max_input_tokens: 8500, models: [demo]}}
"""


def test_the_limits_of_all_scopes_hold_widest_first() -> None:
    stored = policy(CHAIN).keys["web-1"]

    assert stored.tenant.id == "acme/search/web"
    assert keys(stored.tenant.terms("demo")) == [
        "acme requests/min",
        "acme/search/* requests/min",
        "acme/search/web requests/min",
        "acme/search/web#web-1 requests/min",
    ]
    assert {rule.limit.capacity for rule in stored.tenant.terms("demo").account.entry} == {1000, 500, 100, 10}


def test_of_caps_the_smallest_holds_and_of_words_the_nearest() -> None:
    found = policy(CHAIN).keys["web-1"].tenant.terms("demo")

    assert found.max_input == 8000
    assert found.output == OutputRule(default=3000, cap=3000, clamp=True)
    assert found.queue_deadline_s == 30
    assert found.deadline_s == 90
    assert found.weight == 4
    assert found.priority is Priority.HIGH
    assert found.account.on_failure is OnFailure.LOCAL
    assert found.account.slice == 64


@pytest.mark.parametrize(
    ("model", "by_tenant", "by_key"),
    [("demo", True, True), ("big-1", True, False), ("big-2", False, False), ("small-1", False, False)],
)
def test_a_model_may_be_called_where_every_scope_allows_it(model: str, by_tenant: bool, by_key: bool) -> None:
    made = policy(CHAIN)

    assert find(made, "acme", "web").terms(model).allowed == by_tenant
    assert made.keys["web-1"].tenant.terms(model).allowed == by_key


def test_who_says_nothing_is_bound_by_nothing() -> None:
    found = terms("organisations: {acme: {}}")

    assert found == Terms(found.account)
    assert found.account.entry == found.account.tokens == ()
    assert found.account.on_failure is OnFailure.CLOSED


DEFAULTS = """
defaults:
  limits: [{requests: 5/min}, {concurrency: 2}]
  max_input_tokens: 100
  priority: low
  on_store_failure: local
organisations:
  acme:
    defaults: {max_input_tokens: 200, limits: [{requests: 7/min}]}
    tenants:
      web: {limits: [{tokens: 1/day}]}
      free: {limits: []}
      plain: {max_input_tokens: 5000}
  other: {on_store_failure: closed}
"""


@pytest.mark.parametrize(
    ("organisation", "tenant", "limits", "max_input"),
    [
        ("acme", "web", ["acme/web tokens/day"], 200),
        ("acme", "free", [], 200),
        ("acme", "plain", ["acme/plain requests/min"], 5000),
        ("acme", "never-seen", ["acme/never-seen requests/min"], 200),
        ("other", "never-seen", ["other/never-seen requests/min", "other/never-seen concurrency"], 100),
    ],
)
def test_defaults_stand_in_for_what_a_tenant_does_not_say(
    organisation: str, tenant: str, limits: list[str], max_input: int
) -> None:
    found = find(policy(DEFAULTS), organisation, tenant).terms("demo")

    assert keys(found) == limits
    assert found.max_input == max_input
    assert found.priority is Priority.LOW


def test_what_an_organisation_says_of_itself_is_nearer_than_the_documents_defaults() -> None:
    made = policy(DEFAULTS)

    assert find(made, "other", "x").terms("demo").account.on_failure is OnFailure.CLOSED
    assert find(made, "acme", "x").terms("demo").account.on_failure is OnFailure.LOCAL


def test_an_unknown_organisation_has_no_tenants() -> None:
    assert policy(DEFAULTS).find("nobody", None, "web", None) is None


@pytest.mark.parametrize("name", ["", "x" * 257])
def test_what_is_no_name_is_no_tenant(name: str) -> None:
    assert policy(DEFAULTS).find("acme", None, name, None) is None


def test_strangers_get_ids_that_cannot_be_taken_for_others() -> None:
    made = policy("organisations: {acme: {teams: {web: {}}, tenants: {web: {}}}}")
    ids = [
        find(made, "acme", name, team).id for name, team in [("web", None), ("a/b", None), ("b", "a"), ("a b#c", "web")]
    ]

    assert ids == ["acme/web", "acme/a%2Fb", "acme/a/b", "acme/web/a%20b%23c"]


@given(
    st.lists(
        st.tuples(
            st.none() | st.text(st.characters(), min_size=1, max_size=200),
            st.text(st.characters(), min_size=1, max_size=200),
        ),
        min_size=2,
        max_size=5,
        unique=True,
    )
)
def test_no_two_strangers_have_one_id_whatever_their_claims(claims: list[tuple[str | None, str]]) -> None:
    made = policy("organisations: {acme: {}}")
    ids = [find(made, "acme", tenant, team).id for team, tenant in claims]

    assert len(set(ids)) == len(claims)
    assert all(re.fullmatch(r"acme(/[A-Za-z0-9._@:|+=~%!-]{1,153}){1,2}", each) for each in ids)


def test_whom_a_file_names_is_in_the_team_that_the_file_says() -> None:
    assert find(policy(CHAIN), "acme", "web", "another").id == "acme/search/web"


def test_a_stranger_is_made_once() -> None:
    made = policy(DEFAULTS)

    assert made.find("acme", None, "x", "s") is made.find("acme", None, "x", "s")
    assert made.find("acme", None, "x", "s") is not made.find("acme", None, "x", "t")


PER_MODEL = """
organisations:
  acme:
    max_input_tokens: 100
    priority: low
    per_model:
      demo: {max_input_tokens: 500, priority: high}
      "d*": {max_input_tokens: 1}
    tenants:
      web: {max_input_tokens: 400, per_model: {"*": {queue_deadline_s: 3}}}
"""


@pytest.mark.parametrize(
    ("model", "max_input", "priority"),
    [("demo", 400, Priority.HIGH), ("deep", 1, Priority.LOW), ("other", 100, Priority.LOW)],
)
def test_what_is_said_for_a_model_stands_in_the_place_of_what_is_said_for_all(
    model: str, max_input: int, priority: Priority
) -> None:
    found = terms(PER_MODEL, model)

    assert (found.max_input, found.priority, found.queue_deadline_s) == (max_input, priority, 3)


MODELS = """[
  {requests: 10/min},
  {requests: 5/min, model: "*"},
  {requests: 4/min, model: "d*"},
  {requests: 3/min, model: demo},
  {concurrency: 1, model: other}]"""


@pytest.mark.parametrize(
    ("model", "limits"),
    [
        ("demo", {"acme/web requests/min": 10, "acme/web requests/min demo": 3}),
        ("deep", {"acme/web requests/min": 10, "acme/web requests/min deep": 5}),
        ("other", {"acme/web requests/min": 10, "acme/web requests/min other": 5, "acme/web concurrency other": 1}),
    ],
)
def test_each_model_that_a_pattern_matches_has_a_limit_of_its_own(model: str, limits: dict[str, int]) -> None:
    account = terms(acme(MODELS), model).account

    assert {rule.limit.key: rule.limit.capacity for rule in account.entry} == limits


def test_limits_keep_their_keys_over_reloads() -> None:
    before = acme("[{requests: 10/min}, {tokens: 5/day}]")
    after = "defaults: {priority: low}\n" + acme("[{tokens: 500/day, shadow: true}, {requests: 7/60s, burst: 70}]")

    assert sorted(keys(terms(before))) == sorted(keys(terms(after)))
    assert policy(before).version != policy(after).version


def test_tenants_share_prefixes_only_where_the_policy_says_so() -> None:
    def salts(said: str) -> set[bytes]:
        made = policy(f"organisations: {{acme: {{{said}}}, other: {{{said}}}}}")
        return {find(made, organisation, name).salt for organisation in ("acme", "other") for name in ("a", "b")}

    assert len(salts("")) == len(salts("prefix_cache: tenant")) == 4
    assert len(salts("prefix_cache: organisation")) == 2
    assert salts("prefix_cache: organisation").isdisjoint(salts(""))


def test_keys_and_issuers_are_found_with_what_the_file_says_of_them() -> None:
    key = new_key("web-1", lambda size: bytes(size))
    made = policy(
        f"""
organisations:
  acme: {{tenants: {{web: {{keys: {{web-1: {{hash: "{kept(key)}", expires: 2027-01-01T01:00:00+01:00}}}}}}}}}}
""",
        """
issuers:
  https://id.example.com: {audiences: [a, b], jwks: keys/jwks.json, organisation: acme, tenant_claim: email}
""",
    )

    assert made.keys["web-1"].digest == kept(key).digest
    assert made.keys["web-1"].expires == 1_798_761_600
    assert made.keys["web-1"].tenant.key == "web-1"
    assert made.issuers["https://id.example.com"].jwks == "/etc/penstock/keys/jwks.json"
    assert made.issuers["https://id.example.com"].audiences == ("a", "b")


def test_the_order_and_the_names_of_files_do_not_matter() -> None:
    first, second = "organisations: {acme: {}}", "organisations: {other: {}}"

    assert policy(first, second).version == policy(second, first).version != policy(first).version


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_are_policies(path: Path) -> None:
    made = compile_policy([Source(path.name, path.read_text(), str(path.parent))], served=("demo", "big"))

    for stored in made.keys.values():
        assert stored.tenant.terms("demo").allowed
