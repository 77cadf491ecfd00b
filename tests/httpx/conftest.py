"""Fixtures of the tests of the httpx clients."""

from collections.abc import Iterator

import pytest

from creduse_sandbox import SandboxServer
from tests.httpx.harness import Harness
from tests.servers import Start, raw_servers

KINDS = [
    (runner, supplied)
    for runner in ("sync", "asyncio", "trio")
    for supplied in ("own", "httpx", "httpx2")
]


@pytest.fixture(params=KINDS, ids="-".join)
def harness(request: pytest.FixtureRequest) -> Harness:
    return Harness(*request.param)


SUPPLIED = [kind for kind in KINDS if kind[1] != "own"]


@pytest.fixture(params=SUPPLIED, ids="-".join)
def supplied(request: pytest.FixtureRequest) -> Harness:
    return Harness(*request.param)


@pytest.fixture(params=["sync", "asyncio", "trio"])
def own(request: pytest.FixtureRequest) -> Harness:
    """Return the kinds with connections of their own."""
    return Harness(request.param, "own")


@pytest.fixture(params=["asyncio", "trio"])
def on_a_loop(request: pytest.FixtureRequest) -> Harness:
    """Return the kinds that run on an event loop, with connections of their own."""
    return Harness(request.param, "own")


@pytest.fixture
def server() -> Iterator[SandboxServer]:
    with SandboxServer() as running:
        yield running


@pytest.fixture
def raw() -> Iterator[Start]:
    """Start servers on sockets."""
    with raw_servers() as start:
        yield start
