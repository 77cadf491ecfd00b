"""No objects are left of a connection, a failure or a cancellation."""

import asyncio
import gc
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress

import aiohttp
import pytest

from creduse import CreduseError, RetryPolicy
from creduse_aiohttp import AsyncCreduseClient
from tests.aiohttp.clients import Run
from tests.common import GOOD, KEY, LAST_RESPONSE, RESPONSE, USER, response
from tests.servers import RawServer, Start

pytestmark = pytest.mark.slow

CALLS = 300
OF_THREADS = ("builtin_function_or_method", "method")
"""What coverage leaves of each thread of the server."""
IN_UVLOOP = {"run": "uvloop", "plain_and_tls": "tls"}


async def new_connection(client: AsyncCreduseClient, _: int) -> None:
    assert (await client.subtract(USER, 5)).amount == 5


async def failure(client: AsyncCreduseClient, number: int) -> None:
    with suppress(CreduseError):  # the server's connections fail in turn
        await client.subtract(USER, 6 + number % 4)


async def cancellation(client: AsyncCreduseClient, number: int) -> None:
    task = asyncio.create_task(client.subtract(USER, 5))
    for _ in range(number % 25):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})


def serve(connection: socket.socket, server: RawServer) -> None:
    """Respond and close; or close, reset, cut or garble, depending on the amount."""
    if not server.request(connection):
        return
    amount = int(server.received.pop().rpartition(b":")[2].rstrip(b"}"))
    connection.sendall(
        {
            5: LAST_RESPONSE,
            6: b"",
            7: RESPONSE[: -len(GOOD) + 1],
            8: b"not http\r\n\r\n",
            9: response(b"", 500),
        }[amount]
    )


@pytest.mark.parametrize("use", [new_connection, failure, cancellation])
def test_nothing_is_left(
    run: Run,
    plain_and_tls: Start,
    trust: ssl.SSLContext,
    request: pytest.FixtureRequest,
    use: Callable[[AsyncCreduseClient, int], Awaitable[None]],
) -> None:
    """Some hundred connections, failures or cancellations leave no objects."""
    if use is cancellation and request.node.callspec.params == {**IN_UVLOOP, "use": use}:
        pytest.skip("uvloop keeps what is cancelled in a TLS handshake, whoever makes the request")

    async def main() -> None:
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust)) as session,
            AsyncCreduseClient(
                KEY, session, base_url=server.base_url, retry=RetryPolicy(max_attempts=1)
            ) as client,
        ):
            counts: list[Counter[str]] = []
            for calls in (100, 0, CALLS):  # the second time, counting itself has made what it makes
                for number in range(calls):
                    await use(client, number)
                for _ in range(CALLS):  # asyncio frees cancelled timers once there are many
                    asyncio.get_running_loop().call_later(60, gc.collect).cancel()
                await asyncio.sleep(0.1)
                # On a busy machine, the server's threads end later.
                while threading.active_count() > threads:  # noqa: ASYNC110 - they set no event
                    await asyncio.sleep(0.01)
                gc.collect()
                counts.append(Counter(type(it).__qualname__ for it in gc.get_objects()))
        more = counts[2] - counts[1]
        for kind in OF_THREADS:
            more.pop(kind, None)
        assert more.total() < CALLS / 5, more.most_common(9)

    server = plain_and_tls(serve)
    threads = threading.active_count()
    run(main)
