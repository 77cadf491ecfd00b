"""Which proxy is used, what it gets, and that no error shows its password."""

import asyncio
import socket
import warnings

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from creduse import Outcome, TransportError
from creduse_aiohttp import AsyncCreduseClient
from creduse_core import exception_chain
from creduse_sandbox import SandboxServer
from tests.aiohttp.clients import Run
from tests.common import KEY, NO_WAIT, RESPONSE, USER
from tests.servers import Behave, RawServer, Start

SERVICE = "https://api.creduse.com"
PASSWORD = "s3cret-w0rd"
QUOTED = "s3cret-w0rd%23%40"


def refuse(connection: socket.socket, server: RawServer) -> None:
    """Act as a proxy that refuses every CONNECT."""
    server.request(connection, b"\r\n\r\n")
    connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")


def accept_and_close(connection: socket.socket, server: RawServer) -> None:
    """Act as a proxy whose tunnels end at once."""
    server.request(connection, b"\r\n\r\n")
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")


def with_login(url: str, password: str = QUOTED) -> str:
    return url.replace("http://", f"http://user:{password}@")


def shows(error: BaseException, *secrets: str) -> bool:
    """Return whether an error or its causes show one of ``secrets``."""
    texts = [f"{link} {link!r} {link.args!r} {vars(link)!r}" for link in exception_chain(error)]
    return any(secret in text for secret in secrets for text in texts)


@pytest.mark.parametrize("behave", [refuse, accept_and_close])
@pytest.mark.parametrize("given", ["HTTPS_PROXY", "all_proxy", "trust_env", "proxy", "proxy_auth"])
def test_proxy(
    run: Run, raw: Start, given: str, behave: Behave, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy gets CONNECT and its login, not the key; the error names it without its password."""

    async def main() -> None:
        url = with_login(proxy.base_url)
        session = None
        if given == "trust_env":
            monkeypatch.setenv("HTTPS_PROXY", url)
            session = aiohttp.ClientSession(trust_env=True)
        elif given == "proxy":
            session = aiohttp.ClientSession(proxy=url)
        elif given == "proxy_auth":
            with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
                login = aiohttp.BasicAuth("user", f"{PASSWORD}#@")
                session = aiohttp.ClientSession(proxy=proxy.base_url, proxy_auth=login)
        else:
            monkeypatch.setenv(given, url)
        async with AsyncCreduseClient(
            KEY, session, base_url="https://service.invalid", retry=NO_WAIT
        ) as client:
            with pytest.raises(TransportError) as caught:
                await client.add(USER, 5)
        if session is not None:
            await session.close()
        error = caught.value
        assert error.outcome is Outcome.NOT_APPLIED
        assert f"service.invalid:443 through proxy {proxy.base_url}" in str(error)
        assert not shows(error, PASSWORD, "dXNlcjpz")
        assert len(proxy.received) == len(error.attempts)
        for received in proxy.received:
            assert received.startswith(b"CONNECT service.invalid:443 ")
            assert b"Proxy-Authorization: Basic dXNlcjpzM2NyZXQtdzByZCNA\r\n" in received
            assert KEY.encode() not in received

    proxy = raw(behave)
    run(main)


def test_no_proxy(run: Run, raw: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """``NO_PROXY`` is respected."""

    async def main() -> None:
        monkeypatch.setenv("HTTPS_PROXY", proxy.base_url)
        monkeypatch.setenv("NO_PROXY", ".invalid")
        async with AsyncCreduseClient(
            KEY, base_url="https://service.invalid", retry=NO_WAIT
        ) as client:
            with pytest.raises(TransportError):
                await client.add(USER, 5)
        assert proxy.received == []

    proxy = raw(refuse)
    run(main)


@pytest.mark.parametrize(
    "url",
    [
        "http://user:s3cret-w0rd#@127.0.0.1:1",
        "http://user:#s3cret-w0rd@127.0.0.1:1",
        "http://user:1/s3cret-w0rd@127.0.0.1:1",
        "http://user:1?s3cret-w0rd@127.0.0.1:1",
        "http://user:s3cret-w0rd@127.0.0.1:port",
        "http://user:s3cret-w0rd@127.0.0.1:99999",
        "http://user:s3cret-w0rd@[::1",
        "socks5://user:s3cret-w0rd@127.0.0.1:1",
        "/s3cret-w0rd",
    ],
)
@pytest.mark.parametrize("given", ["environment", "trust_env", "proxy"])
def test_unsupported_proxy(url: str, given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that aiohttp does not support is rejected with the client; no password shows."""

    async def main() -> None:
        async with aiohttp.ClientSession(
            trust_env=given == "trust_env", proxy=url if given == "proxy" else None
        ) as session:
            if given != "proxy":
                monkeypatch.setenv("HTTPS_PROXY", url)
            with pytest.raises(ValueError, match=r"must be .*proxy\.example:3128") as caught:
                AsyncCreduseClient(
                    KEY, None if given == "environment" else session, base_url=SERVICE
                )
            assert not shows(caught.value, PASSWORD)

    asyncio.run(main())


def test_plain_http_to_a_proxy(run: Run, raw: Start) -> None:
    """A request over plain http goes to the proxy unchanged, with the proxy's login."""

    def behave(connection: socket.socket, server: RawServer) -> None:
        while server.request(connection):
            connection.sendall(RESPONSE)

    async def main() -> None:
        async with aiohttp.ClientSession(proxy=with_login(proxy.base_url)) as session:
            # One that a session was made with is its owner's choice, for this machine, too.
            for base_url in ("http://service.invalid", "http://localhost:1"):
                async with AsyncCreduseClient(
                    KEY, session, base_url=base_url, allow_http="invalid" in base_url
                ) as client:
                    for _ in range(2):
                        assert (await client.add(USER, 5)).amount == 5
                assert proxy.received[-1].startswith(b"POST %s/add " % base_url.encode())
            for received in proxy.received:
                assert received.count(b"Proxy-Authorization: Basic dXNlcjpzM2NyZXQtdzByZCNA") == 1
            assert (len(proxy.received), proxy.connections) == (4, 2)

    proxy = raw(behave)
    run(main)


def test_no_proxy_to_this_machine(
    run: Run, server: SandboxServer, raw: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request to this machine does not use the environment's proxy."""

    async def main() -> None:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.base_url)
        async with aiohttp.ClientSession(trust_env=True) as session:
            for given in (session, None):
                async with AsyncCreduseClient(KEY, given, base_url=server.base_url) as client:
                    await client.add(USER, 1)
        assert proxy.received == []

    proxy = raw(refuse)
    run(main)
    assert len(server.applied) == 2


class Resolver(AbstractResolver):
    """A resolver that finds every name at one address."""

    def __init__(self, address: str, port: int) -> None:
        self._address = address
        self._port = port

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            {
                "hostname": host,
                "host": self._address,
                "port": self._port or port,
                "family": family,
                "proto": 0,
                "flags": 0,
            }
        ]

    async def close(self) -> None:
        """Close nothing."""


def address_of_this_machine() -> str:
    """Return an address of this machine that is not a loopback address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no network")
        return str(probe.getsockname()[0])


@pytest.mark.parametrize("host", ["localhost", "creduse.localhost"])
def test_loopback_name_that_is_elsewhere(run: Run, host: str) -> None:
    """A loopback name that resolves elsewhere gets nothing over plain http, unless allowed."""
    received: list[bytes] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.read(1))
        writer.close()

    async def main() -> None:
        address = address_of_this_machine()
        async with await asyncio.start_server(connected, address, 0) as listening:
            port = listening.sockets[0].getsockname()[1]
            connector = aiohttp.TCPConnector(resolver=Resolver(address, port))
            async with aiohttp.ClientSession(connector=connector) as session:
                for allow_http in (False, True):
                    client = AsyncCreduseClient(
                        KEY, session, base_url=f"http://{host}:{port}", allow_http=allow_http
                    )
                    with pytest.raises(TransportError) as caught:
                        await client.add(USER, 5)
                    if allow_http:
                        assert caught.value.outcome is Outcome.UNKNOWN
                    else:
                        assert caught.value.outcome is Outcome.NOT_APPLIED
                        assert len(caught.value.attempts) == 1
                        assert f"{host}:{port} is at {address}, which is not this machine" in str(
                            caught.value
                        )
            await asyncio.sleep(0.05)
        assert received == [b"", b"P"]

    run(main)


def test_loopback_name(run: Run, server: SandboxServer) -> None:
    """A loopback name of this machine works, over IPv4 or mapped into IPv6."""

    async def main() -> None:
        port = int(server.base_url.rpartition(":")[2])
        for address in ("127.0.0.1", "::ffff:127.0.0.1"):
            connector = aiohttp.TCPConnector(resolver=Resolver(address, port))
            async with (
                aiohttp.ClientSession(connector=connector) as session,
                AsyncCreduseClient(KEY, session, base_url=f"http://localhost:{port}") as client,
            ):
                await client.add(USER, 5)

    run(main)
    assert len(server.applied) == 2
