"""What a call may use and is charged, whichever way it ends, over both stores."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from cache.embedded import EmbeddedStore
from cache.errors import StoreUnavailable
from cache.ledger import Ledger
from cache.reservation import LimitExceeded, Reservation
from cache.store import Store
from policies.account import Account, OnFailure
from policies.bucket import Kind, Limit
from policies.holder import Rule
from policies.reservation import Answer, Step

DAY = Limit.budget("day", Kind.DAY, 1000)
COST = Limit.budget("cost", Kind.MONTH, 10**12)
REQUESTS = Limit.bucket("requests", 3, 3600_000_000)
RUNNING = Limit.gauge("running", 2)


@pytest.fixture
def account(organisation: str) -> Account:
    tokens = (Rule(DAY, input=1, cached=1, output=1), Rule(COST, input=300, cached=30, output=1200))
    return Account(organisation, (Rule(REQUESTS, call=1), Rule(RUNNING, call=1)), tokens, slice=16)


@pytest.fixture
async def ledger(store: Store) -> AsyncIterator[Ledger]:
    async with Ledger(store, close_s=10.0) as ledger:
        yield ledger


async def free(ledger: Ledger, account: Account) -> list[int]:
    """Tell what is left of each limit of the account."""
    return [standing.free for standing in await ledger.look(account)]


async def settled(ledger: Ledger) -> None:
    """Wait until everything off the callers' paths is done."""
    while ledger.tasks:
        await asyncio.wait(ledger.tasks)


async def stream(reservation: Reservation, tokens: int) -> int:
    """Produce as an engine does, one token at a time and none past the edge; tell how many it came to."""
    for produced in range(tokens):
        if not reservation.room() and not await reservation.more():
            return produced
        reservation.count(1)
        await asyncio.sleep(0)
    return tokens


async def test_a_call_is_charged_what_it_used_to_the_token(ledger: Ledger, account: Account) -> None:
    async with (
        ledger.allow(account, "a"),
        ledger.reserve(account, "a", input_tokens=100, cached_tokens=40, max_output=500) as reservation,
    ):
        assert await stream(reservation, 75) == 75
    await settled(ledger)

    assert await free(ledger, account) == [2, 2, 825, 10**12 - 60 * 300 - 40 * 30 - 75 * 1200]


async def test_a_long_answer_does_not_lock_the_quota_up(ledger: Ledger, account: Account) -> None:
    async with ledger.reserve(account, "a", input_tokens=100, max_output=900) as reservation:
        assert (await free(ledger, account))[2] == 900 - 16
        await stream(reservation, 50)
        await settled(ledger)

        assert (await free(ledger, account))[2] >= 850 - 2 * 16


async def test_a_stream_stops_at_the_edge_and_never_past_it(ledger: Ledger, account: Account) -> None:
    async with ledger.reserve(account, "a", input_tokens=900, max_output=None) as reservation:
        assert await stream(reservation, 10_000) == 100
        assert reservation.edge == DAY
    await settled(ledger)

    assert (await free(ledger, account))[2] == 0


async def test_streams_that_share_an_edge_come_to_exactly_it(ledger: Ledger, account: Account) -> None:
    async def one(name: str) -> int:
        async with ledger.reserve(account, name, input_tokens=10, max_output=None) as reservation:
            return 10 + await stream(reservation, 10_000)

    used = await asyncio.gather(*[one(f"c{number}") for number in range(9)])
    await settled(ledger)

    assert sum(used) <= 1000
    assert (await free(ledger, account))[2] == 1000 - sum(used)


async def test_the_output_bound_holds_before_the_quota_does(ledger: Ledger, account: Account) -> None:
    async with ledger.reserve(account, "a", input_tokens=1, max_output=20) as reservation:
        assert await stream(reservation, 100) == 20
        assert reservation.edge is None


async def test_a_refusal_names_the_limit_what_is_left_and_when(ledger: Ledger, account: Account) -> None:
    for name in "abc":
        async with ledger.allow(account, name):
            pass
        await settled(ledger)
    with pytest.raises(LimitExceeded) as refusal:
        async with ledger.allow(account, "d"):
            pass

    assert refusal.value.limit == REQUESTS
    assert refusal.value.free == 0
    assert refusal.value.wait_us is not None
    assert 0 < refusal.value.wait_us <= 1_200_000_000
    assert await free(ledger, account) == [0, 2, 1000, 10**12]


async def test_what_can_never_fit_has_no_time_to_come_back(ledger: Ledger, account: Account) -> None:
    with pytest.raises(LimitExceeded) as refusal:
        async with ledger.reserve(account, "a", input_tokens=1000, max_output=5):
            pass

    assert refusal.value.wait_us is None


async def test_calls_at_the_same_time_are_counted_and_freed(ledger: Ledger, account: Account) -> None:
    async with ledger.allow(account, "a"), ledger.allow(account, "b"):
        with pytest.raises(LimitExceeded, match="running"):
            await ledger.allow(account, "c").__aenter__()
    await settled(ledger)
    async with ledger.allow(account, "d"):
        pass


@pytest.mark.parametrize("ending", [ValueError, asyncio.CancelledError])
async def test_every_ending_settles(ledger: Ledger, account: Account, ending: type[BaseException]) -> None:
    async def call() -> None:
        async with ledger.reserve(account, "a", input_tokens=100, max_output=500) as reservation:
            await stream(reservation, 3)
            raise ending

    with pytest.raises(ending):
        await call()
    await settled(ledger)

    assert (await free(ledger, account))[2] == 897


async def test_estimates_are_held_and_the_upstreams_usage_is_charged(ledger: Ledger, account: Account) -> None:
    async with ledger.reserve(account, "a", input_tokens=100, max_output=100, exact=False) as reservation:
        await stream(reservation, 40)
        await settled(ledger)
        reservation.usage(input_tokens=80, cached_tokens=0, output_tokens=45)
    await settled(ledger)

    assert (await free(ledger, account))[2] == 1000 - 125


async def test_an_account_without_limits_is_not_held_up(ledger: Ledger, organisation: str) -> None:
    free_account = Account(organisation)
    async with (
        ledger.allow(free_account, "a"),
        ledger.reserve(free_account, "a", input_tokens=10**9, max_output=None) as reservation,
    ):
        assert await stream(reservation, 1000) == 1000


async def test_headers_can_tell_what_is_left_after_the_reservation(ledger: Ledger, account: Account) -> None:
    async with ledger.reserve(account, "a", input_tokens=100, max_output=5) as reservation:
        assert [standing.free for standing in reservation.standings] == [895, 10**12 - 100 * 300 - 5 * 1200]


class Clock:
    """Time that stands still until it is told otherwise."""

    def __init__(self) -> None:
        self.now = 1_790_000_000_000_000

    def __call__(self) -> int:
        return self.now


async def test_a_stalled_call_loses_its_slice_and_goes_on_with_another(organisation: str, account: Account) -> None:
    clock = Clock()
    store = EmbeddedStore(clock)
    async with (
        Ledger(store, clock=clock) as ledger,
        ledger.reserve(account, "a", input_tokens=100, max_output=500) as reservation,
    ):
        await stream(reservation, 4)
        clock.now += 31_000_000

        assert reservation.room() == 0

        await free(ledger, account)
        assert await stream(reservation, 20) == 20
        assert (await free(ledger, account))[2] == 1000 - 100 - 4 - 12 - 20 - reservation.holder.in_hand


class Silent:
    """A store that never answers in time; `asked` counts how often it was asked."""

    asked = 0

    async def apply(self, organisation: str, step: Step, now: int | None = None) -> Answer:
        self.asked += 1
        raise StoreUnavailable("no answer in time", reason="timeout")

    def clock(self, organisation: str) -> int:
        return 0

    async def probe(self) -> None:
        raise StoreUnavailable("no answer in time", reason="timeout")

    async def aclose(self) -> None:
        pass


async def test_a_call_that_was_let_in_without_the_store_does_not_wait_for_it_again(account: Account) -> None:
    local = replace(account, on_failure=OnFailure.LOCAL)
    async with Ledger(store := Silent(), close_s=0.0) as ledger, ledger.allow(local, "call") as entry:
        asked = store.asked
        async with ledger.reserve(local, "call", input_tokens=10, max_output=5, apart=entry.degraded) as reservation:
            assert (entry.degraded, reservation.degraded, reservation.room()) == (True, True, 5)
            assert (ledger.health.up, store.asked) == (True, asked)
