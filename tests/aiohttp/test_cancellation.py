"""Cancellation that is special to aiohttp: its steps, and the caller's timeouts.

What holds for every client is in tests/transports/test_cancellation.py.
"""

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from creduse import Attempt, Outcome, RetryPolicy
from creduse_aiohttp import AsyncCreduseClient
from creduse_core import Call
from creduse_sandbox import SandboxServer, Shaped
from tests.aiohttp.clients import Run
from tests.common import KEY, USER
from tests.servers import Start, never_respond

pytestmark = pytest.mark.slow


@asynccontextmanager
async def narrow(
    base_url: str, tls: ssl.SSLContext | None = None, **settings: Any
) -> AsyncGenerator[AsyncCreduseClient]:
    """Make a client with one connection, so that a lost place in the pool is the last."""
    connector = aiohttp.TCPConnector(limit=1, ssl=tls or True)
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        AsyncCreduseClient(KEY, session, base_url=base_url, **settings) as client,
    ):
        yield client


async def cancel(client: AsyncCreduseClient, call: Call[Any], steps: int) -> bool:
    """Run a call, cancel it after so many turns of the loop, and return whether it still ran."""
    task = asyncio.create_task(client.run(call))
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    return task.cancelled()


@pytest.mark.parametrize("kept", [False, True], ids=["new", "kept"])
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_cancelled_at_every_step(
    run: Run,
    server: SandboxServer,
    secure_server: SandboxServer,
    trust: ssl.SSLContext,
    secure: bool,  # noqa: FBT001 - a test's parameter
    kept: bool,  # noqa: FBT001 - a test's parameter
) -> None:
    """A call that is cancelled at any step, on a new or a kept connection, says the truth.

    What reached the server is never said not to have been sent, nothing is first sent after the
    cancellation has been delivered, the pool is whole, and no task is left.
    """
    served = secure_server if secure else server
    seen: set[tuple[bool, bool]] = set()

    async def once(steps: int) -> bool:
        heard: list[Attempt] = []
        amount = 1000 + steps
        async with narrow(served.base_url, trust, on_attempt=heard.append) as client:
            if kept:
                await client.add(USER, 3)
                heard.clear()
            call = client.protocol.add(USER, amount)
            cancelled = await cancel(client, call, steps)
            assert len(call.attempts) == len(heard)
            # What was sent before is in the log, at the latest, before the second of these.
            async with narrow(served.base_url, trust) as witness:
                await witness.add(USER, 1)
                before = len(served.log)
                await witness.add(USER, 1)
            await client.add(USER, 2, timeout=30)
        reached = [n for n, it in enumerate(served.log) if f":{amount}," in str(it.body)]
        assert len(reached) <= 1
        assert all(number <= before for number in reached)
        if reached and cancelled:
            assert call.outcome is Outcome.UNKNOWN
        seen.add((bool(reached), cancelled))
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        served.reset()
        return cancelled

    async def main() -> None:
        steps = in_time = 0
        while in_time < 3:
            in_time = 0 if await once(steps) else in_time + 1
            # Each of the first; later the loop mostly turns while the network is waited for.
            steps += 1 + steps // 16

    run(main)
    # Cancelled before it was sent; and at last not in time to be cancelled.
    assert seen >= {(False, True), (True, False)}


def test_cancelled_before_it_begins(run: Run, server: SandboxServer) -> None:
    """A task that was cancelled before its call sends nothing."""

    async def main() -> None:
        async with narrow(server.base_url) as client:

            async def call() -> None:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
                await client.add(USER, 5)

            with pytest.raises(asyncio.CancelledError):
                await asyncio.create_task(call())
            await client.add(USER, 6)

    run(main)
    assert len(server.log) == 1


def test_timeout_of_the_caller(run: Run, raw: Start) -> None:
    """A timeout of the caller's is raised as the caller's."""

    async def main() -> None:
        async with narrow(server.base_url) as client:
            call = client.protocol.add(USER, 5)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(3):
                    await client.run(call)
            assert call.outcome is Outcome.UNKNOWN

    server = raw(never_respond)
    run(main)


def body_later(head: bytes, body: bytes) -> tuple[bytes, ...]:
    return (head, body)


def test_the_next_call_keeps_its_connection(run: Run, server: SandboxServer) -> None:
    """A call that is cancelled as its response comes does not disturb the next call.

    aiohttp gives the connection to the next call as soon as the response is in.
    """
    server.inject(Shaped(body_later, pause=0.2))

    async def main() -> None:
        loop = asyncio.get_running_loop()
        begin = loop.create_future()
        theirs, ours = socket.socketpair()
        with theirs, ours:
            loop.add_reader(ours, begin.cancel)

            async def add_later(client: AsyncCreduseClient) -> Any:
                await asyncio.wait({begin})
                return await client.add(USER, 6)

            async with narrow(server.base_url, retry=RetryPolicy(initial_delay=0)) as client:
                first = asyncio.create_task(client.add(USER, 5))
                second = asyncio.create_task(add_later(client))
                await asyncio.sleep(0.05)
                # While the loop is busy the second call's sign comes, then the first one's response,
                # then its cancellation.
                loop.call_later(0.2, first.cancel)
                time.sleep(0.05)  # noqa: ASYNC251 - as it says
                theirs.send(b"x")
                time.sleep(0.4)  # noqa: ASYNC251 - as it says
                await asyncio.wait({first})
                assert (await second).amount == 6
            loop.remove_reader(ours)

    run(main)
