"""Part of a response, or of a TLS record, that arrives before its request."""

import asyncio
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest
import trio

from creduse_core import CoreClient, CreduseProtocol
from creduse_sandbox.conformance import Limit
from tests.common import KEY, USER, credits_body, response
from tests.servers import RawServer
from tests.tls import TlsInParts
from tests.transports.kinds import Async, Authority, Sync

# A record begins with a header of five bytes. tests/core/test_tls.py proves every size.
HALVES = pytest.mark.parametrize("half", [1, 5, 40], ids="{} bytes".format)


class Server(RawServer):
    """On its first connection, sends part of a response to a request that has not come yet."""

    def __init__(self, context: ssl.SSLContext, moment: str, half: int) -> None:
        self.moment = moment
        self.requests: list[tuple[int, int]] = []
        """The connection of each, and its amount."""
        self.sent_early = threading.Event()
        self._context = context
        self._half = half
        super().__init__(lambda connection, _: self._respond(connection))
        self.base_url = self.base_url.replace("http:", "https:")

    def expected(self) -> list[tuple[int, int]]:
        """Return the requests of a client that does not believe the early part."""
        return [(2 if self.moment == "with the handshake" else 1, 5), (2, 7)]

    def _respond(self, connection: socket.socket) -> None:
        tls = TlsInParts(self._context, connection)
        number = self.number(connection)
        if number == 1:
            self._respond_early(tls)
            return
        connection.sendall(tls.handshake())
        while amount := tls.request():
            self.requests.append((number, amount))
            connection.sendall(tls.seal(response(credits_body(amount))))

    def _respond_early(self, tls: TlsInParts) -> None:
        connection = tls.connection
        before = tls.handshake()
        if self.moment != "with the handshake":
            connection.sendall(before)
            amount = tls.request()
            self.requests.append((1, amount))
            before = tls.seal(response(credits_body(amount)))
        if self.moment == "while idle":
            connection.sendall(before)
            before = b""
        surplus = tls.seal(response(credits_body(7)))
        connection.sendall(before + surplus[: self._half])
        self.sent_early.set()
        self.requests.append((1, tls.request()))
        connection.sendall(surplus[self._half :])  # to a client that believed the early part


@pytest.fixture
def half() -> int:
    """Return how many bytes of a record arrive early, unless the test has others."""
    return 1


@pytest.fixture(params=["with the handshake", "with a response", "while idle"])
def server(request: pytest.FixtureRequest, authority: Authority, half: int) -> Iterator[Server]:
    context: ssl.SSLContext = authority.certificates["good"]
    newest = context.maximum_version
    if request.param == "with the handshake":
        # Up to 1.2 the server has the last word of it.
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    server = Server(context, request.param, half)
    yield server
    server.close()
    context.maximum_version = newest


@HALVES
def test_half_a_record(sync_kind: Sync, server: Server, authority: Authority) -> None:
    """A connection where part of a response has arrived gets no request; no request is lost."""
    if Limit.SURPLUS in sync_kind.limits or Limit.REUSE in sync_kind.limits:
        pytest.skip("it looks for nothing before it sends")
    with sync_kind.open(CreduseProtocol(KEY, server.base_url), authority.trust) as client:
        call(client, 5)
        server.sent_early.wait()
        call(client, 7)
    assert server.requests == server.expected()


def call(client: CoreClient, amount: int) -> None:
    assert client.subtract(USER, amount).amount == amount


def test_records_at_once(async_kind: Async, authority: Authority) -> None:
    """A response of three records that arrive at once is read as a whole."""

    def respond(connection: socket.socket, _: RawServer) -> None:
        tls = TlsInParts(authority.certificates["good"], connection)
        connection.sendall(tls.handshake())
        while amount := tls.request():
            head, end, body = response(credits_body(amount)).partition(b"\r\n\r\n")
            early = b"HTTP/1.1 103 Early Hints\r\n\r\n"
            records = (early, head + end, body)
            connection.sendall(b"".join(tls.seal(part) for part in records))

    async def main() -> None:
        protocol = CreduseProtocol(KEY, raw.base_url.replace("http:", "https:"))
        async with async_kind.connect(authority.trust)(protocol) as client:
            assert (await client.subtract(USER, 5, timeout=10)).amount == 5

    with closing(RawServer(respond)) as raw:
        async_kind.run(main)


def test_half_a_record_async(async_kind: Async, server: Server, authority: Authority) -> None:
    """The same on event loops, also where the loop has read it first."""
    seen_below = async_kind.name.startswith("httpx") and server.moment != "with the handshake"
    if not seen_below and not async_kind.name.endswith(("own", "trio")):
        pytest.skip("TLS is a supplied client's")  # see docs/limits.md

    async def main() -> None:
        protocol = CreduseProtocol(KEY, server.base_url)
        async with async_kind.connect(authority.trust)(protocol) as client:
            assert (await client.subtract(USER, 5)).amount == 5
            if async_kind.loop == "trio":
                await trio.to_thread.run_sync(server.sent_early.wait, 30)
                await trio.sleep(0.05)
            else:
                await asyncio.to_thread(server.sent_early.wait, 30)
                await asyncio.sleep(0.05)
            assert (await client.subtract(USER, 7)).amount == 7

    async_kind.run(main)
    assert server.requests == server.expected()
