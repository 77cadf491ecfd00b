"""Every client, in every way to use it: the rows that one suite runs over."""

import asyncio
import importlib.util
import os
import ssl
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import aiohttp
import httpx
import httpx2
import pytest
import requests
import trio
import uvloop

import creduse_aiohttp
import creduse_trio
from creduse import AsyncCreduseClient, Attempt, CreduseClient
from creduse_core import AsyncCoreClient, CoreClient, CreduseProtocol, Pace
from creduse_httpx._own import AsyncOwnTransport, TransportFactory
from creduse_sandbox.conformance import AsyncConnect, Limit

if TYPE_CHECKING:
    from types import ModuleType

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}

Listener: TypeAlias = Callable[[Attempt], object] | None
OpenSync: TypeAlias = Callable[
    [CreduseProtocol, ssl.SSLContext, Pace | None], AbstractContextManager[CoreClient]
]
OpenAsync: TypeAlias = Callable[
    [CreduseProtocol, ssl.SSLContext, Pace | None, Listener, int],
    AbstractAsyncContextManager[AsyncCoreClient],
]
Marks: TypeAlias = tuple[pytest.MarkDecorator, ...]


@dataclass(frozen=True)
class Authority:
    """A certificate authority: the TLS context that trusts it, and its certificates of servers."""

    trust: ssl.SSLContext
    certificates: Mapping[str, ssl.SSLContext]
    file: Path

    def certificate(self, name: str | None) -> ssl.SSLContext | None:
        """Return the TLS context of a server; without a name ``None``, for plain HTTP."""
        return None if name is None else self.certificates[name]


@dataclass(frozen=True)
class Sync:
    """A way to make a synchronous client.

    The arguments of ``make`` are a protocol, a TLS context and a pace.
    """

    name: str
    make: OpenSync
    limits: tuple[Limit, ...] = ()
    marks: Marks = ()

    def open(
        self, protocol: CreduseProtocol, trust: ssl.SSLContext, pace: Pace | None = None
    ) -> AbstractContextManager[CoreClient]:
        """Make a client."""
        return self.make(protocol, trust, pace)


@dataclass(frozen=True)
class Async:
    """A way to make an asynchronous client, and the event loop that runs it.

    The arguments of ``make`` are a protocol, a TLS context, a pace, a function to call after each
    attempt, and the size of the connection pool.
    """

    name: str
    loop: str
    make: OpenAsync
    limits: tuple[Limit, ...] = ()
    marks: Marks = ()

    def run(self, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a test's coroutine."""
        if self.loop == "trio":
            trio.run(main)
        else:
            with asyncio.Runner(loop_factory=LOOPS[self.loop]) as runner:
                runner.run(main())

    def tasks(self) -> int:
        """Return the number of tasks on the running loop."""
        if self.loop == "trio":
            return trio.lowlevel.current_statistics().tasks_living
        return len(asyncio.all_tasks())

    def connect(
        self, trust: ssl.SSLContext, listener: Listener = None, connections: int = 100
    ) -> AsyncConnect:
        """Return what the conformance kit makes a client with."""
        return lambda protocol: self.make(protocol, trust, None, listener, connections)

    def open(
        self, protocol: CreduseProtocol, trust: ssl.SSLContext, pace: Pace | None = None
    ) -> AbstractAsyncContextManager[AsyncCoreClient]:
        """Make a client."""
        return self.make(protocol, trust, pace, None, 100)


def settings(protocol: CreduseProtocol) -> dict[str, Any]:
    """Return the protocol's settings as arguments of a client."""
    return {
        "api_key": protocol.api_key.reveal(),
        "base_url": protocol.base_url,
        "retry": protocol.retry,
        "timeout": protocol.timeout,
    }


# httpx


def meddling(trust: ssl.SSLContext, hook: Callable[[Any], object]) -> dict[str, Any]:
    """Return settings of a supplied client that must not change our requests and responses."""
    return {
        "verify": trust,
        "auth": ("somebody", "else"),
        "headers": {"Authorization": "Basic eA==", "Accept-Encoding": "gzip", "X-Theirs": "1"},
        "cookies": {"theirs": "1"},
        "params": {"theirs": "1"},
        "follow_redirects": True,
        "event_hooks": {"request": [hook], "response": [hook]},
    }


def raise_for_status(message: Any) -> None:
    message.raise_for_status()


async def async_raise_for_status(message: Any) -> None:
    message.raise_for_status()


@contextmanager
def own_httpx(
    protocol: CreduseProtocol, _: ssl.SSLContext, pace: Pace | None
) -> Generator[CoreClient]:
    with CreduseClient(**settings(protocol), pace=pace) as client:
        yield client


@asynccontextmanager
async def own_async_httpx(
    protocol: CreduseProtocol,
    _: ssl.SSLContext,
    pace: Pace | None,
    listener: Listener,
    connections: int,
) -> AsyncGenerator[AsyncCoreClient]:
    transport = AsyncOwnTransport(TransportFactory(protocol), connections)
    async with AsyncCoreClient(protocol, transport, on_attempt=listener, pace=pace) as client:
        yield client


def supplied_httpx(library: "ModuleType") -> OpenSync:
    @contextmanager
    def connect(
        protocol: CreduseProtocol, trust: ssl.SSLContext, pace: Pace | None
    ) -> Generator[CoreClient]:
        with (
            library.Client(
                **meddling(trust, raise_for_status),
                # By default it keeps 20 idle ones, and closes some that it has just assigned.
                limits=library.Limits(max_connections=100, max_keepalive_connections=100),
            ) as http_client,
            CreduseClient(**settings(protocol), http_client=http_client, pace=pace) as client,
        ):
            yield client

    return connect


def supplied_async_httpx(library: "ModuleType") -> OpenAsync:
    @asynccontextmanager
    async def connect(
        protocol: CreduseProtocol,
        trust: ssl.SSLContext,
        pace: Pace | None,
        listener: Listener,
        connections: int,
    ) -> AsyncGenerator[AsyncCoreClient]:
        limits = library.Limits(max_connections=connections)
        async with (
            library.AsyncClient(
                **meddling(trust, async_raise_for_status), limits=limits
            ) as http_client,
            AsyncCreduseClient(
                **settings(protocol), http_client=http_client, on_attempt=listener, pace=pace
            ) as client,
        ):
            yield client

    return connect


# aiohttp


@asynccontextmanager
async def own_aiohttp(
    protocol: CreduseProtocol,
    _: ssl.SSLContext,
    pace: Pace | None,
    listener: Listener,
    connections: int,
) -> AsyncGenerator[AsyncCoreClient]:
    assert connections == 100
    async with creduse_aiohttp.AsyncCreduseClient(
        **settings(protocol), on_attempt=listener, pace=pace
    ) as client:
        yield client


@asynccontextmanager
async def supplied_aiohttp(
    protocol: CreduseProtocol,
    trust: ssl.SSLContext,
    pace: Pace | None,
    listener: Listener,
    connections: int,
) -> AsyncGenerator[AsyncCoreClient]:
    async with (
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=trust, limit=connections),
            headers={"Accept-Encoding": "gzip", "X-Theirs": "1"},
            cookies={"theirs": "1"},
            raise_for_status=True,
            auto_decompress=True,
            timeout=aiohttp.ClientTimeout(total=0.001),
            middlewares=(meddle,),
        ) as session,
        creduse_aiohttp.AsyncCreduseClient(
            **settings(protocol), session=session, on_attempt=listener, pace=pace
        ) as client,
    ):
        yield client


async def meddle(_: aiohttp.ClientRequest, __: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    raise AssertionError


# trio


@asynccontextmanager
async def own_trio(
    protocol: CreduseProtocol,
    _: ssl.SSLContext,
    pace: Pace | None,
    listener: Listener,
    connections: int,
) -> AsyncGenerator[AsyncCoreClient]:
    async with creduse_trio.AsyncCreduseClient(
        **settings(protocol), on_attempt=listener, pace=pace, max_connections=connections
    ) as client:
        yield client


# The transports of the examples


def example(name: str) -> Callable[..., Any]:
    """Return the transport of an example."""
    path = Path(__file__).parents[2] / "examples" / f"{name}_transport.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    transport: Callable[..., Any] = getattr(module, f"{name.capitalize()}Transport")
    return transport


def over_urllib(protocol: CreduseProtocol, trust: ssl.SSLContext, pace: Pace | None) -> CoreClient:
    return CoreClient(protocol, example("urllib")(trust), pace=pace)


def over_urllib3(protocol: CreduseProtocol, trust: ssl.SSLContext, pace: Pace | None) -> CoreClient:
    return CoreClient(protocol, example("urllib3")(ssl_context=trust, maxsize=100), pace=pace)


@contextmanager
def over_requests(
    protocol: CreduseProtocol, _: ssl.SSLContext, pace: Pace | None
) -> Generator[CoreClient]:
    with requests.Session() as session:
        session.verify = os.environ["SSL_CERT_FILE"]
        session.auth = ("somebody", "else")
        with CoreClient(protocol, example("requests")(session), pace=pace) as client:
            yield client


EXHAUSTIVE: Marks = (pytest.mark.exhaustive,)
"""Left to `nox -s exhaustive`: what differs little from its neighbours."""

_HTTPX = (Limit.TIME, Limit.CLOSE, Limit.SIGNAL)
_HTTP_CLIENT = (Limit.TIME, Limit.INTERIM, Limit.CLOSE, Limit.SIGNAL)
_URLLIB3 = (*_HTTP_CLIENT, Limit.SURPLUS)

SYNC = [
    Sync("httpx-sync-own", own_httpx),
    Sync("httpx-sync-supplied", supplied_httpx(httpx), _HTTPX, EXHAUSTIVE),
    Sync("httpx-sync-httpx2", supplied_httpx(httpx2), _HTTPX, EXHAUSTIVE),
    Sync("urllib", over_urllib, (*_HTTP_CLIENT, Limit.REUSE), EXHAUSTIVE),
    Sync("urllib3", over_urllib3, _URLLIB3),
    Sync("requests", over_requests, _URLLIB3, EXHAUSTIVE),
]
OWN = [
    *(Async(f"aiohttp-{loop}-own", loop, own_aiohttp, (), EXHAUSTIVE) for loop in LOOPS),
]
NARROW = [
    *(Async(f"httpx-{loop}-own", loop, own_async_httpx) for loop in ("asyncio", "trio")),
    Async("httpx-uvloop-own", "uvloop", own_async_httpx, (), EXHAUSTIVE),
    Async("aiohttp-asyncio-supplied", "asyncio", supplied_aiohttp),
    Async("aiohttp-uvloop-supplied", "uvloop", supplied_aiohttp, (), EXHAUSTIVE),
    Async("trio", "trio", own_trio),
    *(
        Async(f"httpx-{loop}-{supplied}", loop, supplied_async_httpx(library), (), marks)
        for loop, supplied, library, marks in (
            ("asyncio", "supplied", httpx, EXHAUSTIVE),
            ("asyncio", "httpx2", httpx2, EXHAUSTIVE),
            ("trio", "supplied", httpx, EXHAUSTIVE),
            ("trio", "httpx2", httpx2, EXHAUSTIVE),
        )
    ),
]
