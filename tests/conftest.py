"""Fixtures of all tests."""

import gc
import signal
import warnings
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> Iterator[None]:
    """Enable SIGINT here and in subprocesses: a shell disables it for background jobs."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def leaks() -> Iterator[None]:
    """Ignore sockets that the test leaks, and collect them before the next test begins."""
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        yield
        gc.collect()
