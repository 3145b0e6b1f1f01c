"""The judge of quotas finds what is too much, to the token, and accuses nobody without proof."""

from random import Random

import pytest

from policies.bucket import Kind, Limit
from tests.rig.quota_checker import Use, worst_excess

SECOND = 1_000_000
MIDNIGHT = 1_790_035_200 * SECOND
BUCKET = Limit.bucket("bucket", 10, SECOND, capacity=50)  # ten a second, fifty at once


def at(moment: int, tokens: int) -> Use:
    return Use(moment, moment, tokens)


def test_a_bucket_may_be_used_up_and_what_flows_back_too() -> None:
    assert worst_excess(BUCKET, [at(0, 50), at(SECOND, 10), at(2 * SECOND, 10)]) is None


def test_one_token_too_many_is_found_in_the_window_where_it_is() -> None:
    quiet = [at(-100 * SECOND, 50), at(-50 * SECOND, 50)]
    excess = worst_excess(BUCKET, [*quiet, at(0, 50), at(SECOND, 11)])

    assert excess is not None
    assert (excess.since, excess.until, excess.used, excess.allowed) == (0, SECOND, 61, 60)


def test_who_may_have_used_them_earlier_or_later_is_not_accused() -> None:
    assert worst_excess(BUCKET, [at(0, 50), Use(-SECOND, SECOND, 20)]) is None
    assert worst_excess(BUCKET, [Use(0, SECOND, 50), Use(0, SECOND, 20)]) is not None


def test_a_run_that_a_bucket_allowed_is_never_accused_and_one_without_a_bucket_always_is() -> None:
    chance = Random(1)
    free, now, held, loose = 50.0, 0, [], []
    for _ in range(2000):
        step = chance.randrange(SECOND // 4)
        now, free = now + step, min(50.0, free + step * 10 / SECOND)
        tokens = chance.randrange(1, 30)
        loose.append(Use(now - chance.randrange(1000), now + chance.randrange(1000), tokens))
        if tokens <= free:
            free -= tokens
            held.append(Use(now - chance.randrange(SECOND), now + chance.randrange(SECOND), tokens))

    assert worst_excess(BUCKET, held) is None
    assert worst_excess(BUCKET, loose) is not None


def test_a_day_is_judged_from_midnight_to_midnight() -> None:
    day = Limit.budget("day", Kind.DAY, 100)
    evening, morning = at(MIDNIGHT - 1, 100), at(MIDNIGHT, 100)

    assert worst_excess(day, [evening, morning, Use(MIDNIGHT - 1, MIDNIGHT, 50)]) is None
    excess = worst_excess(day, [evening, morning, at(MIDNIGHT + 1, 1)])
    assert excess is not None
    assert (excess.used, excess.since) == (101, MIDNIGHT)


@pytest.mark.parametrize(("last", "found"), [(Use(30, 40, 1), None), (Use(19, 40, 1), 3)])
def test_a_gauge_is_judged_at_every_moment(last: Use, found: int | None) -> None:
    gauge = Limit.gauge("gauge", 2)
    excess = worst_excess(gauge, [Use(0, 20, 1), Use(10, 30, 1), last])

    assert (None if excess is None else excess.used) == found
