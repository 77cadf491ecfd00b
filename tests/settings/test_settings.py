"""The settings that all clients share: TLS, proxies, further headers, and the environment's timeout."""

import asyncio
import os
import socket
import ssl
from base64 import b64encode
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import pytest
import trio
import trustme

import creduse_aiohttp
import creduse_trio
from creduse import AsyncCreduseClient, CreduseClient, Outcome, TransportError
from creduse_core import AsyncCoreClient, Secret, exception_chain
from creduse_sandbox import SandboxServer
from tests.common import KEY, NO_WAIT, RESPONSE, USER
from tests.servers import Behave, RawServer, raw_servers, relay
from tests.tls import client_context, server_context

NAME = "service.invalid"
LOGIN = b"Proxy-Authorization: Basic " + b64encode(b"user:p@ss")
Use: TypeAlias = Callable[..., Any]


def use_sync(headers: Any = None, **settings: Any) -> Any:
    with CreduseClient(KEY, **settings) as client:
        return client.add(USER, 5, extra_headers=headers)


def user_of(make: Callable[..., AsyncCoreClient], run: Callable[..., Any]) -> Use:
    def use(headers: Any = None, **settings: Any) -> Any:
        async def main() -> Any:
            async with make(KEY, **settings) as client:
                return await client.add(USER, 5, extra_headers=headers)

        return run(main) if run is trio.run else run(main())

    return use


USES: dict[str, Use] = {
    "httpx": use_sync,
    "httpx-asyncio": user_of(AsyncCreduseClient, asyncio.run),
    "httpx-trio": user_of(AsyncCreduseClient, trio.run),
    "aiohttp": user_of(creduse_aiohttp.AsyncCreduseClient, asyncio.run),
    "trio": user_of(creduse_trio.AsyncCreduseClient, trio.run),
}


@pytest.fixture(params=USES)
def use(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Use:
    """A way to make a client with settings, and one call with it."""
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return USES[request.param]


@pytest.fixture
def server() -> Iterator[SandboxServer]:
    with SandboxServer() as server:
        yield server


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """A certificate authority that no system trusts."""
    return trustme.CA()


def tunnel_to(port: int) -> Behave:
    """Act as a proxy whose tunnels all lead to ``port``, in whatever pieces."""

    def behave(connection: socket.socket, server: RawServer) -> None:
        server.request(connection, b"\r\n\r\n")
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 Conn")
        connection.sendall(b"ected\r\nX-Proxy: 1\r\n\r\n")
        with socket.create_connection(("127.0.0.1", port)) as target:
            relay(connection, target)

    return behave


def port_of(server: SandboxServer) -> int:
    return int(server.base_url.rpartition(":")[2])


def texts_of(error: BaseException) -> str:
    return "".join(
        f"{link} {link!r} {link.args!r} {vars(link)!r}" for link in exception_chain(error)
    )


def test_ssl_context(use: Use, authority: trustme.CA) -> None:
    """A client trusts the certificates of its ``ssl_context``, and no others."""
    with SandboxServer(ssl_context=server_context(authority)) as server:
        done = use(base_url=server.base_url, ssl_context=client_context(authority))
        assert done.amount == 5
        with pytest.raises(TransportError) as caught:
            use(base_url=server.base_url, ssl_context=ssl.create_default_context())
        assert caught.value.outcome is Outcome.NOT_APPLIED
        assert len(server.applied) == len(caught.value.attempts) == 1


@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
@pytest.mark.parametrize("given", ["argument", "environment"])
def test_tunnel(
    use: Use, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch, given: str, *, secure: bool
) -> None:
    """A request over https goes through a tunnel of an http or https proxy, which sees no key."""
    trust = client_context(authority)
    proxy_context = server_context(authority) if secure else None
    with (
        SandboxServer(ssl_context=server_context(authority, NAME)) as server,
        raw_servers(proxy_context) as start,
    ):
        proxy = start(tunnel_to(port_of(server)))
        url = proxy.base_url.replace("://", "://user:p%40ss@")
        if given == "environment":
            monkeypatch.setenv("HTTPS_PROXY", url)
        done = use(
            base_url=f"https://{NAME}",
            ssl_context=trust,
            **({"proxy": url} if given == "argument" else {}),
        )
        assert done.amount == 5
        assert [entry.path for entry in server.applied] == ["/add"]
        (received,) = proxy.received
        assert received.startswith(b"CONNECT %s:443 HTTP/1.1\r\n" % NAME.encode())
        assert b"Host: %s" % NAME.encode() in received
        assert LOGIN in received
        assert KEY.encode() not in received


def test_tunnel_to_this_machine(use: Use, authority: trustme.CA) -> None:
    """A client's own ``proxy`` is used for this machine, too."""
    with (
        SandboxServer(ssl_context=server_context(authority)) as server,
        raw_servers() as start,
    ):
        proxy = start(tunnel_to(port_of(server)))
        use(base_url=server.base_url, ssl_context=client_context(authority), proxy=proxy.base_url)
        (received,) = proxy.received
        assert b"authorization" not in received.lower()
        assert len(server.applied) == 1


@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
def test_plain_http_to_a_proxy(use: Use, authority: trustme.CA, *, secure: bool) -> None:
    """A request over plain http goes to the proxy with its whole URL, and the proxy's login."""

    def behave(connection: socket.socket, server: RawServer) -> None:
        while server.request(connection):
            connection.sendall(RESPONSE)

    settings = {"ssl_context": client_context(authority)} if secure else {}
    with raw_servers(server_context(authority) if secure else None) as start:
        proxy = start(behave)
        url = proxy.base_url.replace("://", "://user:p%40ss@")
        done = use(base_url=f"http://{NAME}/v1", allow_http=True, proxy=url, **settings)
        assert done.amount == 5
        (received,) = proxy.received
        assert received.startswith(b"POST http://%s/v1/add HTTP/1.1\r\n" % NAME.encode())
        assert received.lower().count(b"host: %s\r\n" % NAME.encode()) == 1
        assert received.count(LOGIN) == 1
        assert received.count(b"Authorization: Bearer") == 1


def refuse(connection: socket.socket, server: RawServer) -> None:
    server.request(connection, b"\r\n\r\n")
    connection.sendall(b"HTTP/1.1 407 Who are you\r\nContent-Length: 0\r\n\r\n")


def be_busy(connection: socket.socket, server: RawServer) -> None:
    server.request(connection, b"\r\n\r\n")
    connection.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")


def hang_up(connection: socket.socket, server: RawServer) -> None:
    server.request(connection, b"\r\n\r\n")


def speak_first(connection: socket.socket, server: RawServer) -> None:
    server.request(connection, b"\r\n\r\n")
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n")


def babble(connection: socket.socket, server: RawServer) -> None:
    server.request(connection, b"\r\n\r\n")
    connection.sendall(b"x" * 100_000)


def say_nothing(connection: socket.socket, server: RawServer) -> None:
    server.request(connection, b"\r\n\r\n")
    server.stopping.wait()


@pytest.mark.parametrize("behave", [refuse, be_busy, hang_up, speak_first, babble, say_nothing])
def test_proxy_that_makes_no_tunnel(use: Use, behave: Behave) -> None:
    """If the proxy makes no tunnel, nothing was sent; the error names the proxy, not its password."""
    with raw_servers() as start:
        proxy = start(behave)
        url = proxy.base_url.replace("://", "://user:p%40ss@")
        timeout = 0.5 if behave is say_nothing else 30
        with pytest.raises(TransportError) as caught:
            use(base_url=f"https://{NAME}", proxy=url, retry=NO_WAIT, timeout=timeout)
        error = caught.value
        assert error.outcome is Outcome.NOT_APPLIED
        assert f"({NAME}:443 through proxy {proxy.base_url})" in str(error)
        assert ("Who are you" in texts_of(error)) is (behave is refuse)
        # Only a response can say that a retry is in vain.
        assert len(error.attempts) == (1 if behave in {refuse, say_nothing} else 3)
        assert not any(secret in texts_of(error) for secret in ("p%40ss", "p@ss", "dXNlcjp"))
        for received in proxy.received:
            assert KEY.encode() not in received


def test_proxy_with_a_certificate_that_is_not_trusted(use: Use, authority: trustme.CA) -> None:
    """A proxy over TLS whose certificate is not trusted gets no login and no retry."""
    with raw_servers(server_context(authority)) as start:
        proxy = start(refuse)
        url = proxy.base_url.replace("://", "://user:p%40ss@")
        with pytest.raises(TransportError) as caught:
            use(base_url=f"https://{NAME}", proxy=url, retry=NO_WAIT)
        assert caught.value.outcome is Outcome.NOT_APPLIED
        assert len(caught.value.attempts) == 1
        assert proxy.received == []


def test_no_proxy_to_this_machine(
    use: Use, server: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request to this machine does not use the environment's proxy."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    assert use(base_url=server.base_url).amount == 5


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        (
            {"proxy": 7},
            TypeError,
            'proxy must be str, such as "http://proxy.example:3128", not int',
        ),
        ({"proxy": ""}, ValueError, "proxy must be a URL such as http://proxy.example:3128; "),
        ({"proxy": "http://user:p@ss/x@h"}, ValueError, "proxy must be a URL such as "),
        ({"proxy": " http://user:p@ss@h"}, ValueError, "proxy must be a URL such as "),
        ({"proxy": "http://user:p@ss@h\n"}, ValueError, "proxy must be a URL such as "),
        ({"proxy": "htp://p@ss@h"}, ValueError, "the proxy must be an http"),
        ({"ssl_context": "x"}, TypeError, "ssl_context must be an ssl.SSLContext, such as "),
        (
            {"ssl_context": ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)},
            ValueError,
            "ssl_context must be a client's, not one made with PROTOCOL_TLS_SERVER",
        ),
        ({"extra_headers": "x"}, TypeError, "extra_headers must be a mapping of names to values"),
        ({"on_call": 7}, TypeError, "on_call must be a plain function that takes a FinishedCall"),
        (
            {"timeout": 0},
            ValueError,
            "timeout must be above 0 and at most 1,000,000 seconds, not 0",
        ),
    ],
)
def test_wrong_setting(
    use: Use, settings: dict[str, Any], error: type[Exception], words: str
) -> None:
    """A wrong setting is rejected in one line, with a traceback that ends at the caller."""
    with pytest.raises(error) as caught:
        use(base_url=f"https://{NAME}", **settings)
    assert str(caught.value).startswith(words)
    assert "p@ss" not in str(caught.value)
    assert os.path.basename(caught.traceback[-1].path) == os.path.basename(__file__)  # noqa: PTH119 - a str or a Path


@pytest.mark.parametrize("name", ["httpx-asyncio", "aiohttp", "trio"])
def test_socks(name: str) -> None:
    """A client that has no SOCKS says so."""
    if name == "httpx-asyncio":
        return  # with socksio installed, it has
    with pytest.raises(ValueError, match=r"must be an http or https URL.*SOCKS"):
        USES[name](base_url=f"https://{NAME}", proxy="socks5://127.0.0.1:9")


def test_extra_headers(use: Use, server: SandboxServer) -> None:
    """A request has the client's further headers; those of the call replace them."""
    own = {"X-Tenant": "7", "X-Token": Secret("t0ken")}
    use({"x-tenant": "8", "traceparent": "00-1-2-01"}, base_url=server.base_url, extra_headers=own)
    headers = [
        (name.lower(), value)
        for name, value in server.log[0].headers
        if name.lower().startswith(("x-", "trace"))
    ]
    assert sorted(headers) == [
        ("traceparent", "00-1-2-01"),
        ("x-tenant", "8"),
        ("x-token", "t0ken"),
    ]
    assert len(server.applied) == 1


def test_timeout_from_the_environment(
    use: Use, server: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``CREDUSE_TIMEOUT`` is the timeout of a client that has no other."""
    monkeypatch.setenv("CREDUSE_TIMEOUT", "1e3")
    with pytest.raises(ValueError, match=r"CREDUSE_TIMEOUT must be a number of .*, not '1e3'"):
        use(base_url=server.base_url)
    use(base_url=server.base_url, timeout=30)
    monkeypatch.setenv("CREDUSE_TIMEOUT", "0.0")
    with pytest.raises(ValueError, match="CREDUSE_TIMEOUT must be above 0"):
        use(base_url=server.base_url)


def test_settings_beside_a_supplied_client() -> None:
    """Settings of connections are rejected beside a supplied client, which has its own."""
    import aiohttp  # noqa: PLC0415
    import httpx  # noqa: PLC0415

    async def main() -> None:
        async with aiohttp.ClientSession() as session, httpx.AsyncClient() as http_client:
            for name, value in {"proxy": "http://h:1", "ssl_context": context}.items():
                setting: dict[str, Any] = {name: value}
                with pytest.raises(ValueError, match=f"pass {name} to the http_client that you"):
                    AsyncCreduseClient(KEY, http_client, **setting)
                with pytest.raises(ValueError, match=f"pass {name} to the session that you supply"):
                    creduse_aiohttp.AsyncCreduseClient(KEY, session, **setting)
                with (
                    httpx.Client() as sync_client,
                    pytest.raises(ValueError, match=f"pass {name} to the http_client that you"),
                ):
                    CreduseClient(KEY, sync_client, **setting)

    context = ssl.create_default_context()
    asyncio.run(main())
