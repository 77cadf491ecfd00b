"""Unrequested bytes that are special to aiohttp: part of a head, or bytes that are not read yet.

What holds for every client is in the conformance kit.
"""

import asyncio
import socket
import ssl
import threading
from asyncio import sslproto
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import aiohttp
import pytest

from creduse_aiohttp import AsyncCreduseClient
from tests.aiohttp.clients import Run
from tests.common import KEY, RESPONSE, USER, credits_body, response
from tests.servers import RawServer, raw_servers

pytestmark = pytest.mark.slow

REFUSAL = response(b'{"error_code":"INSUFFICIENT_FUNDS"}', 402)
BEGUN = b"H"
BYTES = {
    "interim": b"HTTP/1.1 103 Early Hints\r\n\r\n",
    "begun": BEGUN,
    "half a head": REFUSAL[:30],
}


@dataclass
class Surplus:
    """Bytes that a server sends on its first connection, after its first response."""

    data: bytes
    may_send: threading.Event = field(default_factory=threading.Event)
    sent: threading.Event = field(default_factory=threading.Event)

    def behave(self, connection: socket.socket, server: RawServer) -> None:
        """Respond. If the surplus may be sent by then, it is in the same segment."""
        while server.request(connection):
            if server.number(connection) > 1:
                connection.sendall(response(credits_body(7)))
            elif self.may_send.is_set():
                connection.sendall(RESPONSE + self.data)
            else:
                connection.sendall(RESPONSE)
                assert self.may_send.wait(30)
                connection.sendall(self.data)
                self.sent.set()


@dataclass
class Setup:
    """An event loop, a client with its own session or a supplied one, and a server's TLS."""

    run: Run
    supplied: bool
    trust: ssl.SSLContext
    server_context: ssl.SSLContext | None

    def check(self, surplus: Surplus, between: Callable[[], Awaitable[None]]) -> None:
        """Make two calls. The server must receive each once, the second on another connection."""

        async def main() -> None:
            connector = aiohttp.TCPConnector(ssl=self.trust)
            async with aiohttp.ClientSession(connector=connector) as session:
                own_or_supplied = session if self.supplied else None
                async with AsyncCreduseClient(
                    KEY, own_or_supplied, base_url=server.base_url
                ) as client:
                    assert (await client.subtract(USER, 5)).amount == 5
                    await between()
                    assert (await client.subtract(USER, 7)).amount == 7

        with raw_servers(self.server_context) as start:
            server = start(surplus.behave)
            self.run(main)
        assert server.received_on == [1, 2]
        assert [it.rpartition(b":")[2] for it in server.received] == [b"5}", b"7}"]


@pytest.fixture(params=["own-plain", "own-tls", "supplied-tls"])
def setup(
    request: pytest.FixtureRequest,
    run: Run,
    trusted: None,  # noqa: ARG001 - it sets the environment
    trust: ssl.SSLContext,
    secure_context: ssl.SSLContext,
) -> Setup:
    context = None if request.param == "own-plain" else secure_context
    return Setup(run, request.param == "supplied-tls", trust, context)


@pytest.mark.parametrize("data", BYTES.values(), ids=BYTES)
def test_with_the_response(setup: Setup, data: bytes) -> None:
    """Bytes in the segment of a response are not the next call's response."""
    surplus = Surplus(data)
    surplus.may_send.set()

    async def do_nothing() -> None:
        pass

    setup.check(surplus, do_nothing)


def test_while_idle(setup: Setup) -> None:
    """A byte on an idle connection is not the next call's response."""
    surplus = Surplus(BEGUN)

    async def idle() -> None:
        surplus.may_send.set()
        assert await asyncio.to_thread(surplus.sent.wait, 30)
        await asyncio.sleep(0.05)

    setup.check(surplus, idle)


@pytest.mark.parametrize("data", [REFUSAL, BEGUN], ids=["whole", "begun"])
@pytest.mark.parametrize("with_poll", [True, False], ids=["poll", "no poll"])
def test_while_busy(
    setup: Setup, data: bytes, monkeypatch: pytest.MonkeyPatch, *, with_poll: bool
) -> None:
    """Bytes that the loop has not read, because it was busy, are not the next call's response.

    That holds on systems without ``poll``, too, such as Windows.
    """
    if not with_poll:
        monkeypatch.delattr("select.poll")
    surplus = Surplus(data)

    async def block() -> None:
        surplus.may_send.set()
        surplus.sent.wait()

    setup.check(surplus, block)


def read_nothing(_: object) -> None:
    """Leave the bytes that have arrived within TLS."""


@pytest.mark.parametrize("run", ["asyncio"], indirect=True)
@pytest.mark.parametrize("setup", ["own-tls", "supplied-tls"], indirect=True)
def test_within_tls(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that are still within TLS are not the next call's response."""
    surplus = Surplus(REFUSAL)

    async def idle() -> None:
        with monkeypatch.context() as patch:  # as uvloop does on a busy machine
            patch.setattr(sslproto.SSLProtocol, "_do_read", read_nothing)
            surplus.may_send.set()
            assert await asyncio.to_thread(surplus.sent.wait, 30)
            await asyncio.sleep(0.05)

    setup.check(surplus, idle)
