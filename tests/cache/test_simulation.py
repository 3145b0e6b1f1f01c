"""The protocol in a bad world: many seeds of the model, the same steps through Redis, and defects that both find.

More of it: `python -m tests.rig.quota_world --seeds 100000` and
`REPLAYED_SEEDS=1000 pytest tests/cache/test_simulation.py`.
"""

import os

import pytest
from msgspec.structs import replace

from cache.redis_store import RedisStore
from policies.reservation import Answer, Book, State, Step
from tests.rig.quota_world import Violation, World, simulate

SEEDS = 2_000
REPLAYED_SEEDS = int(os.environ.get("REPLAYED_SEEDS", "100"))

# Defects by what they do to the script's text.
PLANTED = {
    "a retry is taken for a new step": ("if record and seq == record[2] then", "if false then"),
    "a step after a later one counts": ("if seq < record[2] or", "if false or"),
    "what a crashed holder held is given back": ("level[SPENT] = level[SPENT] + held * level[UNIT]", ""),
    "a grave is not dug": (
        "store(KEYS[2], {CLOSED, seq, granted, bound, now + retention, {}, 0}, retention_ms)",
        "redis.call('DEL', KEYS[2])",
    ),
    "a late command counts": ("local late = not record and", "local late = false and"),
    "a limit is hit one early": ("if need > left and need > 0", "if need >= left and need > 0"),
    "a tick's refill is rounded": ("level[SPENT] - ticks * level[RATE]", "level[SPENT] - ticks * level[RATE] - 1"),
}


class ForgetsGraves(Book):
    """Forgets a call as soon as it has ended."""

    def _end(self, name: str, record: object, state: State, until: int) -> None:
        self.records.pop(name, None)


class NeverLate(Book):
    """Takes every command, however old."""

    def apply(self, step: Step, now: int) -> Answer:
        return super().apply(replace(step, not_after=0), now)


class GivesBack(Book):
    """Gives a crashed holder's slice back."""

    def _expire(self, now: int) -> None:
        spent = {key: level.spent for key, level in self.levels.items()}
        super()._expire(now)
        for key, level in self.levels.items():
            level.spent = min(level.spent, spent[key])


def test_no_seed_breaks_a_promise() -> None:
    for seed in range(SEEDS):
        simulate(seed)


@pytest.mark.parametrize("book", [ForgetsGraves, NeverLate, GivesBack])
def test_the_model_finds_a_planted_defect(book: type[Book]) -> None:
    def until_found() -> None:
        for seed in range(SEEDS):
            simulate(seed, book())

    with pytest.raises(Violation):
        until_found()


async def test_redis_answers_each_step_as_the_model_does(redis_store: RedisStore) -> None:
    for seed in range(REPLAYED_SEEDS):
        assert await disagreement(redis_store, simulate(seed), f"replay-{seed}") is None


@pytest.mark.parametrize("defect", PLANTED)
async def test_the_replay_finds_a_planted_defect(redis_store: RedisStore, defect: str) -> None:
    before, after = PLANTED[defect]
    assert before in redis_store.script.text.decode()
    redis_store.script = redis_store.script.replaced(before, after)

    found = [seed for seed in range(30) if await disagreement(redis_store, simulate(seed), f"{defect}-{seed}")]

    assert found != []


async def disagreement(store: RedisStore, world: World, organisation: str) -> str | None:
    """Take the world's steps in Redis, in the same order and at the same times; tell the first other answer."""
    for number, (step, now, expected) in enumerate(world.trace):
        answer = await store.apply(organisation, step, now)
        if answer != expected:
            return f"seed {world.seed}, step {number}: {step} at {now}: {answer}, expected {expected}"
    return None
