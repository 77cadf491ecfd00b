"""The aiohttp clients under test: event loops, sessions and servers."""

import asyncio
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
import uvloop

from creduse_aiohttp import AsyncCreduseClient
from creduse_sandbox import SandboxServer
from tests.common import KEY
from tests.servers import Behave as BehaveInThread
from tests.servers import RawServer
from tests.tls import client_context, server_context

Run = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run a test's coroutine on asyncio's own loop and on uvloop's."""
    factory = asyncio.new_event_loop if request.param == "asyncio" else uvloop.new_event_loop

    def run_it(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())

    return run_it


Connect = Callable[..., Any]


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


@pytest.fixture(scope="session")
def authority_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("authority") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


@pytest.fixture
def trusted(authority_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have clients with their own session trust the secure server."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority_file))


@pytest.fixture(scope="session")
def trust(authority: trustme.CA) -> ssl.SSLContext:
    """Return a client's context that trusts the secure server."""
    return client_context(authority)


class Raw:
    """A server on the client's own loop, which runs a function on each connection."""

    def __init__(self) -> None:
        self.base_url = ""
        self.connections = 0
        self.received: list[bytes] = []

    async def request(self, reader: asyncio.StreamReader, end: bytes = b"}") -> bytes:
        """Read one request; ``b""`` if the peer has gone."""
        try:
            self.received.append(await reader.readuntil(end))
        except asyncio.IncompleteReadError:
            return b""
        return self.received[-1]


Behave = Callable[[Raw, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
def raw() -> Callable[[Behave], Any]:
    @asynccontextmanager
    async def serve(behave: Behave) -> AsyncGenerator[Raw]:
        server = Raw()
        tasks: set[asyncio.Task[None]] = set()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            server.connections += 1
            try:
                await behave(server, reader, writer)
            except ConnectionError:
                pass
            finally:
                writer.close()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(connected(reader, writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        listening = await asyncio.start_server(accept, "127.0.0.1", 0)
        server.base_url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        try:
            yield server
        finally:
            listening.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(0)

    return serve


@pytest.fixture(params=["plain", "tls"])
def threaded(request: pytest.FixtureRequest, secure_context: ssl.SSLContext) -> Any:
    """Start a server of threads, which keeps running while the client's loop is blocked."""

    @contextmanager
    def start(behave: BehaveInThread) -> Generator[RawServer]:
        server = RawServer(behave, secure_context if request.param == "tls" else None)
        try:
            yield server
        finally:
            server.close()

    return start
