"""What people write for rates, money and moments, and the exact numbers that they mean.

Money is counted in billionths of a US dollar, as integers: a token for $0.10 a million costs 100 of them. What would
need a fraction is refused; nothing is rounded.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime

from policies.bucket import EXACT, Kind

NANO = 1_000_000_000
MILLION = 1_000_000
MAX_PRICE = 10_000  # US dollars per million tokens; keeps the cost of any prompt within what stores count exactly
UNITS_US = {"s": 1_000_000, "min": 60_000_000, "h": 3_600_000_000}
LONGEST_US = 31 * 24 * UNITS_US["h"]

PERIOD = r"(?:[1-9][0-9]{0,6})?(?:s|min|h)|day|month"
WHOLE = r"[0-9]+(?:_[0-9]+)*"
DECIMAL = rf"{WHOLE}(?:\.[0-9]+)?"
RATE = rf"^({WHOLE})/({PERIOD})$"
SPENDING = rf"^({DECIMAL})/({PERIOD})$"
MOMENT = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?(Z|[+-][0-9]{2}:[0-9]{2}))?$"
MAX_CHARS = 40  # of a number; longer ones are no amounts, and are not even looked at


@dataclass(frozen=True, slots=True)
class Period:
    """In what time a limit comes back: `us` of a bucket, or a UTC calendar day or month. `name` is its one spelling."""

    name: str
    kind: Kind
    us: int = 0

    @classmethod
    def from_text(cls, text: str) -> "Period":
        """Read `s`, `10s`, `min`, `h`, `day`, `month`. Raises `ValueError`."""
        if text in ("day", "month"):
            return cls(text, Kind.DAY if text == "day" else Kind.MONTH)
        unit = text.lstrip("0123456789")
        us = int(text.removesuffix(unit) or 1) * UNITS_US[unit]
        if us > LONGEST_US:
            raise ValueError("a period longer than 31 days")
        unit = next(unit for unit in ("h", "min", "s") if us % UNITS_US[unit] == 0)
        count = us // UNITS_US[unit]
        return cls(unit if count == 1 else f"{count}{unit}", Kind.BUCKET, us)


@dataclass(frozen=True, slots=True)
class Rate:
    """so many a period, like 600/min, 2/10s or 5_000_000/day (s, min, h, and the UTC calendar's day and month)."""

    amount: int
    period: Period

    @classmethod
    def from_text(cls, text: str) -> "Rate":
        """Read a rate. Raises `ValueError`."""
        amount, period = _per(text, RATE, cls)
        return cls(_positive(_whole(amount, 0, text, cls), text, cls), period)


@dataclass(frozen=True, slots=True)
class Spending:
    """US dollars a period, like 20/day or 0.50/h (s, min, h, and the UTC calendar's day and month)."""

    amount: int  # billionths
    period: Period

    @classmethod
    def from_text(cls, text: str) -> "Spending":
        """Read so much money a period. Raises `ValueError`."""
        amount, period = _per(text, SPENDING, cls)
        return cls(_positive(_whole(amount, 9, text, cls), text, cls), period)


@dataclass(frozen=True, slots=True)
class TokenPrice:
    """US dollars per million tokens, like 0.10, in steps of 0.001."""

    nano: int  # billionths of a dollar a token

    @classmethod
    def from_text(cls, text: str) -> "TokenPrice":
        """Read a price. Raises `ValueError`."""
        if len(text) > MAX_CHARS or re.fullmatch(DECIMAL, text) is None:
            raise _unlike(text, cls)
        try:
            nano = _whole(text, 3, text, cls)
        except ValueError:
            message = f"got {text!r}; a token's price is a whole number of billionths of a dollar, so steps of 0.001"
            raise ValueError(message) from None
        if nano > MAX_PRICE * NANO // MILLION:
            raise ValueError(f"got {text!r}, expected at most {MAX_PRICE} US dollars per million tokens")
        return cls(nano)


@dataclass(frozen=True, slots=True)
class Amount:
    """a number above 0, in what the limit counts (US dollars for `cost`)."""

    text: str

    @classmethod
    def from_text(cls, text: str) -> "Amount":
        """Read a number. Raises `ValueError`."""
        if len(text) > MAX_CHARS or re.fullmatch(DECIMAL, text) is None or not text.strip("0_."):
            raise _unlike(text, cls)
        return cls(text)

    def scaled(self, digits: int) -> int:
        """Give it in units of 10^-digits. Raises `ValueError` where it is finer, or too much to be counted."""
        return _whole(self.text, digits, self.text, Amount)


@dataclass(frozen=True, slots=True)
class Moment:
    """a moment like 2027-01-31T12:00:00Z, or a day like 2027-01-31, which begins at midnight UTC."""

    unix_s: float

    @classmethod
    def from_text(cls, text: str) -> "Moment":
        """Read an RFC 3339 timestamp or a date. Raises `ValueError`."""
        if re.fullmatch(MOMENT, text) is None:
            raise _unlike(text, cls)
        try:
            moment = datetime.fromisoformat(text)
            return cls((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
        except (ValueError, OverflowError):
            raise _unlike(text, cls) from None


def _per(text: str, pattern: str, kind: type) -> tuple[str, Period]:
    """Take `AMOUNT/PERIOD` apart."""
    match = re.fullmatch(pattern, text) if len(text) <= MAX_CHARS else None
    if match is None:
        raise _unlike(text, kind)
    try:
        return match[1], Period.from_text(match[2])
    except ValueError:
        raise _unlike(text, kind) from None


def _whole(decimal: str, digits: int, text: str, kind: type) -> int:
    """Give a decimal number in units of 10^-digits, exactly."""
    whole, _, fraction = decimal.replace("_", "").partition(".")
    if fraction[digits:].strip("0"):
        raise _unlike(text, kind)
    value = int(whole + fraction[:digits].ljust(digits, "0"))
    if value > EXACT:
        raise ValueError(f"got {text!r}, expected at most {EXACT // 10**digits:_}")
    return value


def _positive(amount: int, text: str, kind: type) -> int:
    if amount < 1:
        raise ValueError(f"got {text!r}, expected an amount above 0; what nobody may use is left out of `models`")
    return amount


def _unlike(text: str, kind: type) -> ValueError:
    got = text if len(text) <= MAX_CHARS else text[:MAX_CHARS] + "…"
    return ValueError(f"got {got!r}, expected {(kind.__doc__ or '').rstrip('.')}")
