"""Whether new requests should be sent here, and if not, why not."""

from collections.abc import Callable

Hindrance = Callable[[], str | None]


class Readiness:
    """Asks everybody who may know of a hindrance; the first that is told is the reason."""

    def __init__(self) -> None:
        self._hindrances: list[Hindrance] = []

    def ask(self, hindrance: Hindrance) -> None:
        """Ask this one too, from now on. It gives None while nothing stands in the way."""
        self._hindrances.append(hindrance)

    def reason(self) -> str | None:
        """Give what stands in the way; None where nothing does."""
        return next((reason for ask in self._hindrances if (reason := ask()) is not None), None)
