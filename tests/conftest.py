"""What every test shares: the event loop that the product runs on, and property tests that give the same each time."""

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop
from hypothesis import settings


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run every async test on uvloop."""
    return {"uvloop": uvloop.new_event_loop}


def pytest_configure(config: pytest.Config) -> None:
    """Let property tests draw the same examples each time and look at no clock."""
    settings.register_profile("steady", deadline=None, derandomize=True)
    settings.load_profile("steady")
