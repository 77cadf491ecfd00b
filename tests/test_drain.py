"""A drain over each client's own connections: what it waits for, and what it says is unclear."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio

import creduse_aiohttp
import creduse_trio
from creduse import AsyncCreduseClient, CallRecord, CreduseClient, CreduseError, Outcome
from creduse_core import AsyncCoreClient
from creduse_sandbox import FAULTS, SandboxServer
from tests.common import KEY, ONCE, USER

Make = Callable[..., AsyncCoreClient]


@pytest.fixture
def server() -> Iterator[SandboxServer]:
    with SandboxServer() as server:
        yield server


async def wait_for_request(server: SandboxServer, sleep: Callable[[float], Any]) -> None:
    while not server.applied:
        await sleep(0.005)


def check(unclear: tuple[CallRecord, ...], after: BaseException | None) -> None:
    """Check what a drain returns while a response hangs, and what a new call raises after it."""
    assert [(it.method, it.amount, it.outcome) for it in unclear] == [("add", 7, Outcome.UNKNOWN)]
    assert isinstance(after, CreduseError)
    assert after.outcome is Outcome.NOT_APPLIED
    assert "the client drains" in str(after)


def test_sync(server: SandboxServer) -> None:
    """A drain returns the call that hangs, and refuses new ones. The server got the first alone."""
    server.inject(FAULTS["apply-then-hang"])
    ended: list[CreduseError] = []

    def call() -> None:
        with pytest.raises(CreduseError) as caught:
            client.add(USER, 7)
        ended.append(caught.value)

    with CreduseClient(KEY, base_url=server.base_url, retry=ONCE) as client:
        thread = threading.Thread(target=call)
        thread.start()
        while not server.applied:
            time.sleep(0.005)
        unclear = client.drain(0.1)
        with pytest.raises(CreduseError) as caught:
            client.add(USER, 8)
        check(unclear, caught.value)
    thread.join()
    assert [error.outcome for error in ended] == [Outcome.UNKNOWN]
    assert len(server.log) == len(server.applied) == 1


ASYNC: dict[str, tuple[Make, str]] = {
    "httpx-asyncio": (AsyncCreduseClient, "asyncio"),
    "httpx-trio": (AsyncCreduseClient, "trio"),
    "aiohttp": (creduse_aiohttp.AsyncCreduseClient, "asyncio"),
    "trio": (creduse_trio.AsyncCreduseClient, "trio"),
}


@pytest.mark.parametrize(("make", "loop"), ASYNC.values(), ids=ASYNC)
def test_async(server: SandboxServer, make: Make, loop: str) -> None:
    """A drain returns the call that hangs, and refuses new ones, on each event loop."""
    server.inject(FAULTS["apply-then-hang"])
    ended: list[BaseException] = []

    async def call(client: AsyncCoreClient) -> None:
        try:
            await client.add(USER, 7)
        except CreduseError as error:
            ended.append(error)

    async def look(client: AsyncCoreClient, sleep: Callable[[float], Any]) -> None:
        await wait_for_request(server, sleep)
        unclear = await client.drain(0.1)
        with pytest.raises(CreduseError) as caught:
            await client.add(USER, 8)
        check(unclear, caught.value)

    async def on_trio() -> None:
        client = make(KEY, base_url=server.base_url, retry=ONCE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, client)
            await look(client, trio.sleep)
            nursery.cancel_scope.cancel()
        await client.aclose()

    async def on_asyncio() -> None:
        client = make(KEY, base_url=server.base_url, retry=ONCE)
        task = asyncio.create_task(call(client))
        await look(client, asyncio.sleep)
        task.cancel()
        await asyncio.wait([task])
        await client.aclose()

    if loop == "trio":
        trio.run(on_trio)
    else:
        asyncio.run(on_asyncio())
    assert len(server.log) == len(server.applied) == 1
    assert ended == []
