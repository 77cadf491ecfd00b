"""Cancelled calls: nothing is first sent afterwards, and nothing is left behind."""

import asyncio
import socket
import ssl
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import pytest
import trio
import trustme

from creduse import (
    AsyncCreduseClient,
    CreduseTimeoutError,
    Outcome,
    RetryPolicy,
    TransportError,
)
from creduse_sandbox import SandboxServer
from tests.common import GOOD, KEY, RESPONSE, USER
from tests.httpx.harness import Harness
from tests.servers import RawServer, Start
from tests.tls import client_context, server_context

ONCE = RetryPolicy(max_attempts=1, attempt_timeout=1.0)

Run = Callable[[], Coroutine[Any, Any, Any]]


@asynccontextmanager
async def narrow(
    base_url: str, tls: ssl.SSLContext | None = None, **settings: Any
) -> AsyncGenerator[AsyncCreduseClient]:
    """Make a client with one connection, so that a lost place in the pool is the last."""
    limits = httpx.Limits(max_connections=1)
    async with (
        httpx.AsyncClient(limits=limits, verify=tls or False) as http_client,
        AsyncCreduseClient(KEY, http_client, base_url=base_url, **settings) as client,
    ):
        yield client


async def cancel_asyncio(run: Run, until: Run) -> bool:
    task = asyncio.create_task(run())
    await until()
    task.cancel()
    await asyncio.wait({task})
    return task.cancelled()


async def cancel_trio(run: Run, until: Run) -> bool:
    scope, done = trio.CancelScope(), trio.Event()

    async def within() -> None:
        with scope:
            await run()
        done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(within)
        await until()
        scope.cancel()
        await done.wait()
    return scope.cancelled_caught


async def cancel(runner: str, run: Run, until: Run) -> bool:
    """Run ``run``, cancel it when ``until`` ends, and return whether it was still running."""
    return await {"asyncio": cancel_asyncio, "trio": cancel_trio}[runner](run, until)


async def run_loop(runner: str, times: int) -> None:
    """Let the event loop run this many times."""
    for _ in range(times):
        if runner == "asyncio":
            await asyncio.sleep(0)
        else:
            await trio.lowlevel.checkpoint()


async def until(runner: str, condition: Callable[[], object]) -> None:
    """Wait until the condition is true."""
    while not condition():
        if runner == "asyncio":
            await asyncio.sleep(0.01)
        else:
            await trio.sleep(0.01)


def silent_at_first(connection: socket.socket, server: RawServer) -> None:
    """Do not respond to the first request; respond to all others."""
    while server.request(connection):
        if len(server.received) == 1:
            server.stopping.wait()
        else:
            connection.sendall(RESPONSE)


def test_cancelled_while_waiting_for_the_response(on_a_loop: Harness, raw: Start) -> None:
    """A call that is cancelled while it waits for its response closes its connection at once."""
    server = raw(silent_at_first)

    async def main() -> None:
        async with narrow(server.base_url) as client:
            call = client.protocol.add(USER, 5)
            assert await cancel(
                on_a_loop.runner,
                lambda: client.run(call),
                lambda: until(on_a_loop.runner, lambda: server.received),
            )
            assert call.outcome is Outcome.UNKNOWN
            await client.add(USER, 5, timeout=30)

    on_a_loop.run(main)
    assert len(server.received) == 2


def test_closed_right_after_a_cancellation(on_a_loop: Harness, raw: Start) -> None:
    """Closing waits for the cleanup of a cancelled call; no connection stays open."""
    server = raw(silent_at_first)

    async def main() -> None:
        async with AsyncCreduseClient(KEY, base_url=server.base_url) as client:
            assert await cancel(
                on_a_loop.runner,
                lambda: client.add(USER, 5),
                lambda: until(on_a_loop.runner, lambda: server.received),
            )

    on_a_loop.run(main)
    assert len(server.received) == 1


def test_cancelled_while_waiting_for_a_connection(on_a_loop: Harness, raw: Start) -> None:
    """A call that is cancelled while it waits for a connection sends nothing."""
    server = raw(silent_at_first)

    async def main() -> None:
        async with narrow(server.base_url) as client:
            holding = client.protocol.add(USER, 5)
            waiting = client.protocol.add(USER, 6)

            async def cancel_the_waiting() -> None:
                await until(on_a_loop.runner, lambda: server.received)
                assert await cancel(
                    on_a_loop.runner,
                    lambda: client.run(waiting),
                    lambda: run_loop(on_a_loop.runner, 20),
                )

            assert await cancel(on_a_loop.runner, lambda: client.run(holding), cancel_the_waiting)
            await client.add(USER, 5, timeout=30)

    on_a_loop.run(main)
    assert len(server.received) == 2
    assert not any(b'"amount":6' in received for received in server.received)


def test_cancelled_within_the_handshake(on_a_loop: Harness, raw: Start) -> None:
    """A call that is cancelled during the TLS handshake leaves no socket open."""
    authority = trustme.CA()
    context = server_context(authority)
    hellos: list[bytes] = []

    def serve(connection: socket.socket, server: RawServer) -> None:
        if not hellos:
            hellos.append(connection.recv(1))
            with suppress(OSError):
                while connection.recv(65536):  # until the peer has gone
                    pass
            hellos.append(b"closed")
            return
        with context.wrap_socket(connection, server_side=True) as secure:
            server.request(secure)
            secure.sendall(RESPONSE)

    server = raw(serve)
    base_url = server.base_url.replace("http://", "https://")

    async def main() -> None:
        async with narrow(base_url, client_context(authority)) as client:
            call = client.protocol.add(USER, 5)
            assert await cancel(
                on_a_loop.runner,
                lambda: client.run(call),
                lambda: until(on_a_loop.runner, lambda: hellos),
            )
            await client.add(USER, 5, timeout=30)
            await until(on_a_loop.runner, lambda: len(hellos) == 2)

    on_a_loop.run(main)
    assert len(server.received) == 1


def drip_head(connection: socket.socket, server: RawServer) -> None:
    """Send interim responses without end."""
    server.request(connection)
    while not server.stopping.wait(0.05):
        connection.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n")


def test_endless_interim_responses(on_a_loop: Harness, raw: Start) -> None:
    """Endless interim responses, which httpx's timeouts do not bound, end with the call's timeout."""
    server = raw(drip_head)

    async def main() -> None:
        async with AsyncCreduseClient(KEY, base_url=server.base_url, timeout=1.0) as client:
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


async def pause(runner: str, seconds: float) -> None:
    if runner == "asyncio":
        await asyncio.sleep(seconds)
    else:
        await trio.sleep(seconds)


def test_transport_that_does_not_trace(on_a_loop: Harness) -> None:
    """Timeouts and cancellations work on a transport without trace events."""
    done: list[str] = []

    async def handle(_: httpx.Request) -> httpx.Response:
        done.append("begun")
        await pause(on_a_loop.runner, 60)
        done.append("ended")
        return httpx.Response(200, content=GOOD)

    async def main() -> None:
        async with over(httpx.MockTransport(handle)) as client:
            with pytest.raises(CreduseTimeoutError) as caught:
                await client.add(USER, 5, timeout=1.0)
            assert caught.value.outcome is Outcome.UNKNOWN
            call = client.protocol.add(USER, 5)
            assert await cancel(
                on_a_loop.runner,
                lambda: client.run(call),
                lambda: until(on_a_loop.runner, lambda: len(done) == 2),
            )
            assert call.outcome is Outcome.UNKNOWN

    on_a_loop.run(main)
    assert done == ["begun", "begun"]


class Slow(httpx.AsyncBaseTransport):
    """A transport that keeps the pool's timeout, as httpcore does, and then hangs."""

    def __init__(self, runner: str) -> None:
        self.runner = runner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Wait for ever."""
        request.extensions["timeout"].get("pool")
        await pause(self.runner, 60)
        raise AssertionError


def test_transport_that_is_stuck(on_a_loop: Harness) -> None:
    """A transport that ignores its timeouts is cancelled."""

    async def main() -> None:
        async with over(Slow(on_a_loop.runner), retry=ONCE) as client:
            with pytest.raises(CreduseTimeoutError) as caught:
                await client.add(USER, 5, timeout=1.0)
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
