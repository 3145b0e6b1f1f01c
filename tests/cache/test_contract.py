"""What every store does with a step, whoever keeps the numbers."""

import asyncio

import pytest
from msgspec.structs import replace

from cache.store import Store
from policies.bucket import NEVER, Kind, Limit
from policies.reservation import RETENTION_US, Claim, Step, Verdict

NOW = 1_790_000_000_000_000
SECOND, MINUTE = 1_000_000, 60_000_000
LEASE = 30 * SECOND
TOKENS = Limit.bucket("tokens", 100, MINUTE)
REQUESTS = Limit.bucket("requests", 10, MINUTE)
RUNNING = Limit.gauge("running", 2)
MONTH = Limit.budget("month", Kind.MONTH, 1000)


def reserve(name: str, tokens: int, *limits: Limit, want: int = 0, least: int = 0, seq: int = 1) -> Step:
    claims = [Claim(limit, 0, tokens, 1 if want else 0) for limit in limits or (TOKENS,)]
    return Step(name, seq, tuple(claims), LEASE, want, least)


def settle(name: str, used: int, *limits: Limit, seq: int = 2) -> Step:
    return Step(name, seq, tuple([Claim(limit, used) for limit in limits or (TOKENS,)]), 0, force=True)


async def test_a_limit_is_hit_exactly_at_its_value(store: Store, organisation: str) -> None:
    for number in range(10):
        answer = await store.apply(organisation, reserve(f"c{number}", 10), NOW)
        assert (answer.verdict, answer.standings[0][0]) == (Verdict.GRANTED, 90 - 10 * number)

    assert (await store.apply(organisation, reserve("one-more", 1), NOW)).verdict is Verdict.REFUSED


async def test_a_refusal_charges_no_scope(store: Store, organisation: str) -> None:
    await store.apply(organisation, reserve("a", 95, TOKENS, MONTH), NOW)
    refused = await store.apply(organisation, reserve("b", 6, MONTH, TOKENS), NOW)

    assert (refused.verdict, refused.limit, refused.standings[0][0]) == (Verdict.REFUSED, 1, 905)


async def test_the_refusal_that_lasts_longest_is_named(store: Store, organisation: str) -> None:
    slow = Limit.bucket("slow", 10, 3600 * SECOND)
    await store.apply(organisation, Step("a", 1, (Claim(REQUESTS, 10), Claim(slow, 10)), LEASE), NOW)
    refused = await store.apply(organisation, Step("b", 1, (Claim(REQUESTS, 1), Claim(slow, 1)), LEASE), NOW)

    assert (refused.limit, refused.wait_us) == (1, 360 * SECOND)


async def test_whoever_waits_as_long_as_told_succeeds(store: Store, organisation: str) -> None:
    await store.apply(organisation, settle("a", 100, seq=1), NOW)
    step = reserve("b", 30)
    refused = await store.apply(organisation, step, NOW)

    early = await store.apply(organisation, replace(step, id="c"), NOW + refused.wait_us - 1)
    there = await store.apply(organisation, replace(step, id="d"), NOW + refused.wait_us)

    assert (early.verdict, there.verdict) == (Verdict.REFUSED, Verdict.GRANTED)


async def test_what_can_never_fit_is_told_so(store: Store, organisation: str) -> None:
    assert (await store.apply(organisation, reserve("a", 101), NOW)).wait_us == NEVER


async def test_a_grant_is_what_the_tightest_limit_leaves_and_names_it(store: Store, organisation: str) -> None:
    answer = await store.apply(organisation, reserve("a", 70, MONTH, TOKENS, want=50, least=1), NOW)

    assert (answer.granted, answer.limit) == (30, 1)


async def test_fewer_than_the_least_is_a_refusal(store: Store, organisation: str) -> None:
    await store.apply(organisation, reserve("a", 60), NOW)

    assert (await store.apply(organisation, reserve("b", 0, want=50, least=41), NOW)).verdict is Verdict.REFUSED
    assert (await store.apply(organisation, reserve("c", 0, want=50, least=40), NOW)).granted == 40


async def test_a_step_that_comes_twice_counts_once_and_is_answered_twice(store: Store, organisation: str) -> None:
    step = reserve("a", 20, want=30)
    first = await store.apply(organisation, step, NOW)
    second = await store.apply(organisation, step, NOW)

    assert first == second

    await store.apply(organisation, settle("a", 25), NOW)
    again = await store.apply(organisation, settle("a", 25), NOW)

    assert again.standings[0][0] == 75


async def test_a_step_after_a_later_one_does_nothing(store: Store, organisation: str) -> None:
    await store.apply(organisation, settle("a", 0, seq=2), NOW)
    late = await store.apply(organisation, reserve("a", 50), NOW)
    after = await store.apply(organisation, reserve("b", 1), NOW)

    assert (late.verdict, after.standings[0][0]) == (Verdict.STALE, 99)


async def test_a_command_older_than_its_validity_does_nothing(store: Store, organisation: str) -> None:
    step = replace(reserve("a", 50), not_after=NOW)

    assert (await store.apply(organisation, step, NOW + 1)).verdict is Verdict.LATE
    assert (await store.apply(organisation, step, NOW)).verdict is Verdict.GRANTED


async def test_a_refused_step_is_refused_again_though_there_is_room_now(store: Store, organisation: str) -> None:
    await store.apply(organisation, reserve("a", 100), NOW)
    step = replace(reserve("b", 10), not_after=NOW + SECOND)
    first = await store.apply(organisation, step, NOW)
    await store.apply(organisation, settle("a", 0), NOW)
    second = await store.apply(organisation, step, NOW + SECOND)

    assert (first.verdict, second.verdict, second.wait_us) == (Verdict.REFUSED, Verdict.REFUSED, first.wait_us)


async def test_an_extension_states_totals_so_a_lost_one_is_made_good(store: Store, organisation: str) -> None:
    await store.apply(organisation, reserve("a", 10, want=20), NOW)
    extension = Step("a", 4, (Claim(TOKENS, 25, 5, 1),), LEASE, want=10, force=True)  # 2 and 3 never arrived
    answer = await store.apply(organisation, extension, NOW)

    assert (answer.granted, answer.standings[0][0]) == (10, 60)


async def test_a_settlement_beyond_the_hold_leaves_a_debt(store: Store, organisation: str) -> None:
    await store.apply(organisation, reserve("a", 100), NOW)
    answer = await store.apply(organisation, settle("a", 130), NOW)

    assert answer.standings[0] == (-30, 78 * SECOND)


async def test_a_lease_that_ran_out_charges_the_slice_and_frees_the_gauge(store: Store, organisation: str) -> None:
    claims = (Claim(MONTH, 0, 10, 1), Claim(RUNNING, 0, 1))
    await store.apply(organisation, Step("a", 1, claims, LEASE, want=40), NOW)
    during = await store.apply(organisation, Step("b", 1, claims, LEASE), NOW + LEASE - 1)
    after = await store.apply(organisation, Step("c", 1, claims, 2 * LEASE), NOW + 2 * LEASE)

    assert [free for free, _ in during.standings] == [940, 0]
    assert [free for free, _ in after.standings] == [930, 1]

    late = await store.apply(
        organisation, Step("a", 2, (Claim(MONTH, 15), Claim(RUNNING)), 0, force=True), NOW + 2 * LEASE
    )

    assert [free for free, _ in late.standings] == [930, 1]  # charged already, and nothing is given back


async def test_an_ended_call_is_remembered_for_the_retention(store: Store, organisation: str) -> None:
    await store.apply(organisation, settle("a", 40, MONTH, seq=1), NOW)
    within = await store.apply(organisation, settle("a", 40, MONTH, seq=1), NOW + RETENTION_US - 1)
    after = await store.apply(organisation, settle("a", 40, MONTH, seq=1), NOW + RETENTION_US)

    assert [answer.standings[0][0] for answer in (within, after)] == [960, 920]


async def test_a_shadow_counts_and_tells_but_does_not_refuse(store: Store, organisation: str) -> None:
    shadow = Limit.bucket("shadow", 5, MINUTE, shadow=True)
    answer = await store.apply(organisation, reserve("a", 10, TOKENS, shadow), NOW)

    assert (answer.verdict, answer.shadowed, answer.standings[1][0]) == (Verdict.GRANTED, (1,), -5)


async def test_new_terms_hold_from_the_next_step_on(store: Store, organisation: str) -> None:
    await store.apply(organisation, settle("a", 90, seq=1), NOW)
    tighter = Limit.bucket("tokens", 7, MINUTE, capacity=50)
    answer = await store.apply(organisation, reserve("b", 1, tighter), NOW)

    assert (answer.verdict, answer.standings[0][0]) == (Verdict.REFUSED, -40)


async def test_organisations_do_not_see_each_other(store: Store, organisation: str) -> None:
    await store.apply(f"{organisation}-1", reserve("a", 100), NOW)

    assert (await store.apply(f"{organisation}-2", reserve("a", 100), NOW)).verdict is Verdict.GRANTED


async def test_many_at_once_are_let_in_to_the_token(store: Store, organisation: str) -> None:
    steps = [store.apply(organisation, reserve(f"c{number}", 7), NOW) for number in range(60)]
    answers = await asyncio.gather(*steps)

    assert sum(answer.verdict is Verdict.GRANTED for answer in answers) == 14


async def test_the_stores_own_clock_is_used_when_none_is_given(store: Store, organisation: str) -> None:
    answer = await store.apply(organisation, reserve("a", 10))

    assert answer.now <= store.clock(organisation) + SECOND
    assert store.clock(organisation) <= answer.now + MINUTE


@pytest.mark.parametrize("name", ["plain", "with {braces}", "mit Umläuten", "x" * 200, "a:b\r\nc"])
async def test_any_name_of_an_organisation_is_safe(store: Store, name: str) -> None:
    assert (await store.apply(name, reserve("a", 100))).verdict is Verdict.GRANTED
    assert (await store.apply(name, reserve("b", 100))).verdict is Verdict.REFUSED
