"""What a scope owes to what was entered on it."""

import asyncio
from types import TracebackType

import pytest

from gateway.scope import Scope


class Noted:
    """A context that writes down when it was left and why; it may fail at that."""

    def __init__(self, name: str, order: list[tuple[str, object]], failing: BaseException | None = None) -> None:
        self.name = name
        self.order = order
        self.failing = failing

    async def __aenter__(self) -> str:
        return self.name

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        assert kind is (None if error is None else type(error))
        self.order.append((self.name, error))
        if self.failing is not None:
            raise self.failing
        return True


async def test_what_was_entered_last_is_left_first() -> None:
    order: list[tuple[str, object]] = []
    async with Scope() as scope:
        assert await scope.enter(Noted("a", order)) == "a"
        scope.push(Noted("b", order))
        inner = Scope()
        scope.push(inner)
        inner.push(Noted("c", order))
        assert order == []

    assert order == [("c", None), ("b", None), ("a", None)]


async def test_an_error_is_told_to_all_and_swallowed_by_none() -> None:
    order: list[tuple[str, object]] = []
    error = KeyError("x")
    scope = Scope()
    scope.push(Noted("a", order))
    scope.push(Noted("b", order))
    with pytest.raises(KeyError):
        async with scope:
            raise error

    assert order == [("b", error), ("a", error)]


async def test_a_context_that_fails_keeps_none_from_being_left() -> None:
    order: list[tuple[str, object]] = []
    first, second, third = KeyError("body"), ValueError("b"), OSError("a")
    scope = Scope()
    for context in (
        Noted("0", order),
        Noted("a", order, third),
        Noted("b", order, second),
        Noted("c", order),
    ):
        scope.push(context)
    with pytest.raises(OSError, match="a") as caught:
        async with scope:
            raise first

    assert order == [("c", first), ("b", first), ("a", second), ("0", third)]
    assert caught.value.__context__ is second
    assert second.__context__ is first


async def test_who_cannot_enter_is_not_left() -> None:
    order: list[tuple[str, object]] = []

    class Unwilling(Noted):
        async def __aenter__(self) -> str:
            raise KeyError(self.name)

    async with Scope() as scope:
        scope.push(Noted("a", order))
        with pytest.raises(KeyError):
            await scope.enter(Unwilling("b", order))

    assert [name for name, _ in order] == ["a"]


async def test_a_cancelled_unwinding_still_unwinds_the_rest() -> None:
    order: list[tuple[str, object]] = []
    begun = asyncio.Event()

    class Slow(Noted):
        async def __aexit__(
            self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
        ) -> bool:
            begun.set()
            await asyncio.Event().wait()
            return False

    async def run() -> None:
        async with Scope() as scope:
            scope.push(Noted("a", order))
            scope.push(Slow("b", order))

    task = asyncio.create_task(run())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert [(name, type(error)) for name, error in order] == [("a", asyncio.CancelledError)]
