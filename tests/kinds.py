"""Every kind of client over every kind of connection, so that one test can run with all of them.

What a test does with a client, and what it checks, do not belong here.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import aiohttp
import httpx
import httpx2
import trio

import creduse
import creduse_aiohttp
import creduse_trio
from tests.common import KEY

Calls = Callable[[Any], Coroutine[Any, Any, None]]
"""What to do with a client. Each call of a synchronous one returns an awaitable here, too."""


class Waitable:
    """A synchronous client whose methods return awaitables, so that one test runs with all kinds."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.protocol = client.protocol

    def __getattr__(self, name: str) -> Any:
        async def method(*arguments: Any, **options: Any) -> Any:
            return getattr(self._client, name)(*arguments, **options)

        return method


def step_through(awaitable: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine that never waits."""
    with suppress(StopIteration):
        awaitable.send(None)


def run_sync(classes: dict[str, Any], calls: Calls, library: Any = None, **options: Any) -> None:
    with ExitStack() as stack:
        supplied = None if library is None else stack.enter_context(library.Client())
        client = stack.enter_context(classes["creduse"](KEY, supplied, **options))
        step_through(calls(Waitable(client)))


async def run_async(
    package: str, supply: Callable[[], Any], classes: dict[str, Any], calls: Calls, **options: Any
) -> None:
    supplied = supply()
    try:
        arguments = () if supplied is None else (supplied,)
        async with classes[f"async {package}"](KEY, *arguments, **options) as client:
            await calls(client)
    finally:
        if supplied is not None:
            await (supplied.close() if package == "creduse_aiohttp" else supplied.aclose())


def on_asyncio(run: Callable[..., Awaitable[None]], *arguments: Any, **options: Any) -> None:
    async def main() -> None:
        await run(*arguments, **options)

    asyncio.run(main())


def on_trio(run: Callable[..., Awaitable[None]], *arguments: Any, **options: Any) -> None:
    trio.run(partial(run, *arguments, **options))


def nothing() -> None:
    """Supply nothing."""


over_httpx = partial(run_async, "creduse", nothing)
over_supplied_httpx = partial(run_async, "creduse", httpx.AsyncClient)
KINDS: dict[str, Callable[..., None]] = {
    "httpx": run_sync,
    "supplied httpx": partial(run_sync, library=httpx),
    "supplied httpx2": partial(run_sync, library=httpx2),
    "httpx on asyncio": partial(on_asyncio, over_httpx),
    "httpx on trio": partial(on_trio, over_httpx),
    "supplied httpx on asyncio": partial(on_asyncio, over_supplied_httpx),
    "supplied httpx on trio": partial(on_trio, over_supplied_httpx),
    "aiohttp": partial(on_asyncio, partial(run_async, "creduse_aiohttp", nothing)),
    "supplied aiohttp": partial(
        on_asyncio, partial(run_async, "creduse_aiohttp", aiohttp.ClientSession)
    ),
    "trio": partial(on_trio, partial(run_async, "creduse_trio", nothing)),
}
"""Each runs calls with a client. Arguments: classes as in `PLAIN`, the calls, options of the client."""

PLAIN: dict[str, Any] = {
    "creduse": creduse.CreduseClient,
    "async creduse": creduse.AsyncCreduseClient,
    "async creduse_aiohttp": creduse_aiohttp.AsyncCreduseClient,
    "async creduse_trio": creduse_trio.AsyncCreduseClient,
}
"""The classes of the clients."""
