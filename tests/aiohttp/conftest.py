"""The aiohttp clients under test: event loops, sessions and servers."""

import asyncio
import ssl
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
import uvloop

from creduse_aiohttp import AsyncCreduseClient
from creduse_sandbox import SandboxServer
from tests.aiohttp.clients import Connect, Main, Run
from tests.common import KEY
from tests.servers import Start, raw_servers
from tests.tls import client_context, server_context


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run a test's coroutine on asyncio's own loop and on uvloop's."""
    factory = asyncio.new_event_loop if request.param == "asyncio" else uvloop.new_event_loop

    def run_it(main: Main) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())

    return run_it


@pytest.fixture(params=["own", "supplied"])
def connect(request: pytest.FixtureRequest) -> Connect:
    """Make a client, with its own session or a supplied one."""

    @asynccontextmanager
    async def make(base_url: str, **settings: Any) -> AsyncGenerator[AsyncCreduseClient]:
        if request.param == "own":
            async with AsyncCreduseClient(KEY, base_url=base_url, **settings) as client:
                yield client
            return
        async with (
            aiohttp.ClientSession() as session,
            AsyncCreduseClient(KEY, session, base_url=base_url, **settings) as client,
        ):
            yield client

    return make


@pytest.fixture
def server() -> Iterator[SandboxServer]:
    with SandboxServer() as running:
        yield running


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def secure_context(authority: trustme.CA) -> ssl.SSLContext:
    """Return a server's context."""
    return server_context(authority)


@pytest.fixture
def secure_server(secure_context: ssl.SSLContext) -> Iterator[SandboxServer]:
    """Start a sandbox that speaks TLS."""
    with SandboxServer(ssl_context=secure_context) as running:
        yield running


@pytest.fixture
def trusted(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have clients with their own session trust the secure server."""
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))


@pytest.fixture(scope="session")
def trust(authority: trustme.CA) -> ssl.SSLContext:
    """Return a client's context that trusts the secure server."""
    return client_context(authority)


@pytest.fixture
def raw() -> Iterator[Start]:
    """Start servers on sockets."""
    with raw_servers() as start:
        yield start


@pytest.fixture(params=["plain", "tls"])
def plain_and_tls(
    request: pytest.FixtureRequest, secure_context: ssl.SSLContext
) -> Iterator[Start]:
    """Start servers on sockets, without and with TLS."""
    with raw_servers(secure_context if request.param == "tls" else None) as start:
        yield start
