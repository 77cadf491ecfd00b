"""Fixtures of the kit's own tests."""

from collections.abc import Iterator

import pytest

from tests.sandbox.conformance_kit.broken import LEFT_OPEN
from tests.sandbox.conformance_kit.loops import Run, run_asyncio, run_trio


@pytest.fixture(params=[run_asyncio, run_trio])
def run(request: pytest.FixtureRequest) -> Run:
    """Run a coroutine function on each event loop."""
    loop: Run = request.param
    return loop


@pytest.fixture(autouse=True)
def left_open() -> Iterator[None]:
    """Close what a broken transport left open."""
    yield
    while LEFT_OPEN:
        transport = LEFT_OPEN.pop()
        for link in (*transport.idle, *transport.busy):
            link.sock.close()
