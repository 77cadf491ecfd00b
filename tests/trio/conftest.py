"""Fixtures of the tests of the trio client."""

import ssl
from collections.abc import Iterator

import pytest
import trustme

from creduse_sandbox import SandboxServer
from tests import tls
from tests.trio.wires import Site


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def server_context(authority: trustme.CA) -> ssl.SSLContext:
    context = tls.server_context(authority, "127.0.0.1", "::1", "localhost")
    context.set_alpn_protocols(["http/1.1"])
    return context


@pytest.fixture(scope="session")
def trust(authority: trustme.CA) -> ssl.SSLContext:
    """Return a client's context that trusts the authority of these tests."""
    context = tls.client_context(authority)
    context.set_alpn_protocols(["http/1.1"])
    return context


@pytest.fixture(params=["http", "https"])
def site(
    request: pytest.FixtureRequest, server_context: ssl.SSLContext, trust: ssl.SSLContext
) -> Iterator[Site]:
    secure = request.param == "https"
    with SandboxServer(ssl_context=server_context if secure else None) as server:
        yield Site(server, trust if secure else None)


@pytest.fixture
def server() -> Iterator[SandboxServer]:
    with SandboxServer() as running:
        yield running
