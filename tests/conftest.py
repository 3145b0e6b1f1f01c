"""What every test shares: the event loop that the product runs on."""

import asyncio

import pytest
import uvloop


@pytest.fixture(scope="session")
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    """Run every async test on uvloop."""
    return uvloop.EventLoopPolicy()
