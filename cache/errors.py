"""What can go wrong between us and a store.

StoreError
├── StoreUnavailable    no answer in time, no connection, or an answer that says: not now (`reason`, for metrics)
└── StoreMisused        the server refused a command as wrong: our defect or a foreign value under our key
"""


class StoreError(Exception):
    """The root. `reason` is a label of few values."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class StoreUnavailable(StoreError):
    """The store cannot decide now; whether the command was carried out is not known."""


class StoreMisused(StoreError):
    """The store says that the command itself is wrong; nothing was done."""
