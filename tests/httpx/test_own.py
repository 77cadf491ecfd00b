"""A client's own connections: when they open, who shares them, and when they close."""

import asyncio
import gc
import os
import socket
import ssl
import subprocess
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import trio

from creduse import AsyncCreduseClient, CreduseClient, Outcome, TransportError
from creduse_httpx._exchange import Exchange
from creduse_sandbox import SandboxServer
from tests.common import KEY, RESPONSE, USER
from tests.httpx.harness import Harness
from tests.servers import RawServer, Start


def contexts() -> int:
    gc.collect()
    return sum(isinstance(thing, ssl.SSLContext) for thing in gc.get_objects())


def test_making_a_client_opens_nothing(server: SandboxServer) -> None:
    """A client connects at its first call."""
    with CreduseClient(KEY, base_url=server.base_url):
        server.settle()
        assert server.connections == 0


def test_one_tls_context() -> None:
    """A client for https makes one TLS context, before its first call."""
    before = contexts()
    with CreduseClient(KEY, base_url="https://127.0.0.1:1") as client:
        assert contexts() == before + 1
        for _ in range(2):
            with pytest.raises(TransportError):
                client.add(USER, 1, timeout=0.1)
            assert contexts() == before + 1


def test_threads_share_a_client(server: SandboxServer) -> None:
    """Threads can share a client, from its first call on."""
    with (
        CreduseClient(KEY, base_url=server.base_url) as client,
        ThreadPoolExecutor(8) as threads,
    ):
        list(threads.map(client.add, [USER] * 100, [1] * 100))
        assert client.get_balance(USER).active_balance == 100
    assert len(server.applied) == 100


FORK = """
import os, sys
from creduse import CreduseClient
client = CreduseClient("sk-test", base_url=sys.argv[1])
user = "12345678-1234-5678-1234-567812345678"
client.add(user, 1)
child = os.fork()
client.add(user, 1)
client.close()
if child:
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
os._exit(0)
"""


def test_fork(server: SandboxServer) -> None:
    """After a fork, parent and child do not share a connection."""
    subprocess.run([sys.executable, "-c", FORK, server.base_url], check=True)
    assert len(server.applied) == 3
    assert sorted(entry.connection for entry in server.log) == [1, 1, 2]


RUNNERS: dict[str, Callable[..., Any]] = {"asyncio": asyncio.run, "trio": trio.run}


@pytest.mark.parametrize("http_client", [None, httpx.AsyncClient()], ids=["own", "supplied"])
def test_no_loop(http_client: httpx.AsyncClient | None) -> None:
    """A coroutine that no event loop runs sends nothing, and the error says so."""
    client = AsyncCreduseClient(KEY, base_url="http://127.0.0.1:1", http_client=http_client)
    with pytest.raises(TransportError, match="no event loop runs") as caught:
        client.add(USER, 1).send(None)
    assert caught.value.outcome is Outcome.NOT_APPLIED


@pytest.mark.parametrize("runner", RUNNERS)
def test_another_loop(server: SandboxServer, runner: str) -> None:
    """On another event loop than before, a client sends nothing, and the error says so."""
    client = AsyncCreduseClient(KEY, base_url=server.base_url)

    async def first() -> None:
        await client.add(USER, 1)
        await client.aclose()

    async def second() -> None:
        other = AsyncCreduseClient(KEY, base_url=server.base_url)
        await other.add(USER, 1)

        def in_a_thread() -> None:
            async def main() -> None:
                with pytest.raises(TransportError, match="belongs to another event loop") as caught:
                    await other.add(USER, 1)
                assert caught.value.outcome is Outcome.NOT_APPLIED

            asyncio.run(main())

        with ThreadPoolExecutor(1) as threads:
            threads.submit(in_a_thread).result()
        await other.aclose()

    run = RUNNERS[runner]
    run(first() if runner == "asyncio" else first)
    run(second() if runner == "asyncio" else second)
    assert len(server.applied) == 2


@pytest.mark.parametrize("harness", [(it, "own") for it in ("sync", *RUNNERS)], indirect=True)
def test_old_connection(
    harness: Harness, server: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that was idle for too long is closed."""
    monkeypatch.setattr("creduse_httpx._own.IDLE_TIMEOUT", 0.0)

    async def main() -> None:
        async with harness.connect(server.base_url) as client:
            for _ in range(3):
                await client.add(USER, 1)
            server.settle()
            assert server.connections == 1

    harness.run(main)
    assert [entry.connection for entry in server.log] == [1, 2, 3]


@pytest.mark.parametrize("harness", [(it, "own") for it in ("sync", *RUNNERS)], indirect=True)
def test_one_piece(harness: Harness, raw: Start) -> None:
    """A request's head and body arrive together, on a new connection and on a kept one."""
    pieces: list[bytes] = []

    def behave(connection: socket.socket, _: RawServer) -> None:
        while piece := connection.recv(65536):
            pieces.append(piece)
            connection.sendall(RESPONSE)

    server = raw(behave)

    async def main() -> None:
        async with harness.connect(server.base_url) as client:
            for _ in range(2):
                await client.add(USER, 5)

    harness.run(main)
    assert len(pieces) == 2
    for piece in pieces:
        assert piece.startswith(b"POST /add ")
        assert piece.endswith(b"}")


@pytest.mark.parametrize("harness", [(it, "own") for it in ("sync", *RUNNERS)], indirect=True)
def test_idle_connection_forgets(harness: Harness, server: SandboxServer) -> None:
    """An idle connection keeps nothing of the last exchange, which has a user's data."""

    def exchanges() -> list[Exchange]:
        gc.collect()
        return [it for it in gc.get_objects() if isinstance(it, Exchange)]

    async def main() -> None:
        before = exchanges()  # of other tests' exceptions
        async with harness.connect(server.base_url) as client:
            await client.add(USER, 5)
            assert not [it for it in exchanges() if it not in before]

    harness.run(main)


def test_unused_async_client_closes(on_a_loop: Harness) -> None:
    """A client that was never used closes."""

    async def main() -> None:
        async with AsyncCreduseClient(KEY):
            pass

    on_a_loop.run(main)


def test_environment(server: SandboxServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key and the URL come from the environment where they are not arguments."""
    monkeypatch.setenv("CREDUSE_API_KEY", KEY)
    monkeypatch.setenv("CREDUSE_BASE_URL", server.base_url)
    with CreduseClient() as client:
        client.add(USER, 1)
    assert len(server.applied) == 1
    assert os.environ["CREDUSE_API_KEY"] not in repr(client)


WRONG_SETTINGS = {
    "certificates": ("https://127.0.0.1:1", "SSL_CERT_FILE", "/nowhere/at/all.pem"),
    "proxy": ("https://service.invalid", "HTTPS_PROXY", "ftp://u:password@127.0.0.1:1"),
    "a password with #": ("https://service.invalid", "HTTPS_PROXY", "http://u:pass#word@host:1"),
    "a port": ("https://service.invalid", "HTTPS_PROXY", "http://u:password@host:port"),
    "quotes": ("https://service.invalid", "HTTPS_PROXY", "'http://u:password@host:1'"),
}


@pytest.mark.parametrize(("base_url", "name", "value"), WRONG_SETTINGS.values(), ids=WRONG_SETTINGS)
@pytest.mark.parametrize("kind", [CreduseClient, AsyncCreduseClient])
def test_wrong_setting_of_the_environment(
    kind: Callable[..., object],
    base_url: str,
    name: str,
    value: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A wrong setting of the environment is a ValueError when the client is made, and names a file."""
    monkeypatch.setenv(name, value)
    wanted = f"{name} .*{value}" if value.startswith("/") else name
    with pytest.raises(ValueError, match=wanted) as caught:
        kind(KEY, base_url=base_url)
    assert "password" not in "".join(traceback.format_exception(caught.value)).replace(
        "can hold a password", ""
    )


@pytest.mark.parametrize("context", [None, ssl.create_default_context()], ids=["none", "given"])
@pytest.mark.parametrize("kind", [CreduseClient, AsyncCreduseClient])
def test_socks_is_not_installed(
    kind: Callable[..., object], context: ssl.SSLContext | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is missing is named, and no file that the client does not use."""
    monkeypatch.setitem(sys.modules, "socksio", None)
    if context is not None:
        monkeypatch.setenv("SSL_CERT_FILE", "/nowhere/at/all.pem")
    monkeypatch.setenv("HTTPS_PROXY", "socks5://u:password@host:1")
    with pytest.raises(ValueError, match=r"HTTPS_PROXY.*httpx\[socks\]") as caught:
        kind(KEY, base_url="https://service.invalid", ssl_context=context)
    assert "nowhere" not in str(caught.value)
    assert "password" not in "".join(traceback.format_exception(caught.value))


def test_no_proxy_to_this_machine(
    server: SandboxServer, monkeypatch: pytest.MonkeyPatch, raw: Start
) -> None:
    """A request to this machine does not use the environment's proxy."""

    def be_a_proxy(connection: socket.socket, proxy: RawServer) -> None:
        proxy.request(connection)

    proxy = raw(be_a_proxy)
    monkeypatch.setenv("HTTP_PROXY", proxy.base_url)
    monkeypatch.setenv("ALL_PROXY", proxy.base_url)
    with CreduseClient(KEY, base_url=server.base_url) as client:
        client.add(USER, 1)
    assert len(server.applied) == 1
    assert proxy.received == []


def test_close_waits_for_calls(server: SandboxServer) -> None:
    """Closing waits for a call that has begun."""

    async def main() -> None:
        client = AsyncCreduseClient(KEY, base_url=server.base_url)
        call = asyncio.create_task(client.add(USER, 1))
        await asyncio.sleep(0)
        await client.aclose()
        assert call.done()
        assert call.result().amount == 1
        with pytest.raises(TransportError, match="the client is closed"):
            await client.add(USER, 1)

    asyncio.run(main())
    assert len(server.log) == 1


def test_closed_on_another_loop(server: SandboxServer) -> None:
    """A client can be closed after its event loop has ended."""
    client = AsyncCreduseClient(KEY, base_url=server.base_url)

    async def main() -> None:
        await client.add(USER, 1)
        # As a good guest, so that nothing is left open behind.
        await client.aclose()

    asyncio.run(main())
    asyncio.run(client.aclose())
    with pytest.raises(TransportError, match="the client is closed"):
        asyncio.run(client.add(USER, 1))
