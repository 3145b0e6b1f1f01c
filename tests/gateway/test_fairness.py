"""Fairness at the gate: who asks for twenty times its share, weights, and the bound over random arrivals."""

from collections import defaultdict
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.vacancy import Queue, Turn
from policies.account import Account
from policies.fairness import TokenCost
from policies.tenant import Terms
from tests.rig.shop import COMPLETION, Gate, Shop, Visit, arrivals, p99
from tests.rig.virtual_time import START, run_virtually

SLOTS, SERVICE_S = 100, 5.0
CAPACITY = SLOTS / SERVICE_S
SHARE = CAPACITY / 2
SECONDS = 60.0


def neighbours(*, noisy: bool, fair: bool = True) -> Gate:
    """One asks for a fifth of its share, the other, if noisy, for twenty times its; unfair: nobody tells them apart."""

    async def main() -> Gate:
        gate, rng = Gate(Shop(slots=SLOTS)), Random(11)
        wish = {"service_s": SERVICE_S, "spread": 0.2, "patience_s": 60.0}
        visits = [*arrivals(rng, SHARE / 5, START + 10, START + SECONDS, tenant="quiet", **wish)]
        if noisy:
            visits += arrivals(rng, 20 * SHARE, START, START + SECONDS, tenant="noisy", **wish)
        names = {} if fair else {"quiet": "same", "noisy": "same"}
        if names:
            visits = [
                Visit(each.at, "same", each.service_s, each.patience_s, 10 + (each.tenant == "quiet"))
                for each in visits
            ]
        await gate.open(visits)
        return gate

    return run_virtually(main())


@pytest.mark.fault_row(44)
def test_who_asks_twenty_times_its_share_does_not_keep_its_neighbour_waiting() -> None:
    alone, beside = neighbours(noisy=False), neighbours(noisy=True)
    quiet, noisy = beside.between(START, START + SECONDS, "quiet"), beside.between(START, START + SECONDS, "noisy")

    undisturbed = alone.between(START, START + SECONDS, "quiet")
    assert all(each.good for each in quiet)
    assert p99([each.seconds for each in quiet]) <= 1.2 * p99([each.seconds for each in undisturbed])
    assert sum(not each.good for each in noisy) > 0.8 * len(noisy)
    assert beside.goodput(START + 8, START + SECONDS) >= 0.95 * CAPACITY


@pytest.mark.fault_row(44, removed=True)
def test_where_nobody_tells_them_apart_it_does() -> None:
    """The control: the same arrivals, of one tenant."""
    beside = neighbours(noisy=True, fair=False)
    quiet = [each for each in beside.between(START + 20, START + SECONDS) if each.visit.tokens == 11]

    assert sum(not each.good for each in quiet) > 0.5 * len(quiet)


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_places_follow_the_weights_where_both_ask_for_more(weight: float) -> None:
    async def main() -> Gate:
        account = Account("acme")
        terms = {"heavy": Terms(account, weight=weight), "light": Terms(account)}
        gate, rng = Gate(Shop(slots=SLOTS), terms=terms), Random(5)
        wish = {"service_s": SERVICE_S, "patience_s": 60.0}
        await gate.open(
            [v for who in terms for v in arrivals(rng, 3 * CAPACITY, START, START + SECONDS, tenant=who, **wish)]
        )
        return gate

    gate = run_virtually(main())
    served = defaultdict(int)
    for at, call in gate.shop.served:
        if START + 15 <= at < START + SECONDS:
            served[call.tenant.id] += 1

    assert served["heavy"] / served["light"] == pytest.approx(weight, rel=0.1)


visits = st.lists(
    st.tuples(st.sampled_from("abc"), st.floats(0, 1.5), st.floats(0.05, 0.4), st.integers(1, 60)),
    min_size=20,
    max_size=120,
)


@settings(max_examples=60, deadline=None)
@given(visits, st.tuples(*[st.sampled_from([0.5, 1.0, 4.0])] * 3))
def test_of_any_two_that_wait_neither_gets_more_than_the_bound_ahead(
    asked: list[tuple[str, float, float, int]], chosen: tuple[float, float, float]
) -> None:
    """|W_f / w_f - W_g / w_g| <= 2 U / min(w), with U what one tenant's calls in the shop may still get."""
    slots, cost = 4, TokenCost()
    most = (60 * cost.input + COMPLETION * cost.output) * slots
    weights = dict(zip("abc", chosen, strict=True))
    got: dict[str, float] = defaultdict(float)
    begun: dict[tuple[str, str], dict[str, float]] = {}

    def look(queue: Queue) -> None:
        waiting = {turn.call.tenant.id for turn in queue._room}
        for f, g in (("a", "b"), ("a", "c"), ("b", "c")):
            if not {f, g} <= waiting:
                begun.pop((f, g), None)
                continue
            then = begun.setdefault((f, g), dict(got))
            ahead = [(got[each] - then.get(each, 0.0)) / weights[each] for each in (f, g)]
            assert abs(ahead[0] - ahead[1]) <= 2 * most / min(weights[f], weights[g])

    start, produced, join = Queue.start, Queue.produced, Queue.join

    def starting(queue: Queue, turn: Turn) -> bool:
        gone = start(queue, turn)
        if gone:
            got[turn.call.tenant.id] += turn.call.tokens.input * cost.input
        look(queue)
        return gone

    def producing(queue: Queue, call: object, tokens: int) -> None:
        produced(queue, call, tokens)  # type: ignore[arg-type]
        got[call.tenant.id] += tokens * cost.output  # type: ignore[attr-defined]
        look(queue)

    def joining(queue: Queue, call: object) -> Turn:
        turn = join(queue, call)  # type: ignore[arg-type]
        look(queue)
        return turn

    async def main() -> Gate:
        gate = Gate(Shop(slots=slots), terms={who: Terms(Account("acme"), weight=w) for who, w in weights.items()})
        await gate.open([Visit(START + at, who, service_s, 600.0, tokens) for who, at, service_s, tokens in asked])
        return gate

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Queue, "start", starting)
        patched.setattr(Queue, "produced", producing)
        patched.setattr(Queue, "join", joining)
        gate = run_virtually(main())

    assert gate.shop.leased == 0
    assert all(each.good for each in gate.outcomes) or gate.vacancy.num_shed
