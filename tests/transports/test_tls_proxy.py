"""Bytes in TLS within a proxy's TLS that belong to no request. Each layer can hide them."""

import socket
import ssl
from collections.abc import Iterator

import pytest

from creduse_core import CreduseProtocol
from tests.common import KEY, USER, credits_body, response
from tests.servers import RawServer
from tests.tls import TlsInParts
from tests.transports.kinds import Async, Authority, Sync

SURPLUS = response(credits_body(7))


class Server(RawServer):
    """A proxy over TLS and a server in one. Its first connection has bytes that nobody requested."""

    def __init__(self, context: ssl.SSLContext, moment: str, surplus: str) -> None:
        self.requests: list[tuple[int, int]] = []
        """The connection of each, and its amount."""
        self._context, self._moment, self._surplus = context, moment, surplus
        super().__init__(lambda connection, _: self._respond(connection))
        self.url = self.base_url.replace("http:", "https:")

    def check(self) -> None:
        """Check that the client believed nothing that it had not requested."""
        first = 2 if self._moment == "with the handshake" else 1
        assert self.requests == [(first, 5), (2, 7)]

    def _respond(self, connection: socket.socket) -> None:
        number = self.number(connection)
        proxy = TlsInParts(self._context, connection)
        connection.sendall(proxy.handshake())
        assert proxy.recv(65536).startswith(b"CONNECT ")
        proxy.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        tls = TlsInParts(self._context, proxy)
        end = tls.handshake()
        if number == 1 and self._moment == "with the handshake":
            self._send_with_surplus(proxy, tls, end)
        else:
            proxy.sendall(end)
        while amount := tls.request():
            self.requests.append((number, amount))
            own = tls.seal(response(credits_body(amount)))
            if number == 1:
                self._send_with_surplus(proxy, tls, own)
            else:
                proxy.sendall(own)

    def _send_with_surplus(self, proxy: TlsInParts, tls: TlsInParts, own: bytes) -> None:
        """Send bytes and, in the same segment, a response to a request that has not come."""
        surplus = tls.seal(SURPLUS)
        if self._surplus == "part of the server's record":
            proxy.sendall(own + surplus[:1])
            left = proxy.seal(surplus[1:])
        else:
            record = proxy.seal(own)
            more = proxy.seal(surplus)
            end = len(more) if self._surplus == "a whole record" else 1
            proxy.connection.sendall(record + more[:end])
            left = more[end:]
        # The rest comes after the next request, for a client that believes the first part.
        self.requests.append((1, tls.request()))
        proxy.connection.sendall(left)


def is_elsewhere(_: str) -> bool:
    return False


@pytest.fixture(
    params=["a whole record", "part of the proxy's record", "part of the server's record"]
)
def surplus(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["with the handshake", "with a response"])
def server(
    request: pytest.FixtureRequest,
    surplus: str,
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Server]:
    context = authority.certificates["good"]
    newest = context.maximum_version
    # Up to 1.2 the server has the last word of a handshake.
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    server = Server(context, request.param, surplus)
    monkeypatch.setenv("HTTPS_PROXY", server.url)
    # The certificates are for 127.0.0.1, which gets no proxy otherwise.
    monkeypatch.setattr("creduse_core.arguments.is_loopback", is_elsewhere)
    yield server
    server.close()
    context.maximum_version = newest


def test_surplus(sync_kind: Sync, server: Server, authority: Authority) -> None:
    """A connection on which such bytes have arrived gets no request; no request is lost."""
    if sync_kind.name != "httpx-sync-own":
        pytest.skip("TLS is a supplied client's")  # see docs/limits.md
    with sync_kind.open(CreduseProtocol(KEY, "https://127.0.0.1:1"), authority.trust) as client:
        for amount in (5, 7):
            assert client.subtract(USER, amount).amount == amount
    server.check()


def test_surplus_async(
    async_kind: Async, server: Server, surplus: str, authority: Authority
) -> None:
    """The same on event loops."""
    if not async_kind.name.endswith(("own", "trio")):
        pytest.skip("TLS is a supplied client's")  # see docs/limits.md
    if (async_kind.name, surplus) == ("aiohttp-uvloop-own", "part of the proxy's record"):
        pytest.skip("uvloop hides the proxy's TLS")  # see docs/limits.md

    async def main() -> None:
        protocol = CreduseProtocol(KEY, "https://127.0.0.1:1")
        async with async_kind.open(protocol, authority.trust) as client:
            for amount in (5, 7):
                assert (await client.subtract(USER, amount)).amount == amount

    async_kind.run(main)
    server.check()
