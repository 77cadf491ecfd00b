"""Cancellation of every asynchronous client: nothing is sent later, nothing is left behind.

The conformance kit cancels a single call at each of its steps. These tests are about the connection
of a cancelled call, and about calls that wait for one.
"""

import socket
from collections.abc import Callable
from contextlib import suppress

import anyio
import anyio.lowlevel

from creduse import Outcome
from creduse_core import AsyncCoreClient, Call, CreditsAdded, CreduseProtocol
from tests.common import KEY, RESPONSE, USER
from tests.servers import RawServer, raw_servers, wait_for_end
from tests.transports.kinds import Async, Authority


def silent_at_first(connection: socket.socket, server: RawServer) -> None:
    """Do not respond to the first request; respond to all others."""
    while server.request(connection):
        if len(server.received) == 1:
            with suppress(ConnectionResetError):
                wait_for_end(connection)
            server.received.append(b"closed")
        else:
            connection.sendall(RESPONSE)


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(30):
        while not condition():  # noqa: ASYNC110 - a server's thread makes it true
            await anyio.sleep(0.01)


async def cancel_in_flight(
    client: AsyncCoreClient, call: Call[CreditsAdded], server: RawServer
) -> None:
    """Run a call, and cancel it once the server has its request."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.run, call)
        await until(lambda: server.received)
        tasks.cancel_scope.cancel()


def test_connection_is_closed(narrow_kind: Async, authority: Authority) -> None:
    """A call that is cancelled while it waits for its response closes its connection at once."""

    async def main() -> None:
        protocol = CreduseProtocol(KEY, server.base_url)
        connect = narrow_kind.connect(authority.trust, connections=1)
        async with connect(protocol) as client:
            call = protocol.add(USER, 5)
            await cancel_in_flight(client, call, server)
            assert call.outcome is Outcome.UNKNOWN
            await until(lambda: b"closed" in server.received)
            await client.add(USER, 5, timeout=30)

    with raw_servers() as start:
        server = start(silent_at_first)
        narrow_kind.run(main)


def test_closing_right_after(narrow_kind: Async, authority: Authority) -> None:
    """If the client is closed right after a cancellation, no connection stays open."""

    async def main() -> None:
        protocol = CreduseProtocol(KEY, server.base_url)
        connect = narrow_kind.connect(authority.trust, connections=1)
        async with connect(protocol) as client:
            await cancel_in_flight(client, protocol.add(USER, 5), server)
        await until(lambda: b"closed" in server.received)

    with raw_servers() as start:
        server = start(silent_at_first)
        narrow_kind.run(main)


def test_waiting_for_a_connection(narrow_kind: Async, authority: Authority) -> None:
    """A call that is cancelled while it waits for a connection sends nothing."""

    async def main() -> None:
        protocol = CreduseProtocol(KEY, server.base_url)
        connect = narrow_kind.connect(authority.trust, connections=1)
        async with connect(protocol) as client:
            waiting = protocol.add(USER, 6)
            async with anyio.create_task_group() as holding:
                holding.start_soon(client.run, protocol.add(USER, 5))
                await until(lambda: server.received)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(client.run, waiting)
                    for _ in range(20):
                        await anyio.lowlevel.checkpoint()
                    tasks.cancel_scope.cancel()
                holding.cancel_scope.cancel()
            assert [attempt.event for attempt in waiting.attempts] == ["abandoned"]
            await client.add(USER, 5, timeout=30)

    with raw_servers() as start:
        server = start(silent_at_first)
        narrow_kind.run(main)
    assert not any(b'"amount":6' in request for request in server.received)
