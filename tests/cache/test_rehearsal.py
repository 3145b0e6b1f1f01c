"""A rehearsed step is answered as the step itself would be, and leaves nothing behind; in memory and in Redis alike."""

import random

import pytest
from msgspec.structs import replace

from cache.embedded import EmbeddedStore
from cache.ledger import Ledger
from cache.redis_store import RedisStore
from cache.reservation import LimitExceeded
from cache.store import Store
from policies.bucket import NEVER, Kind, Limit
from policies.reservation import Answer, Claim, Step, Verdict
from tests.rig.limited import Clock, account, at_a_time, requests_a_minute, tokens_a_minute

NOW = 1_790_000_000_000_000
LIMITS = (
    Limit.bucket("fast", 700, 60_000_000),
    Limit.bucket("slow", 5000, 3_600_000_000, capacity=900),
    Limit.bucket("watched", 100, 60_000_000, shadow=True),
    Limit.budget("day", Kind.DAY, 20_000),
    Limit.gauge("running", 9),
)


def step_of(rng: random.Random, name: str) -> Step:
    """A first step of some call on some of the limits."""
    chosen = sorted(rng.sample(range(len(LIMITS)), rng.randint(1, len(LIMITS))))
    claims = []
    for index in chosen:
        limit = LIMITS[index]
        gauge = limit.kind is Kind.GAUGE
        claims.append(
            Claim(limit, 0 if gauge else rng.choice([0, 7]), 1 if gauge else rng.randint(0, 300), int(not gauge))
        )
    return Step(name, 1, tuple(claims), rng.choice([5_000_000, 30_000_000]), rng.randint(0, 256), rng.randint(0, 2))


def plain(answer: Answer) -> Answer:
    return replace(answer, waits=())


async def test_what_is_rehearsed_is_what_happens(store: Store, organisation: str) -> None:
    rng, now, verdicts = random.Random(7), NOW, set()
    for number in range(400):
        now += rng.choice([0, 1, 999, 1_000_000, 9_000_000])
        step = step_of(rng, f"c{number}")
        rehearsal = replace(step, id=f"r{number}", rehearsal=True)
        told = [await store.apply(organisation, rehearsal, now) for _ in range(3)]
        happened = await store.apply(organisation, step, now)

        assert [plain(answer) for answer in told] == [happened] * 3
        for claim, wait in zip(step.claims, told[0].waits, strict=True):
            if happened.verdict is Verdict.GRANTED and not claim.limit.shadow:
                assert wait == 0
        if happened.verdict is Verdict.REFUSED:
            assert told[0].waits[happened.limit] == happened.wait_us
        verdicts.add(happened.verdict)

    assert verdicts == {Verdict.GRANTED, Verdict.REFUSED}


async def test_both_stores_rehearse_alike(redis_store: RedisStore, organisation: str) -> None:
    rng, now, embedded = random.Random(8), NOW, EmbeddedStore()
    for number in range(300):
        now += rng.choice([0, 1, 999, 1_000_000])
        step = step_of(rng, f"c{number}")
        for each in (replace(step, id=f"r{number}", rehearsal=True), step):
            assert await redis_store.apply(organisation, each, now) == embedded.take(organisation, each, now)


async def test_each_limit_says_when_it_would_have_room(store: Store, organisation: str) -> None:
    claims = (Claim(LIMITS[0], 0, 701), Claim(LIMITS[2], 0, 100), Claim(LIMITS[4], 0, 9))
    told = await store.apply(organisation, Step("r", 1, claims, 1, rehearsal=True), NOW)

    assert told.waits == (NEVER, 0, 0)

    await store.apply(organisation, Step("c", 1, (Claim(LIMITS[2], 40),), 0, force=True), NOW)
    told = await store.apply(organisation, Step("r", 1, claims[1:], 1, rehearsal=True), NOW)

    assert (told.verdict, told.waits, told.shadowed) == (Verdict.GRANTED, (24_000_000, 0), (0,))


async def test_a_rehearsal_has_no_grave(store: Store, organisation: str) -> None:
    step = Step("c", 1, (Claim(LIMITS[0], 0, 700),), 1_000_000, not_after=NOW + 500_000)
    assert (await store.apply(organisation, replace(step, rehearsal=True), NOW)).verdict is Verdict.GRANTED
    assert (await store.apply(organisation, step, NOW)).verdict is Verdict.GRANTED

    other = replace(step, id="d")
    assert (await store.apply(organisation, replace(other, rehearsal=True), NOW)).verdict is Verdict.REFUSED
    await store.apply(organisation, Step("c", 2, (Claim(LIMITS[0]),), 0, force=True), NOW)
    assert (await store.apply(organisation, other, NOW)).verdict is Verdict.GRANTED


async def test_a_ledger_rehearses_without_charging_anybody() -> None:
    clock = Clock()
    limits = account(requests_a_minute(1), at_a_time(1), tokens_a_minute(100))
    async with Ledger(EmbeddedStore(clock), clock=clock) as ledger:
        trying = ledger.rehearsing()
        untouched = await ledger.look(limits)
        for name in "abc":
            async with (
                trying.allow(limits, name) as entry,
                trying.reserve(limits, name, input_tokens=60, max_output=90) as tokens,
            ):
                assert [standing.free for standing in entry.standings] == [0, 0]
                assert (tokens.granted, tokens.tight) == (40, limits.tokens[0].limit)
        assert await ledger.look(limits) == untouched

        async with ledger.allow(limits, "d"):
            with pytest.raises(LimitExceeded) as refused:
                await trying.allow(limits, "e").__aenter__()
            assert refused.value.wait_us == 60_000_000
        assert not trying._open
