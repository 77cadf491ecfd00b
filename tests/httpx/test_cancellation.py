"""Cancellation that is special to httpx: transports that do not trace or are stuck, and groups.

What holds for every client is in tests/transports/test_cancellation.py.
"""

import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest
import trio

from creduse import (
    AsyncCreduseClient,
    CreduseTimeoutError,
    Outcome,
    RetryPolicy,
    TransportError,
)
from creduse_sandbox import SandboxServer
from tests.common import GOOD, KEY, USER
from tests.httpx.harness import Harness
from tests.servers import RawServer, Start

ONCE = RetryPolicy(max_attempts=1, attempt_timeout=4.0)


def drip_head(connection: socket.socket, server: RawServer) -> None:
    """Send interim responses without end."""
    server.request(connection)
    while not server.stopping.wait(0.05):
        connection.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n")


def test_endless_interim_responses(on_a_loop: Harness, raw: Start) -> None:
    """Endless interim responses, which httpx's timeouts do not bound, end with the call's timeout."""
    server = raw(drip_head)

    async def main() -> None:
        async with AsyncCreduseClient(KEY, base_url=server.base_url, timeout=4.0) as client:
            with pytest.raises(CreduseTimeoutError) as caught:
                await client.add(USER, 5)
            assert caught.value.outcome is Outcome.UNKNOWN

    on_a_loop.run(main)
    assert len(server.received) == 1


@asynccontextmanager
async def over(
    transport: httpx.AsyncBaseTransport, **settings: Any
) -> AsyncGenerator[AsyncCreduseClient]:
    async with (
        httpx.AsyncClient(transport=transport) as http_client,
        AsyncCreduseClient(KEY, http_client, base_url="https://x.invalid", **settings) as client,
    ):
        yield client


def test_transport_that_does_not_trace(on_a_loop: Harness) -> None:
    """Timeouts and cancellations work on a transport without trace events."""
    done: list[str] = []

    async def handle(_: httpx.Request) -> httpx.Response:
        done.append("begun")
        await anyio.sleep(60)
        done.append("ended")
        return httpx.Response(200, content=GOOD)

    async def main() -> None:
        async with over(httpx.MockTransport(handle)) as client:
            with pytest.raises(CreduseTimeoutError) as caught:
                await client.add(USER, 5, timeout=4.0)
            assert caught.value.outcome is Outcome.UNKNOWN
            call = client.protocol.add(USER, 5)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(client.run, call)
                while len(done) < 2:  # noqa: ASYNC110 - clearer than an event here
                    await anyio.sleep(0.01)
                tasks.cancel_scope.cancel()
            assert call.outcome is Outcome.UNKNOWN

    on_a_loop.run(main)
    assert done == ["begun", "begun"]


class Slow(httpx.AsyncBaseTransport):
    """A transport that keeps the pool's timeout, as httpcore does, and then hangs."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Wait for ever."""
        request.extensions["timeout"].get("pool")
        await anyio.sleep(60)
        raise AssertionError


def test_transport_that_is_stuck(on_a_loop: Harness) -> None:
    """A transport that ignores its timeouts is cancelled."""

    async def main() -> None:
        async with over(Slow(), retry=ONCE) as client:
            with pytest.raises(CreduseTimeoutError) as caught:
                await client.add(USER, 5, timeout=4.0)
            assert caught.value.outcome is Outcome.UNKNOWN

    on_a_loop.run(main)


def test_closed_within_a_cancelled_scope(server: SandboxServer) -> None:
    """Leaving ``async with`` by a cancellation closes the connections."""

    async def main() -> None:
        client = AsyncCreduseClient(KEY, base_url=server.base_url)
        with trio.CancelScope() as scope:
            async with client:
                await client.add(USER, 5)
                scope.cancel()
                await trio.sleep_forever()
        assert scope.cancelled_caught
        with pytest.raises(TransportError, match="the client is closed"):
            await client.add(USER, 5)

    trio.run(main)
    assert len(server.applied) == 1


def test_what_ends_the_program_comes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A KeyboardInterrupt in a nursery's group with a cancellation reaches the caller alone."""

    async def fail() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise KeyboardInterrupt

    async def connect(*_: object, **__: object) -> trio.abc.Stream:
        async with trio.open_nursery(), trio.open_nursery() as inner:
            inner.start_soon(trio.sleep_forever)
            inner.start_soon(fail)
        raise AssertionError

    async def main() -> None:
        async with AsyncCreduseClient(KEY, base_url="http://127.0.0.1:1") as client:
            with pytest.raises(KeyboardInterrupt), trio.move_on_after(0.01):
                await client.add(USER, 5)

    monkeypatch.setattr(anyio, "connect_tcp", connect)
    for _ in range(10):  # a nursery's order of exceptions is random
        trio.run(main)


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_interrupt_while_a_supplied_client_connects(
    monkeypatch: pytest.MonkeyPatch, interrupt: type[BaseException]
) -> None:
    """What ends the program, raised in a task that trio started to connect, reaches the caller."""

    async def interrupted() -> None:
        raise interrupt

    async def connect(*_: object, **__: object) -> trio.abc.Stream:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(interrupted)
        raise AssertionError

    async def main() -> None:
        async with (
            httpx.AsyncClient() as http_client,
            AsyncCreduseClient(
                KEY, base_url="http://127.0.0.1:1", http_client=http_client
            ) as client,
        ):
            with pytest.raises(interrupt):
                await client.add(USER, 5)

    monkeypatch.setattr(trio, "open_tcp_stream", connect)
    trio.run(main)


def test_trio_ends_during_an_exchange(raw: Start) -> None:
    """The end of trio's run ends an exchange over a supplied client that its caller has left."""
    server = raw(drip_head)

    async def main() -> None:
        client = AsyncCreduseClient(KEY, base_url=server.base_url, http_client=httpx.AsyncClient())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.add, USER, 5)
            while not server.received:  # noqa: ASYNC110 - a thread adds it
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert len(server.received) == 1
