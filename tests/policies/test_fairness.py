"""Virtual token counters: the order among clients, and the bound on how unequally any two that wait are served."""

from collections import deque
from collections.abc import Iterator
from itertools import combinations
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.blocks import BlockPool
from engine.config import EngineConfig
from engine.order import FirstCome, Order
from engine.params import SamplingParams
from engine.scheduler import Scheduler
from engine.sequence import FinishReason, Sequence, Status
from policies.fairness import MAX_IDLE, FairOrder, TokenCost, VirtualTokenCounter
from tests.engine.scripted import ScriptedRunner

COST = TokenCost()


# The counters.


def test_who_has_had_least_for_its_weight_goes_first() -> None:
    counters = VirtualTokenCounter()
    counters.arrive("light", 1.0)
    counters.arrive("heavy", 3.0)
    counters.charge("light", 100)
    counters.charge("heavy", 240)

    assert (counters.rank("light"), counters.rank("heavy")) == (100, 80)


def test_nobody_saves_up_by_staying_away() -> None:
    counters = VirtualTokenCounter()
    counters.arrive("busy")
    counters.arrive("other")
    counters.charge("busy", 1000)
    counters.charge("other", 900)
    counters.arrive("late")

    assert counters.rank("late") == 900


def test_who_returns_is_not_set_back() -> None:
    counters = VirtualTokenCounter()
    counters.arrive("a")
    counters.start("a", 500)
    counters.arrive("b")
    counters.arrive("a")

    assert counters.rank("a") == 500
    assert counters.rank("b") == 500  # nobody waited: lifted to who was let in last


def test_whoever_still_waits_is_not_lifted_by_a_further_request() -> None:
    counters = VirtualTokenCounter()
    counters.arrive("slow")
    counters.arrive("quick")
    counters.charge("quick", 100)
    counters.arrive("slow")
    counters.leave("slow")
    counters.arrive("slow")

    assert counters.rank("slow") == 0


def test_the_lift_follows_those_who_wait_and_no_others() -> None:
    counters = VirtualTokenCounter()
    counters.arrive("gone")
    counters.arrive("here")
    counters.charge("here", 70)
    counters.leave("gone")
    counters.arrive("new")

    assert counters.rank("new") == 70


def test_clients_that_come_once_are_forgotten() -> None:
    counters = VirtualTokenCounter()
    for number in range(50_000):
        counters.arrive(f"c{number}")
        counters.start(f"c{number}", 10)
        counters.charge(f"c{number}", 10)

    assert counters.snapshot().clients <= 512
    counters.arrive("waits for ever")
    for number in range(50_000):
        counters.arrive(f"d{number}")
        counters.start(f"d{number}", 10)
    assert counters.snapshot().clients <= 2 * MAX_IDLE + 2


@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["arrive", "start", "leave", "charge"]), st.integers(0, 50)))
)
def test_the_lift_is_the_least_of_those_who_wait(actions: list[tuple[int, str, int]]) -> None:
    """Against the plain definition, which looks at everybody."""
    counters = VirtualTokenCounter()
    counter, waiting, last = dict.fromkeys("abcdef", 0.0), dict.fromkeys("abcdef", 0), 0.0
    for number, action, cost in actions:
        key = "abcdef"[number]
        if action == "arrive":
            if not waiting[key]:
                counter[key] = max(counter[key], min((counter[k] for k in counter if waiting[k]), default=last))
            waiting[key] += 1
            counters.arrive(key)
        elif not waiting[key]:
            continue
        elif action == "charge":
            counter[key] += cost
            counters.charge(key, cost)
        else:
            waiting[key] -= 1
            if action == "start":
                counter[key] += cost
                last = counter[key]
                counters.start(key, cost)
            else:
                counters.leave(key)

        assert all(counters.rank(k) == counter[k] for k in counter if waiting[k])


# The bound, against a server that lets in whoever is next while there is room, and whom nobody can overtake.

CLIENTS = ("a", "b", "c")
WEIGHTS = st.tuples(*[st.sampled_from([0.5, 1.0, 2.0, 5.0]) for _ in CLIENTS])


def demand(rng: Random) -> deque[tuple[int, str, int, int]]:
    """Draw when which client asks for how many tokens, in and out: some a little, some more than there is."""
    asked = []
    for client in CLIENTS:
        many, until = rng.choice([3, 40]), rng.choice([1, 100, 400])
        most_in, most_out = rng.choice([8, 60]), rng.choice([4, 30])
        asked += [
            (rng.randrange(until), client, rng.randint(1, most_in), rng.randint(1, most_out)) for _ in range(many)
        ]
    rng.shuffle(asked)
    return deque(sorted(asked, key=lambda request: request[0]))


class Books:
    """What each client got, and the most and least by which one was ahead while both had something waiting."""

    def __init__(self, weights: dict[str, float]) -> None:
        self.weights = weights
        self.served = dict.fromkeys(weights, 0.0)
        self._spread: dict[tuple[str, str], tuple[float, float]] = {}

    def look(self, waiting: set[str], most: float) -> None:
        """Check the bound, 2 U / min(w), over every stretch that ends now."""
        for f, g in combinations(self.weights, 2):
            if not {f, g} <= waiting:
                self._spread.pop((f, g), None)
                continue
            ahead = self.served[f] / self.weights[f] - self.served[g] / self.weights[g]
            low, high = self._spread.get((f, g), (ahead, ahead))
            low, high = self._spread[f, g] = min(low, ahead), max(high, ahead)
            assert high - low <= 2 * most / min(self.weights[f], self.weights[g]) + 1e-6


@given(st.integers(0, 2**32), WEIGHTS)
@settings(max_examples=200)
def test_no_two_that_wait_are_served_further_apart_than_the_bound(seed: int, chosen: tuple[float, ...]) -> None:
    serve(seed, chosen)


def test_in_order_of_arrival_they_are() -> None:
    """The control arm: the bound is one that the plain order breaks."""
    with pytest.raises(AssertionError):
        serve(0, (1.0, 1.0, 1.0), fair=False)


def serve(seed: int, chosen: tuple[float, ...], *, fair: bool = True) -> None:
    """Serve random demand to its end, and look at the books after every step."""
    memory = 100
    weights = dict(zip(CLIENTS, chosen, strict=True))
    counters, books = VirtualTokenCounter(), Books(weights)
    queues: dict[str, deque[tuple[int, int]]] = {client: deque() for client in CLIENTS}
    running: list[list[int | str]] = []
    arrivals, order = demand(Random(seed)), deque[str]()
    now, room = 0, memory
    while arrivals or running or any(queues.values()):
        while arrivals and arrivals[0][0] <= now:
            _, client, num_input, num_output = arrivals.popleft()
            queues[client].append((num_input, num_output))
            order.append(client)
            counters.arrive(client, weights[client])
        while waiting := [client for client in CLIENTS if queues[client]]:
            client = min(waiting, key=counters.rank) if fair else order[0]
            num_input, num_output = queues[client][0]
            if num_input + num_output > room:
                break
            queues[client].popleft()
            order.remove(client)
            room -= num_input + num_output
            running.append([client, num_output, num_input + num_output])
            counters.start(client, num_input * COST.input)
            books.served[client] += num_input * COST.input
        for entry in list(running):
            client, left, size = str(entry[0]), int(entry[1]), int(entry[2])
            counters.charge(client, COST.output)
            books.served[client] += COST.output
            entry[1] = left - 1
            if left == 1:
                running.remove(entry)
                room += size
        now += 1
        waits = {client for client in CLIENTS if queues[client]}
        books.look(waits, max(COST.input, COST.output) * memory)
        ranks = [counters.rank(client) for client in waits]
        if ranks:
            least_weight = min(weights[client] for client in waits)
            assert max(ranks) - min(ranks) <= 2 * COST.output * memory / least_weight + 1e-6


# In the engine's own scheduler.


def engine(order: Order, *, num_blocks: int = 512, max_sequences: int = 4) -> tuple[Scheduler, ScriptedRunner]:
    runner = ScriptedRunner(num_blocks=num_blocks, max_model_len=512)
    config = EngineConfig(max_batch_tokens=64, max_sequences=max_sequences, max_prefill_chunk=32)
    pool = BlockPool(num_blocks, runner.block_size)
    return Scheduler(config, pool, runner.max_model_len, order, runner.forget), runner


def step(scheduler: Scheduler, runner: ScriptedRunner) -> None:
    batch = scheduler.schedule()
    if batch is not None:
        scheduler.commit(batch, runner.run(batch))


def sequences(rng: Random) -> Iterator[Sequence]:
    """An endless line of different prompts."""
    number = 0
    while True:
        number += 1
        prompt = [rng.randrange(1000) for _ in range(rng.randint(1, 60))]
        yield Sequence(
            f"r{number}", 0, prompt, len(prompt), SamplingParams(max_tokens=rng.randint(1, 30), temperature=0.0)
        )


@given(st.integers(0, 2**32), WEIGHTS, st.booleans())
@settings(max_examples=60)
def test_the_engine_holds_the_bound_with_aborts_and_preemptions(
    seed: int, chosen: tuple[float, ...], cramped: bool
) -> None:
    run_engine(FairOrder(), seed, chosen, cramped=cramped)


def test_the_engine_without_a_fair_order_does_not() -> None:
    with pytest.raises(AssertionError):
        run_engine(FirstCome(), 0, (1.0, 1.0, 1.0), cramped=False)


def run_engine(order: Order, seed: int, chosen: tuple[float, ...], *, cramped: bool) -> None:
    """Run random demand to its end, some of it aborted, and look at the books after every step."""
    weights = dict(zip(CLIENTS, chosen, strict=True))
    rng, books = Random(seed), Books(weights)
    scheduler, runner = engine(order, num_blocks=12 if cramped else 512)
    arrivals, known = demand(rng), 0
    alive: list[Sequence] = []
    admitted: set[Sequence] = set()
    now = 0
    while arrivals or scheduler.has_work:
        while arrivals and arrivals[0][0] <= now:
            _, client, num_input, num_output = arrivals.popleft()
            known += 1
            prompt = [rng.randrange(1000) for _ in range(num_input)]
            params = SamplingParams(max_tokens=num_output, temperature=0.0)
            sequence = Sequence(f"r{known}", 0, prompt, num_input, params, order_key=client, weight=weights[client])
            scheduler.add([sequence])
            alive.append(sequence)
        if alive and rng.random() < 0.02:
            victim = rng.choice(alive)
            if victim.status is not Status.FINISHED:
                scheduler.finish(victim, FinishReason.ABORT)
        step(scheduler, runner)
        now += 1
        admitted.update(s for s in alive if s.status is Status.RUNNING or s.num_generated)
        books.served = dict.fromkeys(CLIENTS, 0.0)
        for sequence in admitted:
            books.served[sequence.order_key] += (sequence.num_prompt - sequence.num_cached) * COST.input
            books.served[sequence.order_key] += sequence.num_generated * COST.output
        waits = {s.order_key for s in alive if s.status is Status.WAITING and s not in admitted}
        books.look(waits, 60 * COST.input + 4 * 30 * COST.output)

    assert all(sequence.finish is not None for sequence in alive)


def first_token_steps(order: Order, flood: int) -> list[int]:
    """How many steps a neighbour waits for each first token, who asks every 40 steps, beside a flood."""
    scheduler, runner = engine(order)
    source = sequences(Random(6))
    waits: list[int] = []
    asked: list[tuple[int, Sequence]] = []
    for now in range(1200):
        for _ in range(flood if now % 20 == 0 else 0):
            sequence = next(source)
            sequence.order_key = "flood"
            scheduler.add([sequence])
        if now % 40 == 5:
            sequence = next(source)
            sequence.order_key = "neighbour"
            scheduler.add([sequence])
            asked.append((now, sequence))
        step(scheduler, runner)
        for begun, sequence in list(asked):
            if sequence.num_generated:
                waits.append(now - begun)
                asked.remove((begun, sequence))
    return sorted(waits + [1200 - begun for begun, _ in asked])


def test_a_neighbour_of_a_flood_waits_for_a_place_and_not_for_the_flood() -> None:
    fair, unfair = first_token_steps(FairOrder(), 20), first_token_steps(FirstCome(), 20)

    assert fair[-1] <= 20  # a place becomes free
    assert unfair[len(unfair) // 2] > 100


def test_places_that_become_free_in_one_step_do_not_all_go_to_one_client() -> None:
    scheduler, runner = engine(FairOrder(), max_sequences=4)
    source = sequences(Random(8))
    for client in "aaaabbbb":
        sequence = next(source)
        sequence.token_ids, sequence.num_prompt, sequence.order_key = [1] * 8, 8, client
        sequence.params = SamplingParams(max_tokens=20)
        scheduler.add([sequence])
    step(scheduler, runner)

    assert sorted(sequence.order_key for sequence in scheduler.running) == ["a", "a", "b", "b"]


def test_what_the_prefix_cache_knew_and_what_is_computed_again_costs_nobody_anything() -> None:
    order = FairOrder()
    scheduler, runner = engine(order, max_sequences=2)
    params = SamplingParams(max_tokens=1, temperature=0.0)
    for number in range(2):
        scheduler.add([Sequence(f"r{number}", 0, list(range(64)), 64, params, order_key="a")])
        while scheduler.has_work:
            step(scheduler, runner)

    assert order.snapshot()[0].least == (64 + 2) + (64 - 48 + 2)  # the second found three blocks of four


def test_whoever_leaves_before_being_let_in_is_charged_nothing() -> None:
    scheduler, runner = engine(order := FairOrder(), max_sequences=1)
    source = sequences(Random(9))
    first, second, third = next(source), next(source), next(source)
    for sequence in (first, second, third):
        sequence.order_key = "a"
        scheduler.add([sequence])
    step(scheduler, runner)
    scheduler.finish(second, FinishReason.ABORT)
    while scheduler.has_work:
        step(scheduler, runner)
    paid = sum(each.num_prompt * COST.input + each.num_generated * COST.output for each in (first, third))

    assert order.snapshot()[0].least == paid


def test_priorities_have_counters_of_their_own() -> None:
    order = FairOrder()
    params = SamplingParams(max_tokens=1)
    low = Sequence("l", 0, [1], 1, params, priority=0, order_key="a")
    high = Sequence("h", 0, [1], 1, params, priority=1, order_key="a")
    order.arrived(low)
    order.arrived(high)
    order.served(high, 1, 5)

    assert order.lane(low) != order.lane(high)
    assert (order.rank(order.lane(low)), order.snapshot()[1].clients) == (0, 1)


def test_lanes_that_nobody_waits_in_are_forgotten() -> None:
    scheduler, runner = engine(order := FairOrder())
    for number in range(3000):
        params = SamplingParams(max_tokens=1, temperature=0.0)
        scheduler.add([Sequence(f"r{number}", 0, [1, 2], 2, params, order_key=f"client {number}")])
        step(scheduler, runner)

    assert len(order._lanes) <= 512
    assert order.snapshot()[0].clients <= 1024


@pytest.mark.parametrize("wrong", [(-1.0, 1.0), (0.0, 0.0)])
def test_a_cost_is_not_negative(wrong: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        TokenCost(*wrong)
