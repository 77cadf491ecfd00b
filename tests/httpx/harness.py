"""The httpx clients under test: one suite runs over all of them.

A test is a coroutine. The synchronous client gets coroutine methods that do not wait. So each test
runs synchronously, on asyncio and on trio, with a client's own connections, with a supplied client
of httpx, and with one of httpx2.
"""

import asyncio
import ssl
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import httpx
import httpx2
import pytest
import trio

from creduse import AsyncCreduseClient, CreduseClient
from tests.common import KEY

if TYPE_CHECKING:
    from types import ModuleType

Main: TypeAlias = Callable[[], Coroutine[Any, Any, None]]
TLS = ssl.create_default_context()


class AsCoroutines:
    """A synchronous client with the methods of an asynchronous one. They do not wait."""

    def __init__(self, client: CreduseClient) -> None:
        self.plain = client
        self.protocol = client.protocol

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        method = getattr(self.plain, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            return method(*args, **kwargs)

        return call


def run_sync(main: Main) -> None:
    """Run a coroutine that never waits."""
    with suppress(StopIteration):
        main().send(None)
        pytest.fail("a synchronous client has waited")


class Harness:
    """One kind of client, and the event loop that runs it."""

    def __init__(self, runner: str, supplied: str) -> None:
        self.runner = runner
        self.sync = runner == "sync"
        self.library: ModuleType = httpx2 if supplied == "httpx2" else httpx
        self.supplied = supplied != "own"

    def run(self, main: Main) -> None:
        """Run a test's coroutine."""
        match self.runner:
            case "trio":
                trio.run(main)
            case "asyncio":
                asyncio.run(main())
            case _:
                run_sync(main)

    def http_client(self, **settings: Any) -> Any:
        """Make a client of the library. All share one TLS context, which is slow to make."""
        settings = {"verify": TLS} | settings
        return (self.library.Client if self.sync else self.library.AsyncClient)(**settings)

    @asynccontextmanager
    async def http_client_with(self, **settings: Any) -> AsyncGenerator[Any]:
        """Make a client of the library, and close it at the end."""
        http_client = self.http_client(**settings)
        yield http_client
        if self.sync:
            http_client.close()
        else:
            await http_client.aclose()

    @asynccontextmanager
    async def connect(
        self, base_url: str, *, http_client: Any = None, **settings: Any
    ) -> AsyncGenerator[AsyncCreduseClient]:
        """Make a Creduse client, on a supplied client if that is the kind."""
        made = self.http_client() if http_client is None and self.supplied else None
        http_client = http_client or made
        if self.sync:
            with CreduseClient(KEY, http_client, base_url=base_url, **settings) as client:
                yield cast("AsyncCreduseClient", AsCoroutines(client))
            if made is not None:
                made.close()
        else:
            async with AsyncCreduseClient(
                KEY, http_client, base_url=base_url, **settings
            ) as async_client:
                yield async_client
            if made is not None:
                await made.aclose()
