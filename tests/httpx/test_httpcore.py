"""What creduse_httpx uses below the public API of httpx, httpx2 and httpcore exists.

A release that changes it fails here, by its name; without it each use falls back to what its
docstring says.
"""

import socket
import threading
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import anyio
import httpcore
import httpx
import httpx2
import pytest
import trustme

from creduse import CreduseClient, Outcome, TransportError
from creduse_core import CoreClient, CreduseProtocol, RetryPolicy
from creduse_httpx import _httpcore, _own
from creduse_sandbox import FAULTS, SandboxServer
from tests.common import USER, response
from tests.servers import RawServer, Start, raw_servers
from tests.tls import client_context, server_context


@pytest.fixture(params=[httpx, httpx2], ids=["httpx", "httpx2"])
def library(request: pytest.FixtureRequest) -> ModuleType:
    module: ModuleType = request.param
    return module


def test_transports_of_a_client(library: ModuleType) -> None:
    """The transport of a URL is found, that of a proxy included."""
    own, proxied = library.HTTPTransport(), library.HTTPTransport()
    with library.Client(transport=own, mounts={"https://": proxied}) as http_client:
        secure = library.URL("https://api.creduse.com")
        assert _httpcore.transport_for(http_client, secure) is proxied
        assert _httpcore.transport_for(http_client, library.URL("http://127.0.0.1")) is own
        assert _httpcore.direct_transport(http_client, secure) is own


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://user:password@proxy.example:3128", "http://proxy.example:3128"),
        ("https://proxy.example", "https://proxy.example"),
        ("socks5://user:password@[::1]:1080", "socks5://[::1]:1080"),
    ],
)
def test_proxy_is_seen(library: ModuleType, url: str, shown: str) -> None:
    """The proxy of a transport is found, without its password."""
    with library.HTTPTransport(proxy=url) as proxied, library.HTTPTransport() as direct:
        found = _httpcore.proxy_of(proxied)
        assert found is not None
        assert (found.shown, found.secrets) == (shown, ())
        assert _httpcore.proxy_of(direct) is None
    assert _httpcore.proxy_of(library.MockTransport(print)) is None


def test_direct_transport_falls_back() -> None:
    """Without the private name, the client's transport for the URL is used."""
    http_client = SimpleNamespace(_transport_for_url="for {}".format)
    assert _httpcore.direct_transport(http_client, "x") == "for x"


def test_http2_is_seen(library: ModuleType) -> None:
    """It is found whether a transport may use HTTP/2."""
    with library.HTTPTransport(http2=True) as http2, library.HTTPTransport() as http1:
        assert _httpcore.speaks_http2(http2)
        assert not _httpcore.speaks_http2(http1)
    assert not _httpcore.speaks_http2(library.MockTransport(print))


def test_backend_is_used(server: SandboxServer) -> None:
    """Connections of httpcore use our network backend."""
    with CreduseClient("k", base_url=server.base_url, retry=RetryPolicy(max_attempts=1)) as client:
        with server.refusing(), pytest.raises(TransportError) as caught:
            client.add(USER, 1)
        # Without it this would be UNKNOWN, since nothing would tell that nothing was sent.
        assert caught.value.outcome is Outcome.NOT_APPLIED


def test_without_the_backend(server: SandboxServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the private name, calls succeed, a failure is UNKNOWN, and no connection is reused."""

    def set_nothing(_transport: object, backend: object) -> bool:
        return _httpcore.set_backend(object(), backend)

    monkeypatch.setattr(_own, "set_backend", set_nothing)
    protocol = CreduseProtocol("k", server.base_url, retry=RetryPolicy(max_attempts=1))
    with CoreClient(protocol, _own.OwnTransport(_own.TransportFactory(protocol))) as client:
        for _ in range(2):
            client.add(USER, 1)
        server.inject(FAULTS["request-then-close"])
        with pytest.raises(TransportError) as caught:
            client.add(USER, 1)
        assert caught.value.outcome is Outcome.UNKNOWN
    assert [entry.connection for entry in server.log] == [1, 2, 3]


def test_surplus_is_found(library: ModuleType, raw: Start) -> None:
    """Bytes after a response are found."""

    def respond(connection: socket.socket, running: RawServer) -> None:
        for more in (b"", b"x"):
            if connection.recv(65536):
                connection.sendall(response(b"{}") + more)
        running.stopping.wait()

    url = raw(respond).base_url
    with library.HTTPTransport() as transport:
        assert not _httpcore.is_drained(transport)
        for drained in (True, False):
            received = transport.handle_request(library.Request("GET", url))
            assert b"".join(received.stream) == b"{}"
            assert not _httpcore.is_drained(transport)  # it is still in use
            assert _httpcore.is_response_drained(received) is drained
            received.stream.close()
            assert _httpcore.is_drained(transport) is drained


@pytest.mark.parametrize("way", ["direct", "forwarded"])
def test_stream_of_a_request(library: ModuleType, server: SandboxServer, way: str) -> None:
    """The stream of a pool that is about to carry a request is found, also through a proxy."""
    timeouts: dict[str, float] = {}
    found: list[Any] = []

    def trace(name: str, _: object) -> None:
        if name.endswith("send_request_headers.started"):
            found.extend(_httpcore.stream_of(transport, it) for it in (timeouts, {}))

    proxy = server.base_url if way == "forwarded" else None  # it takes any URL
    with library.HTTPTransport(proxy=proxy) as transport:
        request = library.Request(
            "GET", server.base_url, extensions={"trace": trace, "timeout": timeouts}
        )
        received = transport.handle_request(request)
        assert _httpcore.stream_of(transport, timeouts) is received.extensions["network_stream"]
        received.close()
        assert _httpcore.stream_of(transport, timeouts) is None
    ours, others = found
    assert ours is received.extensions["network_stream"]
    assert others is None
    assert _httpcore.stream_of(object(), timeouts) is None


def test_not_drained_without_the_private_names() -> None:
    """Without a private name, or with a mock, a connection does not count as drained."""
    assert not _httpcore.is_drained(object())
    assert not _httpcore.is_response_drained(SimpleNamespace(stream=object()))


@pytest.mark.parametrize(
    ("loop", "backend"),
    [
        ("asyncio", httpcore.AnyIOBackend),
        ("trio", httpcore.AnyIOBackend),
        ("trio", httpcore.TrioBackend),
    ],
)
def test_unread_record_is_found(
    loop: str, backend: Callable[[], httpcore.AsyncNetworkBackend]
) -> None:
    """A TLS record that has been received and not read is found, on asyncio and on trio."""
    authority = trustme.CA()
    sent = threading.Event()

    def respond(connection: socket.socket, running: RawServer) -> None:
        for data in (b"first", b"second"):  # each becomes a record
            connection.sendall(data)
        sent.set()
        running.stopping.wait()

    async def main() -> None:
        port = int(server.base_url.rpartition(":")[2])
        plain = await backend().connect_tcp("127.0.0.1", port)
        stream = await plain.start_tls(client_context(authority), "127.0.0.1")
        sent.wait()
        # So many bytes are received at once that both records are among them.
        assert await stream.read(65536) == b"first"
        assert not _httpcore.are_buffers_empty(stream)
        assert await stream.read(65536) == b"second"
        assert _httpcore.are_buffers_empty(stream)
        await stream.aclose()

    with raw_servers(server_context(authority)) as raw:
        server = raw(respond)
        anyio.run(main, backend=loop)


def test_lock_is_removed() -> None:
    """The pool has the lock that is removed."""
    with httpx.HTTPTransport() as transport:
        pool: Any = transport._pool  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # what is tested
        _httpcore.remove_lock(transport)
        lock = pool._optional_thread_lock  # noqa: SLF001 - as above
        with lock, lock:
            pass
    _httpcore.remove_lock(object())


@pytest.mark.parametrize(
    "stream",
    [
        object(),
        SimpleNamespace(_stream=object()),
        SimpleNamespace(_stream=SimpleNamespace(transport_stream=object())),
        SimpleNamespace(_stream=SimpleNamespace(_protocol=object())),
    ],
    ids=["a stream", "a layer", "TLS", "a queue"],
)
def test_stream_without_the_private_names(stream: object) -> None:
    """Where the names of a library are gone, requests are sent, and no connection is reused."""
    assert not _httpcore.has_part_of_record(stream)
    assert not _httpcore.has_read_ahead(stream)
    assert not _httpcore.are_buffers_empty(stream)
