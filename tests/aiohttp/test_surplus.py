"""Bytes that arrive before a request are never its response."""

import asyncio
import socket
import ssl
import threading
from asyncio import sslproto
from typing import Any

import aiohttp
import pytest

from creduse_aiohttp import AsyncCreduseClient
from tests.common import KEY, RESPONSE, USER, credits_body, response
from tests.servers import RawServer

pytestmark = pytest.mark.slow

REFUSAL = response(b'{"error_code":"INSUFFICIENT_FUNDS"}', 402)

SURPLUS = {
    "whole": RESPONSE,
    "refusal": REFUSAL,
    "interim": b"HTTP/1.1 103 Early Hints\r\n\r\n",
    "begun": b"H",
    "half a line": b"HTTP/1.1 402",
    "half a head": REFUSAL[:30],
    "head": REFUSAL[: REFUSAL.index(b"{")],
    "half a body": REFUSAL[:-1],
    "not http": b"\x00",
}


@pytest.fixture(params=["own", "supplied"])
def connect(request: pytest.FixtureRequest, trusted: None, trust: ssl.SSLContext) -> Any:  # noqa: ARG001 - it sets the environment
    """Make a client that trusts the servers, over TLS too."""

    async def make(base_url: str, use: Any) -> None:
        if request.param == "own":
            async with AsyncCreduseClient(KEY, base_url=base_url) as client:
                await use(client)
            return
        connector = aiohttp.TCPConnector(ssl=trust)
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            AsyncCreduseClient(KEY, session, base_url=base_url) as client,
        ):
            await use(client)

    return make


@pytest.mark.parametrize(
    ("comes", "surplus"),
    [
        pytest.param(comes, surplus, id=f"{name} {comes}")
        for comes in ("with it", "while idle", "while busy")
        for name, surplus in SURPLUS.items()
        if (comes, name) != ("with it", "not http")  # that makes a response that cannot be read
    ],
)
def test_surplus(run: Any, connect: Any, threaded: Any, surplus: bytes, comes: str) -> None:
    """Bytes after a response, in its segment or later, are never the next call's response.

    The server sends it once and records what it reads: both calls' requests, once each, the second
    on another connection. So the second call's result, which the surplus would make another one, is
    of its own response. A client that is busy has not yet read what came in meanwhile.
    """
    idle, sent = threading.Event(), threading.Event()

    def serve(connection: socket.socket, server: RawServer) -> None:
        while server.request(connection):
            if server.number(connection) > 1:
                connection.sendall(response(credits_body(7)))
            elif comes == "with it":
                connection.sendall(RESPONSE + surplus)
            else:
                connection.sendall(RESPONSE)
                assert idle.wait(30)
                connection.sendall(surplus)
                sent.set()

    async def use(client: AsyncCreduseClient) -> None:
        assert (await client.subtract(USER, 5)).amount == 5
        idle.set()
        if comes == "while idle":
            assert await asyncio.to_thread(sent.wait, 30)
            await asyncio.sleep(0.05)
        elif comes == "while busy":
            assert sent.wait(30)
        assert (await client.subtract(USER, 7)).amount == 7

    with threaded(serve) as server:
        run(lambda: connect(server.base_url, use))
    assert server.received_on == [1, 2]
    assert [it.rpartition(b":")[2] for it in server.received] == [b"5}", b"7}"]


def read_nothing(_: Any) -> None:
    """Leave what has come within TLS."""


def test_surplus_that_the_loop_has_not_read(
    run: Any, connect: Any, threaded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A response that is still within TLS when the request is to be written is not its response."""
    idle, sent = threading.Event(), threading.Event()

    def serve(connection: socket.socket, server: RawServer) -> None:
        while server.request(connection):
            if server.number(connection) > 1:
                connection.sendall(response(credits_body(7)))
            else:
                connection.sendall(RESPONSE)
                assert idle.wait(30)
                connection.sendall(REFUSAL)
                sent.set()

    async def use(client: AsyncCreduseClient) -> None:
        assert (await client.subtract(USER, 5)).amount == 5
        with monkeypatch.context() as patch:  # as uvloop does when the machine is busy
            patch.setattr(sslproto.SSLProtocol, "_do_read", read_nothing)
            idle.set()
            assert await asyncio.to_thread(sent.wait, 30)
            await asyncio.sleep(0.05)
        assert (await client.subtract(USER, 7)).amount == 7

    with threaded(serve) as server:
        run(lambda: connect(server.base_url, use))
    assert server.received_on == [1, 2]
