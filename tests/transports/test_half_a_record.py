"""A response of which a part is there before its request is written, be it half of a TLS record."""

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any
from uuid import UUID

import pytest
import trio

from creduse_core import CoreClient, CreduseProtocol
from creduse_sandbox.conformance import Limit

USER = UUID("12345678-1234-5678-1234-567812345678")
HALVES = [
    pytest.param(half, id=f"{half} bytes") for half in (1, 5, 40)
]  # of a header of five bytes, and of what comes behind it


def response(amount: int) -> bytes:
    body = b'{"end_user_id":"%s","amount":%d}' % (str(USER).encode(), amount)
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


class Server:
    """Sends, on its first connection, part of a response to a request that has not come yet."""

    def __init__(self, tls: Callable[[socket.socket], Any], moment: str, half: int) -> None:
        self.moment = moment
        self.requests: list[tuple[int, int]] = []
        """The connection of each, and its amount."""
        self.spoken = threading.Event()
        self._tls = tls
        self._half = half
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.base_url = f"https://127.0.0.1:{self._listener.getsockname()[1]}"
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def expected(self) -> list[tuple[int, int]]:
        """Return the requests of a client that is not taken in."""
        return [(2 if self.moment == "with the handshake" else 1, 5), (2, 7)]

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection = self._listener.accept()[0]
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._sockets.append(connection)
                work = self._serve if len(self._sockets) > 1 else self._mislead
                args = self._tls(connection), len(self._sockets)
                self._threads.append(threading.Thread(target=work, args=args))
                self._threads[-1].start()

    def _serve(self, tls: Any, number: int) -> None:
        with suppress(OSError), tls.connection:
            tls.connection.sendall(tls.handshake())
            while amount := tls.request():
                self.requests.append((number, amount))
                tls.connection.sendall(tls.seal(response(amount)))

    def _mislead(self, tls: Any, number: int) -> None:
        connection = tls.connection
        with suppress(OSError), connection:
            before = tls.handshake()
            if self.moment != "with the handshake":
                connection.sendall(before)
                amount = tls.request()
                self.requests.append((number, amount))
                before = tls.seal(response(amount))
            if self.moment == "while idle":
                connection.sendall(before)
                before = b""
            surplus = tls.seal(response(7))
            connection.sendall(before + surplus[: self._half])
            self.spoken.set()
            self.requests.append((number, tls.request()))
            connection.sendall(surplus[self._half :])  # to a client that has been taken in

    def close(self) -> None:
        for it in (self._listener, *self._sockets):
            with suppress(OSError):
                it.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()


@pytest.fixture(params=HALVES)
def half(request: pytest.FixtureRequest) -> int:
    size: int = request.param
    return size


@pytest.fixture(params=["with the handshake", "with a response", "while idle"])
def server(
    request: pytest.FixtureRequest, authority: Any, half: int, tls_in_parts: Any
) -> Iterator[Server]:
    context: ssl.SSLContext = authority.certificates["good"]
    newest = context.maximum_version
    if request.param == "with the handshake":
        # Up to 1.2 the server has the last word of it.
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    server = Server(partial(tls_in_parts, context), request.param, half)
    yield server
    server.close()
    context.maximum_version = newest


def test_half_a_record(sync_kind: Any, server: Server, authority: Any) -> None:
    """No request is written on a connection where a part of a response is, and none is lost."""
    if Limit.SURPLUS in sync_kind.limits or Limit.REUSE in sync_kind.limits:
        pytest.skip("it looks for nothing before it sends")
    with sync_kind.open(CreduseProtocol("sk-test", server.base_url), authority.trust) as client:
        call(client, 5)
        assert server.spoken.wait(30)
        call(client, 7)
    assert server.requests == server.expected()


def call(client: CoreClient, amount: int) -> None:
    assert client.subtract(USER, amount).amount == amount


def test_half_a_record_async(async_kind: Any, server: Server, authority: Any) -> None:
    """The same on event loops, also where a loop has read it before the client looks."""
    seen_below = async_kind.name.startswith("httpx") and server.moment != "with the handshake"
    if not seen_below and not async_kind.name.endswith(("own", "trio")):
        pytest.skip("TLS is a supplied client's")  # see docs/limits.md

    async def main() -> None:
        protocol = CreduseProtocol("sk-test", server.base_url)
        async with async_kind.connect(authority.trust)(protocol) as client:
            assert (await client.subtract(USER, 5)).amount == 5
            if async_kind.loop == "trio":
                await trio.to_thread.run_sync(server.spoken.wait, 30)
                await trio.sleep(0.05)
            else:
                await asyncio.to_thread(server.spoken.wait, 30)
                await asyncio.sleep(0.05)
            assert (await client.subtract(USER, 7)).amount == 7

    async_kind.run(main)
    assert server.requests == server.expected()
