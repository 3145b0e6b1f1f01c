"""Days and months as stretches of the store's clock, in UTC, by integers alone.

The same lines stand in `cache/lua/step.lua`, so that Redis decides on its own clock which month it is. The calendar is
Howard Hinnant's: years begin in March, so that the leap day is a year's last (howardhinnant.github.io/date_algorithms).
"""

DAY_US = 86_400_000_000


def day(now: int) -> tuple[int, int]:
    """Give the day that `now` (µs since 1970) lies in as [start, end)."""
    start = now - now % DAY_US
    return start, start + DAY_US


def month(now: int) -> tuple[int, int]:
    """Give the calendar month that `now` (µs since 1970) lies in as [start, end)."""
    shifted = now // DAY_US + 719_468  # days since 1 March of the year 0
    of_era = shifted % 146_097  # an era is 400 years
    year = (of_era - of_era // 1460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * year + year // 4 - year // 100)
    index = (5 * of_year + 2) // 153  # months since March
    first = (153 * index + 2) // 5
    if index < 11:
        length = (153 * (index + 1) + 2) // 5 - first
    else:  # February
        following = year + 1
        leap = following % 4 == 0 and (following % 100 != 0 or following % 400 == 0)
        length = 29 if leap else 28
    start = (shifted - of_year + first - 719_468) * DAY_US
    return start, start + length * DAY_US
